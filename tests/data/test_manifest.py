import json
from dataclasses import replace

import pytest
import torch

from cmdvid.data.cache import CacheShards, CacheSplit
from cmdvid.data.manifest import (
    Manifest,
    begin,
    differences,
    finish,
    index_hash,
    read_manifest,
    refuse_other_fields,
    refuse_other_settings,
)
from cmdvid.types import VideoEntry

SPLIT = CacheSplit(num_rows=3, rows_per_shard=2, index="abc")
MADE_BY = Manifest(
    holds="latents",
    autoencoder="0123",
    autoencoder_ckpt="run/last.ckpt",
    codec={"class_path": "PixelCodec"},
    content_text=None,
    motion_text=None,
    spec={"num_frames": 4, "image_size": (24, 32)},
    seed=0,
    dtype="fp32",
    precision="32-true",
    versions={"torch": "2"},
    train=SPLIT,
    val=SPLIT,
)


def write_shards(folder, *numbers: int) -> None:
    for name in ("train", "val"):
        for number in numbers:
            CacheShards(folder / name, SPLIT).write(number, {"x": torch.zeros(1)})


def test_a_cache_is_finished_when_all_shards_are_there(tmp_path):
    begin(tmp_path, MADE_BY, overwrite=False)
    write_shards(tmp_path, 0)
    with pytest.raises(ValueError, match=r"train: 1 of 2 shards are missing.*000001.safetensors"):
        finish(tmp_path, MADE_BY)
    with pytest.raises(ValueError, match=r"no finished latent cache .*cmdvid encode"):
        read_manifest(tmp_path)
    write_shards(tmp_path, 1)
    finish(tmp_path, MADE_BY)
    found = read_manifest(tmp_path)
    assert (found.train, found.dtype, found.autoencoder) == (SPLIT, "fp32", "0123")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "train", "val"]


@pytest.mark.parametrize("finished", [False, True])
def test_a_run_goes_on_only_with_equal_settings(tmp_path, finished):
    refuse_other_settings(tmp_path / "new", MADE_BY)
    begin(tmp_path, MADE_BY, overwrite=False)
    write_shards(tmp_path, *((0, 1) if finished else (0,)))
    if finished:
        finish(tmp_path, MADE_BY)
    refuse_other_settings(tmp_path, replace(MADE_BY, versions={}, autoencoder_ckpt="moved"))
    for changed, message in (
        ({"dtype": "bf16"}, "dtype was fp32, now bf16"),
        ({"autoencoder": "4567"}, "autoencoder was 0123, now 4567"),
        ({"spec": {**MADE_BY.spec, "num_frames": 8}}, "spec.num_frames was 4, now 8"),
        ({"val": replace(SPLIT, index="def")}, "val.index was abc, now def"),
    ):
        with pytest.raises(ValueError, match=f"{message}.*--overwrite true"):
            refuse_other_settings(tmp_path, replace(MADE_BY, **changed))


def test_overwriting_removes_the_shards_of_both_splits(tmp_path):
    """Or a run that is stopped would go on with those of the settings before."""
    begin(tmp_path, MADE_BY, overwrite=False)
    write_shards(tmp_path, 0, 1)
    finish(tmp_path, MADE_BY)
    begin(tmp_path, replace(MADE_BY, dtype="bf16"), overwrite=True)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["unfinished.json"]
    assert not list(tmp_path.glob("*/*.safetensors"))


def test_what_is_no_manifest_is_named(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"autoencoder": "abc"}))
    with pytest.raises(ValueError, match=r"manifest.json: not the manifest of a cache of this"):
        read_manifest(tmp_path)
    with pytest.raises(ValueError, match="encode --overwrite true"):
        refuse_other_settings(tmp_path, MADE_BY)


def test_shards_of_unknown_settings_are_not_gone_on_with(tmp_path):
    write_shards(tmp_path, 0)
    with pytest.raises(ValueError, match="nothing says of what; add --overwrite true"):
        refuse_other_settings(tmp_path, MADE_BY)


def test_a_stage_names_the_fields_that_differ_with_both_values(tmp_path):
    begin(tmp_path, MADE_BY, overwrite=False)
    write_shards(tmp_path, 0, 1)
    finish(tmp_path, MADE_BY)
    refuse_other_fields(tmp_path, {"holds": "latents", "spec": MADE_BY.spec})
    wanted = {"codec": {"class_path": "Other"}, "spec": {**MADE_BY.spec, "image_size": (8, 8)}}
    with pytest.raises(ValueError, match="not a cache for this stage") as error:
        refuse_other_fields(tmp_path, wanted)
    assert "codec.class_path is PixelCodec, but here Other" in str(error.value)
    assert "spec.image_size is [24, 32], but here [8, 8]" in str(error.value)


def test_differences_have_dotted_names():
    one, other = {"a": {"b": 1, "c": 2}, "d": None}, {"a": {"b": 1, "c": 3}, "d": {"e": 4}}
    assert differences(one, other) == [("a.c", 2, 3), ("d", None, {"e": 4})]
    assert differences(one, one) == []


def test_the_hash_of_an_index_knows_paths_conditions_and_order():
    rows = [VideoEntry("a.mp4", "a cat"), VideoEntry("b.mp4", "a dog")]
    other = [rows[0], VideoEntry("b.mp4", "a dog.")]
    hashes = [index_hash(index, "train") for index in (rows, list(rows), rows[::-1], other)]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3
