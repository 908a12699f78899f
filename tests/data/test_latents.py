import json
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from cmdvid.data.latents import LatentDataset, LatentWriter, read_manifest, write_manifest
from cmdvid.types import LatentBatch, VideoLatent


def write(folder, batch: LatentBatch, batch_idx: int = 0, rank: int = 0) -> None:
    trainer = SimpleNamespace(global_rank=rank)
    LatentWriter(str(folder)).write_on_batch_end(trainer, None, batch, None, None, batch_idx, 0)


def latents(num: int, start: int = 0) -> LatentBatch:
    latent = VideoLatent(torch.randn(num, 3, 4, 6), torch.randn(num, 8, 2, 5))
    captions = [f"clip {start + i}" for i in range(num)]
    return LatentBatch(latent, captions, torch.arange(start, start + num))


def test_what_is_written_is_read_back_bit_for_bit(tmp_path):
    batches = [latents(3), latents(2, start=3)]
    for i, batch in enumerate(batches):
        write(tmp_path, batch, i)
    dataset = LatentDataset(tmp_path)
    assert len(dataset) == 5
    for i, (batch, row) in enumerate([(b, r) for b in batches for r in range(len(b.index))]):
        sample = dataset[0, i]
        assert torch.equal(sample.latent.content, batch.latent.content[row])
        assert torch.equal(sample.latent.motion, batch.latent.motion[row])
        assert sample.condition == f"clip {i}"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_collate_with_and_without_workers(tmp_path, num_workers):
    write(tmp_path, latents(4))
    keys = [(0, i) for i in range(4)]
    loader = DataLoader(
        LatentDataset(tmp_path), batch_size=4, sampler=keys, num_workers=num_workers
    )
    (batch,) = loader
    assert isinstance(batch, LatentBatch)
    assert batch.latent.content.shape == (4, 3, 4, 6)
    assert list(batch.condition) == [f"clip {i}" for i in range(4)]


def test_a_bare_row_is_that_of_any_epoch(tmp_path):
    """Lightning's overfit_batches replaces the sampler by one of bare rows."""
    write(tmp_path, latents(3))
    dataset = LatentDataset(tmp_path)
    assert torch.equal(dataset[1].latent.motion, dataset[7, 1].latent.motion)
    assert dataset[1].index == 1


def test_labels_come_back_as_labels(tmp_path):
    batch = latents(2)._replace(condition=torch.tensor([5, 7]))
    write(tmp_path, batch)
    assert [LatentDataset(tmp_path)[0, i].condition for i in range(2)] == [5, 7]


def test_a_cache_without_manifest_is_not_finished(tmp_path):
    with pytest.raises(ValueError, match=r"no finished latent cache .*cmdvid encode"):
        read_manifest(tmp_path)
    write_manifest(tmp_path, {"autoencoder": "abc"})
    assert read_manifest(tmp_path) == {"autoencoder": "abc"}
    assert json.loads((tmp_path / "manifest.json").read_text()) == {"autoencoder": "abc"}


def test_a_run_starts_by_removing_what_an_earlier_one_left(tmp_path):
    """Or shards of two autoencoders mix, and a run that is cut short looks finished."""
    for batch_idx in range(3):
        write(tmp_path / "train", latents(2), batch_idx)
    write(tmp_path / "val", latents(2))
    write_manifest(tmp_path, {"autoencoder": "abc"})
    (tmp_path / "train" / "0000-000003.tmp").touch()
    (tmp_path / "train" / "notes.md").touch()
    barriers = []
    strategy = SimpleNamespace(barrier=barriers.append)
    writer = LatentWriter(str(tmp_path / "train"))
    writer.on_predict_start(SimpleNamespace(is_global_zero=False, strategy=strategy), None)
    assert len(LatentDataset(tmp_path / "train")) == 6
    writer.on_predict_start(SimpleNamespace(is_global_zero=True, strategy=strategy), None)
    assert [path.name for path in (tmp_path / "train").iterdir()] == ["notes.md"]
    assert len(LatentDataset(tmp_path / "val")) == 2
    assert len(barriers) == 2
    with pytest.raises(ValueError, match="no finished latent cache"):
        read_manifest(tmp_path)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no latents; run `cmdvid encode`"):
        LatentDataset(tmp_path)
