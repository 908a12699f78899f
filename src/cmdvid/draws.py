"""The real clips that an evaluation draws, and what tells one draw from another."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from cmdvid.data.clip_folder import ClipFolder
from cmdvid.data.dataset import ClipDataset
from cmdvid.data.sampling import Sample, sample_rows
from cmdvid.manifest import data_digest, digest
from cmdvid.protocols import Protocol
from cmdvid.types import ClipBatch, VideoEntry

RealSource: TypeAlias = Dataset[VideoEntry] | ClipFolder
"""Videos to cut clips from, or clips that are cut already."""


class Draw(NamedTuple):
    """Real clips drawn by a protocol."""

    clips: Dataset[ClipBatch]
    made_of: dict[str, Any]
    captions: list[str] | None
    videos: Sequence[str] = ()  # that each clip is cut from


def draw(source: RealSource, protocol: Protocol, *, repeat: int = 0, skip: int = 0) -> Draw:
    """Draw real clips as the protocol says.

    Args:
        source: Videos, or clips that are cut already.
        protocol: Says how many, from which windows, by which seed.
        repeat: Each repeat draws anew.
        skip: Clips of the draw to leave out, for another set without a common video.

    Raises:
        ValueError: If there are too few.
    """
    num, seed = protocol.count_reals, protocol.seed + repeat
    how = {"spec": asdict(protocol.spec), "seed": seed, "random_window": protocol.random_window}
    if isinstance(source, ClipFolder):
        if (needed := num + skip) > len(source):
            raise ValueError(f"{source.folder}: {needed} clips are needed, found {len(source)}")
        if protocol.first_by_path:
            rows = sorted(range(len(source)), key=lambda row: source.names[row])
        else:
            rows = sample_rows([""] * len(source), len(source), seed=seed)
        rows = rows[skip : skip + num]
        names = [source.names[row] for row in rows]
        how["place"] = str(source.folder.resolve())
        return Draw(Subset(source, rows), files_of(source, rows) | how, None, names)
    sample = Sample(
        source,
        num=num,
        seed=seed,
        first_by_path=protocol.first_by_path,
        several_windows=protocol.several_windows and not skip,
        skip=skip,
    )
    spec, window = protocol.spec, protocol.random_window
    clips = ClipDataset(sample, spec=spec, train=window, seed=seed)
    said = [entry.condition for entry in sample.entries]
    captions = [text for text in said if isinstance(text, str) and text]
    return Draw(
        clips,
        listing(sample.entries) | how,
        captions if len(captions) == num else None,
        [entry.path for entry in sample.entries],
    )


def listing(entries: Sequence[VideoEntry]) -> dict[str, Any]:
    """What tells a list of files from another, and from itself before it was changed."""
    root = os.path.commonpath([os.path.dirname(os.path.abspath(entry.path)) for entry in entries])
    files = dict.fromkeys(entry.part.url if entry.part else entry.path for entry in entries)
    # of each, not the latest: a file may be replaced by one that is older than another
    changed = [os.stat(file).st_mtime_ns for file in files if "://" not in file]
    return {"data": data_digest(entries, root), "changed": digest({"changed": changed})}


def files_of(folder: ClipFolder, rows: Sequence[int]) -> dict[str, Any]:
    """The same of some clips of a folder."""
    entries = [
        VideoEntry(str(file), folder.names[row]) for row in rows for file in folder.clips[row].files
    ]
    return listing(entries)


def halves(
    vectors: Mapping[str, Tensor], videos: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]] | None:
    """Two sets of as many clips without a common video; none if there is one video alone.

    Windows of a video are far apart in a draw, so it is the videos that are halved. They come in
    random order, and the first half of them has each class with its share.
    """
    order = {video: place for place, video in enumerate(dict.fromkeys(videos))}
    first = torch.tensor([order[video] < len(order) // 2 for video in videos])
    num = min(int(first.sum()), int((~first).sum()))
    one, other = (
        {name: values[half][:num] for name, values in vectors.items()} for half in (first, ~first)
    )
    return (one, other) if num > 1 else None
