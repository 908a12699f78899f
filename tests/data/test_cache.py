import torch
from safetensors.torch import load_file

from cmdvid.data.cache import CacheShards, CacheSplit, ShardKeys


def test_shards_share_out_all_rows_in_order():
    split = CacheSplit(num_rows=7, rows_per_shard=3, index="", clips_per_video=2)
    assert split.num_shards == 3
    assert [list(split.rows(n)) for n in range(3)] == [[0, 1, 2], [3, 4, 5], [6]]
    keys = ShardKeys(split, [2, 0])
    assert list(keys) == [(0, 6), (1, 6), *((clip, row) for row in range(3) for clip in range(2))]
    assert len(keys) == len(list(keys))


def test_shards_are_missing_until_they_are_written(tmp_path):
    shards = CacheShards(tmp_path / "train", CacheSplit(num_rows=5, rows_per_shard=2, index=""))
    assert shards.missing() == [0, 1, 2]
    shards.path(0).parent.mkdir()
    (tmp_path / "train" / ".000000.safetensors.part").touch()  # what a killed run leaves
    value = torch.randn(3, 4).T  # not contiguous, which safetensors refuses
    shards.write(1, {"content": value})
    assert shards.missing() == [0, 2]
    assert torch.equal(load_file(shards.path(1))["content"], value)


def test_removing_takes_all_shards_and_nothing_else(tmp_path):
    shards = CacheShards(tmp_path, CacheSplit(num_rows=1, rows_per_shard=1, index=""))
    shards_and_parts = ["000000.safetensors", "0000-000001.safetensors", ".000007.safetensors.part"]
    for name in ["notes.md", *shards_and_parts]:
        (tmp_path / name).touch()
    shards.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.md"]
