"""Cached latents: safetensors shards, written once by `cmdvid encode` and read ever after."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.data import Dataset

from cmdvid.types import LatentBatch, VideoLatent

MANIFEST = "manifest.json"


class LatentWriter(BasePredictionWriter):
    """Write each predicted batch of latents as one shard, whole or not at all.

    Args:
        folder: Where shards go, one folder for each split.
    """

    def __init__(self, folder: str):
        super().__init__("batch")
        self.folder = Path(folder)

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        """Remove what an earlier run left here, and first the manifest of a finished cache."""
        if trainer.is_global_zero:
            (self.folder.parent / MANIFEST).unlink(missing_ok=True)
            for path in self.folder.glob("[0-9]*-[0-9]*"):
                if path.suffix in (".safetensors", ".tmp"):
                    path.unlink()
        trainer.strategy.barrier("the folder is empty")

    def write_on_batch_end(
        self,
        trainer: Any,
        pl_module: Any,
        prediction: LatentBatch,
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Save content, motion and index; conditions travel in the shard's metadata."""
        self.folder.mkdir(parents=True, exist_ok=True)
        labels: Any = prediction.condition
        conditions = labels.tolist() if isinstance(labels, torch.Tensor) else list(labels)
        tensors = {
            "content": prediction.latent.content.contiguous().cpu(),
            "motion": prediction.latent.motion.contiguous().cpu(),
            "index": torch.as_tensor(prediction.index).cpu(),
        }
        path = self.folder / f"{trainer.global_rank:04d}-{batch_idx:06d}.safetensors"
        temporary = path.with_suffix(".tmp")
        save_file(tensors, temporary, metadata={"conditions": json.dumps(conditions)})
        os.replace(temporary, path)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write, last of all, what made a cache; a cache without manifest is not finished."""
    temporary = folder / f"{MANIFEST}.tmp"
    temporary.write_text(json.dumps(manifest, indent=2) + "\n")
    os.replace(temporary, folder / MANIFEST)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """What made a cache.

    Raises:
        ValueError: If the folder holds no finished cache.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise ValueError(
            f"{folder}: no finished latent cache ({MANIFEST} is missing); "
            "make it with `cmdvid encode --ckpt AUTOENCODER.ckpt --out DIR`"
        )
    return json.loads(path.read_text())


class LatentDataset(Dataset):
    """Cached latents as samples; opened shards stay open and are memory-mapped.

    Args:
        folder: One split of a cache.

    Raises:
        ValueError: If it holds no shards.
    """

    def __init__(self, folder: str | Path):
        self.paths = sorted(Path(folder).glob("*.safetensors"))
        if not self.paths:
            raise ValueError(f"{folder}: holds no latents; run `cmdvid encode` again")
        self.rows: list[tuple[int, int]] = []  # shard, row in it
        self.conditions: list[int | str] = []
        for number, path in enumerate(self.paths):
            with safe_open(path, framework="pt") as shard:
                conditions = json.loads(shard.metadata()["conditions"])
            self.rows += [(number, row) for row in range(len(conditions))]
            self.conditions += conditions
        self._open: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int] | int) -> LatentBatch:
        """Sample ``(epoch, i)``, or a bare ``i``; a cached latent is the same in every epoch."""
        i = key[1] if isinstance(key, tuple) else key
        number, row = self.rows[i]
        if number not in self._open:
            self._open[number] = safe_open(self.paths[number], framework="pt")
        shard = self._open[number]
        content, motion = (shard.get_slice(k)[row] for k in VideoLatent._fields)
        return LatentBatch(VideoLatent(content, motion), self.conditions[i], i)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # every worker opens its own
