"""Videos that stand in two splits, which makes scores of what was learned by heart."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt64

from cmdvid.data.files import NUM_SHOWN, path_keys

START_BITS = 26  # of a key; as many flags make 64 MiB


def refuse_leakage(train: Any, others: Mapping[str, Any]) -> None:
    """See that no video to train on is also in another split, links followed.

    Args:
        train: An index of videos.
        others: The indexes of other splits, by name.

    Raises:
        ValueError: If one shares a video with ``train``; it says how many and names the first.
    """
    if not others:
        return
    seen = _keys(train)
    for name, index in others.items():
        keys = _keys(index)
        shared = np.flatnonzero(np.isin(keys, _alike(seen, keys)))
        if not len(shared):
            continue
        shown = ", ".join(index[int(row)].path for row in shared[:NUM_SHOWN])
        raise ValueError(
            f"{len(shared)} of {len(index)} videos of data.{name} are also in data.train, so its "
            f"scores would be of videos learned by heart: {shown}. Take them out of one of the "
            "two, or set data.allow_leakage: true if it is meant"
        )


def _alike(
    seen: UInt64[np.ndarray, " n"], keys: UInt64[np.ndarray, " m"]
) -> UInt64[np.ndarray, " k"]:
    """The few of many keys that begin like one of others: what is left to compare in full."""
    starts = np.zeros(1 << START_BITS, np.bool_)
    starts[keys >> np.uint64(64 - START_BITS)] = True
    return seen[starts[seen >> np.uint64(64 - START_BITS)]]


def _keys(index: Any) -> UInt64[np.ndarray, " n"]:
    """What tells the videos of an index apart; a big index has it ready."""
    if (keys := getattr(index, "path_keys", None)) is not None:
        return keys
    return path_keys(index[row].path for row in range(len(index)))
