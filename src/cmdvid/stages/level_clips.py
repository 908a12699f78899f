"""The clips of a test at every level, on disk: what was generated once is never generated again."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar
from zipfile import BadZipFile

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from cmdvid.frames import resize_and_crop
from cmdvid.metrics.pixels import to_uint8
from cmdvid.sheet import captions_of, file_name
from cmdvid.types import ClipBatch, Condition, PromptBatch
from cmdvid.video import ClipSpec
from cmdvid.whole import whole

Batch = TypeVar("Batch", bound=ClipBatch | PromptBatch)


class LevelClips:
    """A folder for each level, with an npz for each sample: an array "l h w 3" of uint8.

    `cmdvid evaluate` reads such a folder too. A file appears when it is complete, and its name
    tells the row and the real clip and condition it was made for.

    Args:
        folder: For one set of models and settings alone.
        levels: Names of the levels.
    """

    def __init__(self, folder: Path, levels: Sequence[str]):
        self.folders = {level: folder / file_name(level) for level in levels}

    def missing(self, name: str) -> bool:
        """Whether a sample lacks at some level."""
        return not all((folder / name).is_file() for folder in self.folders.values())

    def save(self, names: Sequence[str], clips: Mapping[str, Float[Tensor, "b 3 l h w"]]) -> None:
        """Write a batch, quantised as real clips are.

        Raises:
            ValueError: If a pixel is not finite.
        """
        for level, folder in self.folders.items():
            frames = rearrange(to_uint8(clips[level]).cpu(), "b c l h w -> b l h w c").numpy()
            for name, array in zip(names, frames, strict=True):
                with whole(folder / name, shared=True) as path, path.open("wb") as file:
                    np.savez(file, clip=array)

    def load(self, level: str, names: Sequence[str]) -> UInt8[Tensor, "b 3 l h w"]:
        """Read some samples of a level."""
        return torch.stack([_read(self.folders[level] / name) for name in names])


class StoredClips(Dataset[ClipBatch]):
    """Some samples of a level, as the metrics read them.

    Args:
        clips: Where they are.
        level: Which.
        names: Of the samples.
        spec: The first frames are taken, and resized and cropped to its size.
    """

    def __init__(self, clips: LevelClips, level: str, names: Sequence[str], spec: ClipSpec):
        self.clips, self.level, self.names, self.spec = clips, level, list(names), spec

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> ClipBatch:
        clip = self.clips.load(self.level, [self.names[index]])[0]
        frames = rearrange(clip[:, : self.spec.num_frames], "c l h w -> l c h w")
        frames = resize_and_crop(frames, self.spec.image_size)
        return ClipBatch(rearrange(frames, "l c h w -> c l h w").contiguous(), "", index)


def sample_names(batch: ClipBatch) -> list[str]:
    """File names of a batch's samples: the row, and a hash of the real clip and its condition."""
    captions = captions_of(_condition(batch))
    rows = torch.as_tensor(batch.index).tolist()
    names = []
    for row, caption, clip in zip(rows, captions, to_uint8(batch.clip).cpu(), strict=True):
        found = hashlib.sha256(clip.numpy().tobytes() + caption.encode()).hexdigest()
        names.append(f"{row:06d}-{found[:10]}.npz")
    return names


def select(batch: Batch, where: Bool[Tensor, " b"]) -> Batch:
    """Some samples of a batch."""
    condition, index = _condition(batch), torch.as_tensor(batch.index)
    if isinstance(condition, Tensor):
        condition = condition[where.to(condition.device)]
    else:
        condition = [text for text, keep in zip(condition, where.tolist(), strict=True) if keep]
    if isinstance(batch, ClipBatch):
        batch = batch._replace(clip=batch.clip[where.to(batch.clip.device)])
    return batch._replace(condition=condition, index=index[where])


def _condition(batch: ClipBatch | PromptBatch) -> Condition:
    assert not isinstance(batch.condition, int | str), "a batch"
    return batch.condition


def _read(path: Path) -> UInt8[Tensor, "3 l h w"]:
    try:
        with np.load(path) as arrays:
            frames = torch.from_numpy(arrays["clip"])
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise ValueError(f"{path}: cannot be read ({error}); delete it to have it made") from error
    return rearrange(frames, "l h w c -> c l h w")
