"""The test sets of a run as Lightning reads them, and the videos that they could not read."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader


def loaders_of(trainer: Trainer) -> list[DataLoader]:
    """The loader of each test set."""
    loaders = cast(Any, trainer.test_dataloaders)
    return list(loaders) if isinstance(loaders, list | tuple) else [loaders]


def replaced_videos(trainer: Trainer, names: Sequence[str]) -> dict[str, int]:
    """How many videos of each test set gave no clip; each process must call this."""
    counts = [getattr(loader.dataset, "num_unusable", 0) for loader in loaders_of(trainer)]
    found = cast(Tensor, trainer.strategy.reduce(torch.tensor(counts), reduce_op="sum"))
    return dict(zip(names, map(int, found.tolist()), strict=True))


def told(replaced: Mapping[str, int]) -> list[str]:
    """The same as notes of a report."""
    return [
        f"{name}: {count} videos gave no clip, and others took their places"
        for name, count in replaced.items()
        if count
    ]
