"""The random order of an epoch: a function of (seed, epoch), and near to how the data lie."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, distributed


class ShardWindows(NamedTuple):
    """How the rows of a data set lie in shards, one shard after another.

    Attributes:
        sizes: Rows of each shard.
        window: Shards that are read at a time.
    """

    sizes: Int[np.ndarray, " s"]
    window: int


def random_order(
    size: int, *, seed: int, epoch: int, shards: ShardWindows | None = None
) -> Int[Tensor, " n"]:
    """Shuffle the rows of a data set.

    With ``shards`` they are shuffled first, and then the rows within each window of shards, so that
    disks and networks are read nearly in sequence: at any time rows of few shards are wanted.
    Ranks that share out this order, each taking every n-th row, are all in the same window.

    Args:
        size: Rows of the data set.
        seed: Seed of the run.
        epoch: Each has another order.
        shards: How the rows lie; without, all are shuffled alike.
    """
    if shards is None:
        generator = torch.Generator().manual_seed(seed + epoch)
        return torch.randperm(size, generator=generator)
    assert shards.sizes.sum() == size, f"{size} rows in shards of {shards.sizes.sum()}"
    rng = np.random.default_rng([seed, epoch])
    starts = np.cumsum(shards.sizes) - shards.sizes
    turns = rng.permutation(len(shards.sizes))
    order, filled = np.empty(size, np.int64), 0  # 80 MB for ten million rows
    for first in range(0, len(turns), shards.window):
        window = turns[first : first + shards.window]
        rows = np.concatenate([starts[s] + np.arange(int(shards.sizes[s])) for s in window])
        order[filled : filled + len(rows)] = rng.permutation(rows)
        filled += len(rows)
    return torch.from_numpy(order)


def check_same_size(size: int) -> None:
    """See that all processes have as many rows, or some would wait for others for ever.

    Raises:
        ValueError: On all of them, if machines see other files, or one could not read a shard.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return
    sizes: list[int] = [0] * distributed.get_world_size()
    distributed.all_gather_object(sizes, size)
    if len(set(sizes)) > 1:
        raise ValueError(
            f"the processes found {sizes} samples: give all of them the same files, and see in the "
            "log which could not be read"
        )
