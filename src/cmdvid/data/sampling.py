"""Which videos of an index an evaluation takes: a seeded sample, each class with its share."""

from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset

from cmdvid.types import VideoEntry


def sample_rows(conditions: Sequence[int | str], num: int, *, seed: int = 0) -> list[int]:
    """Draw rows without repetition, so that each class has its share of them to within one row.

    The order is random too, so the first half of a sample is a sample again.

    Args:
        conditions: Of each row; captions are one class.
        num: How many rows, at most as many as there are.
        seed: Everything follows from it.

    Raises:
        ValueError: If there are too few rows.
    """
    if not 0 < num <= len(conditions):
        raise ValueError(f"a sample of {num} videos needs as many, got {len(conditions)}")
    rng = np.random.default_rng(seed)
    labels = np.array([c if isinstance(c, int) else -1 for c in conditions])
    places = np.empty(len(labels))
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        # evenly spaced, so that every stretch of the order holds each class with its share
        places[rows] = (np.arange(len(rows)) + rng.random()) / len(rows)
    return np.argsort(places, kind="stable")[:num].tolist()


class Sample(Dataset[VideoEntry]):
    """Some videos of an index, in random order.

    Indexes are sorted by class, so their first 2,048 rows would hold a fifth of UCF-101's classes.

    Args:
        index: The videos to draw from.
        num: How many rows.
        seed: Seed of the draw.
        first_by_path: Take the first by path instead, as StyleGAN-V's code does; for comparison
            with numbers that were made so, and nothing else.
        several_windows: Let videos come again, as evenly as can be, if ``num`` is more than there
            are. Each row is a clip of its own, from another window.
        skip: Rows of the draw to leave out: with the ``num`` of another sample, this one has no
            video in common with it.

    Raises:
        ValueError: If there are too few videos.
    """

    def __init__(
        self,
        index: Dataset,  # of VideoEntry; the parser of configs takes no type in brackets
        *,
        num: int,
        seed: int = 0,
        first_by_path: bool = False,
        several_windows: bool = False,
        skip: int = 0,
    ) -> None:
        self.index = index
        entries = [index[row] for row in range(len(index))]  # type: ignore[arg-type]
        self.num_missing: int = getattr(index, "num_missing", 0)
        self.empty: list[str] = getattr(index, "empty", [])
        self.classes: list[str] | None = getattr(index, "classes", None)
        if num < 1 or skip < 0:
            raise ValueError(f"Sample.num must be at least 1 and skip 0, got {num} and {skip}")
        if skip + num > len(entries) and not (several_windows and not skip):
            before = f" beside the {skip} of another sample" if skip else ""
            raise ValueError(
                f"{type(index).__name__}: {num} videos are needed{before}, but there are "
                f"{len(entries)}; add videos, or lower the number in the protocol"
            )
        distinct = min(skip + num, len(entries))
        if first_by_path:
            rows = sorted(range(len(entries)), key=lambda row: entries[row].path)[:distinct]
        else:
            rows = sample_rows([entry.condition for entry in entries], distinct, seed=seed)
        rows = rows[skip:]
        self.num_files = len(rows)
        self.entries = [entries[rows[i % len(rows)]] for i in range(num)]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> VideoEntry:
        return self.entries[index]
