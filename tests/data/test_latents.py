import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from cmdvid.data import latents as module
from cmdvid.data.cache import CacheShards, CacheSplit
from cmdvid.data.latents import LatentDataset, pack_captions
from cmdvid.data.manifest import Manifest, begin, finish
from cmdvid.types import FramesBatch, LatentBatch

CAPTIONS = ["a cat", "", "Ein Kätzchen 猫"]


@pytest.fixture
def make_cache(tmp_path):
    """Write a cache of ``make_cache(num_rows=5, clips=2, flips=True)``, two rows a shard."""

    def make(
        *, num_rows: int = 5, clips: int = 1, flips: bool = False, labels: bool = False,
        holds: str = "latents", text: bool = False,
    ) -> Path:  # fmt: skip
        one = CacheSplit(num_rows, 2, index="", clips_per_video=clips, flips=flips)
        splits = {"train": one, "val": replace(one, clips_per_video=1, flips=False)}
        settings = dict.fromkeys(("autoencoder", "autoencoder_ckpt", "content_text", "motion_text"))
        settings |= {"codec": {}, "spec": {}, "versions": {}, "seed": 0, "holds": holds}
        manifest = Manifest(**settings, dtype="fp32", precision="32-true", **splits)
        begin(tmp_path, manifest, overwrite=False)
        for name, split in splits.items():
            shards = CacheShards(tmp_path / name, split)
            for number in range(split.num_shards):
                rows = split.rows(number)
                num = len(rows) * split.clips_per_video
                # what tells row, clip and side apart: 100 row + 10 clip + mirrored
                values = torch.tensor(
                    [
                        100.0 * row + 10 * clip + side
                        for row in rows
                        for clip in range(split.clips_per_video)
                        for side in range(1 + split.flips)
                    ]
                )
                tensors = {"condition": torch.tensor([rows[0] + i for i in range(num)])}
                if not labels:
                    tensors = {"condition": torch.arange(num) % 3, **pack_captions(CAPTIONS)}
                if text:
                    tensors["content_text"] = torch.arange(3.0)[:, None, None].expand(3, 7, 2)
                if holds == "frames":
                    tensors["frames"] = values[:, None, None, None, None].expand(-1, 4, 2, 3, 5)
                else:
                    tensors["content"] = values[:, None, None, None].expand(-1, 3, 4, 6)
                    tensors["motion"] = values[:, None, None, None].expand(-1, 8, 2, 5)
                shards.write(number, tensors)
        finish(tmp_path, manifest)
        return tmp_path

    return make


def values(sample: LatentBatch) -> tuple[float, float]:
    return sample.latent.content[0, 0, 0].item(), sample.latent.motion[0, 0, 0].item()


def test_every_row_is_found_with_its_caption(make_cache):
    dataset = LatentDataset(make_cache(), "train")
    assert len(dataset) == 5
    for i in range(5):
        sample = dataset[0, i]
        assert isinstance(sample, LatentBatch)
        assert values(sample) == (100 * i, 100 * i)
        assert sample.condition == CAPTIONS[i % 2]
        assert sample.index == i
        assert sample.latent.content.shape == (3, 4, 6)
    assert LatentDataset(make_cache(), "val")[4].index == 4


def test_epochs_go_through_the_clips(make_cache):
    dataset = LatentDataset(make_cache(clips=3), "train")
    assert [values(dataset[epoch, 3])[0] for epoch in range(5)] == [300, 310, 320, 300, 310]
    assert dataset[1, 3].condition == CAPTIONS[4 % 3]  # of that very clip
    assert values(dataset[3])[0] == 300  # a bare row is that of epoch 0


def test_clips_are_mirrored_where_those_of_files_would_be(make_cache):
    folder = make_cache(clips=2, flips=True)
    dataset = LatentDataset(folder, "train", flip=True, seed=3)
    found = [[values(dataset[epoch, i])[0] for i in range(5)] for epoch in range(4)]
    for epoch in range(4):
        for i in range(5):
            mirrored = np.random.default_rng([3, epoch, i]).random(2)[1] < 0.5
            assert found[epoch][i] == 100 * i + 10 * (epoch % 2) + mirrored
    assert {value % 10 for row in found for value in row} == {0, 1}
    plain = LatentDataset(folder, "train", seed=3)
    assert all(values(plain[0, i])[0] == 100 * i for i in range(5))


def test_flips_that_are_not_cached_are_refused(make_cache):
    with pytest.raises(ValueError, match=r"data\.flip is true; encode with --flips true"):
        LatentDataset(make_cache(), "train", flip=True)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_collate_with_and_without_workers(make_cache, num_workers):
    keys = [(0, i) for i in range(4)]
    loader = DataLoader(
        LatentDataset(make_cache(text=True), "train"),
        batch_size=4, sampler=keys, num_workers=num_workers,
    )  # fmt: skip
    (batch,) = loader
    assert isinstance(batch, LatentBatch)
    assert batch.latent.content.shape == (4, 3, 4, 6)
    assert list(batch.condition) == [CAPTIONS[i % 2] for i in range(4)]
    assert batch.text.content[:, 0, 0].tolist() == [0, 1, 0, 1]  # of the caption
    assert batch.text.content.shape == (4, 7, 2)
    assert batch.text.motion.numel() == 0  # not cached


def test_labels_come_back_as_labels(make_cache):
    dataset = LatentDataset(make_cache(labels=True), "train")
    assert [dataset[0, i].condition for i in range(5)] == [0, 1, 2, 3, 4]


def test_frames_come_back_as_frames(make_cache):
    sample = LatentDataset(make_cache(holds="frames"), "train")[0, 3]
    assert isinstance(sample, FramesBatch)
    assert sample.frames.shape == (4, 2, 3, 5)
    assert (sample.frames == 300).all()


def test_few_shards_stay_open_and_none_travels_to_workers(make_cache, monkeypatch):
    monkeypatch.setattr(module, "MAX_OPEN", 2)
    dataset = LatentDataset(make_cache(), "train")
    for i in (0, 2, 4, 0, 3):
        assert values(dataset[i])[0] == 100 * i
        assert len(dataset._open) <= 2
    size = len(pickle.dumps(dataset))
    assert size < 2000
    many = LatentDataset(make_cache(num_rows=500), "train")
    assert len(pickle.dumps(many)) < size + 100  # nothing is kept of each row


@pytest.mark.parametrize("damage", ["removed", "cut"])
def test_a_shard_that_cannot_be_read_is_named(make_cache, damage):
    file = make_cache() / "train/000001.safetensors"
    if damage == "removed":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-40])
    dataset = LatentDataset(file.parents[1], "train")
    assert values(dataset[1])[0] == 100
    with pytest.raises(ValueError, match=r"000001.safetensors: cannot be read.*delete it and run"):
        dataset[2]
