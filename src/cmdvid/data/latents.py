"""Cached latents and frames as samples: written once by `cmdvid encode` and read ever after."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import Dataset

from cmdvid.data.cache import CacheShards
from cmdvid.data.manifest import read_manifest
from cmdvid.types import FramesBatch, LatentBatch, TextEmbedding, VideoLatent

MAX_OPEN = 64  # shards that a process keeps open; each is mapped into memory, not read


class LatentDataset(Dataset[LatentBatch | FramesBatch]):
    """One cached clip of each video; nothing is read but the rows asked for.

    Epoch e gets clip e modulo the clips that each video has, and so the window that training
    without a cache draws in that epoch, as long as there are as many.

    Args:
        folder: A finished cache.
        split: "train" or "val".
        flip: Take the mirrored clip where training without a cache would mirror it.
        seed: Seed of the flips.

    Raises:
        ValueError: If the cache is not finished, or ``flip`` needs clips that it does not hold.
    """

    def __init__(
        self, folder: str | Path, split: str, *, flip: bool = False, seed: int = 0
    ) -> None:
        manifest = read_manifest(folder)
        self.split = getattr(manifest, split)
        self.shards = CacheShards(Path(folder) / split, self.split)
        self.holds_frames = manifest.holds == "frames"
        self.flip, self.seed = flip, seed
        if flip and not self.split.flips:
            raise ValueError(
                f"{folder}: holds no mirrored clips, but data.flip is true; encode with "
                "--flips true, or set data.flip to false"
            )
        self._open: dict[int, Any] = {}

    def __len__(self) -> int:
        return self.split.num_rows

    def __getitem__(self, key: tuple[int, int] | int) -> LatentBatch | FramesBatch:
        """Sample ``(epoch, i)``, or a bare ``i``, which is that of epoch 0.

        Raises:
            ValueError: If its shard cannot be read.
        """
        epoch, i = key if isinstance(key, tuple) else (0, key)
        number, row = divmod(i, self.split.rows_per_shard)
        clip = row * self.split.clips_per_video + epoch % self.split.clips_per_video
        place = clip * (1 + self.split.flips) + self._flipped(epoch, i)
        try:
            shard = self._shard(number)
            stored = {k: shard.get_slice(k) for k in shard.keys()}  # noqa: SIM118, no mapping
            condition, text = _condition(stored, clip)
            if self.holds_frames:
                return FramesBatch(stored["frames"][place], condition, i)
            latent = VideoLatent(stored["content"][place], stored["motion"][place])
            return LatentBatch(latent, condition, i, text)
        except (SafetensorError, OSError, KeyError, IndexError) as error:
            raise ValueError(
                f"{self.shards.path(number)}: cannot be read as a shard of latents ({error}); "
                "delete it and run the same `cmdvid encode` again, which makes what is missing"
            ) from error

    def _flipped(self, epoch: int, i: int) -> bool:
        if not self.flip:
            return False
        rng = np.random.default_rng([self.seed, epoch, i])
        rng.random()  # the window, which ClipDataset draws first
        return bool(rng.random() < 0.5)

    def _shard(self, number: int) -> Any:
        if number not in self._open:
            if len(self._open) == MAX_OPEN:
                del self._open[next(iter(self._open))]  # the one opened first
            self._open[number] = safe_open(self.shards.path(number), framework="pt")
        return self._open[number]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # every worker opens its own


def pack_captions(captions: list[str]) -> dict[str, Tensor]:
    """Captions as tensors of a shard, which can be read one by one: UTF-8, and where each ends."""
    texts = [caption.encode() for caption in captions]
    ends = torch.tensor([len(text) for text in texts]).cumsum(0)
    return {
        "captions": torch.tensor(list(b"".join(texts)), dtype=torch.uint8),
        "caption_ends": ends,
    }


def _condition(stored: dict[str, Any], clip: int) -> tuple[int | str, TextEmbedding]:
    """The label of a clip, or its caption with what text encoders made of it."""
    label = int(stored["condition"][clip])
    if "captions" not in stored:
        return label, TextEmbedding()
    ends = [0, *stored["caption_ends"][max(0, label - 1) : label + 1].tolist()][-2:]
    caption = bytes(stored["captions"][ends[0] : ends[1]].tolist()).decode()
    names = (name for name in TextEmbedding._fields if f"{name}_text" in stored)
    return caption, TextEmbedding(**{name: stored[f"{name}_text"][label] for name in names})
