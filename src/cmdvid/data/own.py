"""Anybody's folder of videos as captioned train and val sets, whatever its layout."""

import hashlib
import logging
import os
import re
from itertools import cycle, islice
from pathlib import Path
from typing import Literal

from torch.utils.data import Dataset

from cmdvid.data.index import VideoFolder, WebVid
from cmdvid.data.tables import read_header
from cmdvid.types import VideoEntry

logger = logging.getLogger(__name__)

FEW = 10  # videos; with fewer, none can be spared for validation alone
WEBVID_COLUMNS = {"videoid", "page_dir", "name"}
LAYOUTS = (
    "OwnVideos looks for a csv with WebVid's columns (videoid, page_dir, name), "
    "UCF-101/<Class>/, metadata.csv or metadata.jsonl, a .txt beside each video, or class folders"
)


class OwnVideos(Dataset[VideoEntry]):
    """Videos of a folder with captions, split into train and val; the first layout that fits.

    1. WebVid: one or more csv files in ``root`` with its columns, and ``videos`` beside them.
    2. UCF-101: a folder ``UCF-101`` of class folders. Its official lists are not read, for here
       every video is wanted; ``cmdvid.data.index.UCF101`` goes by them.
    3. What ``cmdvid.data.index.VideoFolder`` reads: a metadata file, captions beside the videos,
       or class folders.

    Classes become captions: ``PlayingGuitar`` is "playing guitar". A video's split follows from
    its path below ``root`` alone, so more videos move none of the others. Fewer than ten videos
    are in both splits, which `fit` takes with ``data.allow_leakage`` only. Rows are held in
    memory: for millions use ``cmdvid.data.index.WebVid``.

    Args:
        root: The folder; ``~`` is the home folder.
        split: Which part of the videos.
        val_share: Share of the videos in val, about; at least one is in each split.
        min_clips: In train, name the videos again and again up to this many rows. Each row is a
            clip of its own, from another window, so that a few videos fill batches and caches.

    Raises:
        ValueError: If the folder is missing or holds no videos, or if ``val_share`` or
            ``min_clips`` cannot be.
    """

    def __init__(
        self,
        root: str,
        *,
        split: Literal["train", "val"] = "train",
        val_share: float = 0.1,
        min_clips: int = 1,
    ) -> None:
        if split not in ("train", "val"):
            raise ValueError(f"OwnVideos.split must be 'train' or 'val', got {split!r}")
        if not 0 < val_share < 1 or min_clips < 1:
            raise ValueError(
                "OwnVideos.val_share must lie between 0 and 1 and min_clips be at least 1, "
                f"got {val_share} and {min_clips}"
            )
        folder = Path(root).expanduser()
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; give the one that holds your videos")
        self.classes: list[str] | None = None  # captions instead
        self.num_missing, self.empty, self.missing = 0, [], {}
        captions: dict[str, str] = {}  # by path: a video that two csv files list counts once
        for index in _indexes(folder):
            self.num_missing += index.num_missing
            self.empty += index.empty
            self.missing |= index.missing
            captions |= {path: _caption(label, index.classes) for path, label, _ in index.entries}
        paths = _share(folder, list(captions), split=split, val_share=val_share)
        self.num_files = len(paths)
        count = max(len(paths), min_clips) if split == "train" else len(paths)
        self.entries = [VideoEntry(path, captions[path]) for path in islice(cycle(paths), count)]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> VideoEntry:
        return self.entries[index]


def _indexes(folder: Path) -> list[WebVid] | list[VideoFolder]:
    """Read the first layout that fits."""
    if tables := [path for path in sorted(folder.glob("*.csv")) if _is_webvid(path)]:
        return _webvid(tables)
    ucf101 = folder / "UCF-101"
    try:
        return [VideoFolder(str(ucf101 if ucf101.is_dir() else folder))]
    except ValueError as error:
        raise ValueError(f"{error}. {LAYOUTS}") from error


def _webvid(tables: list[Path]) -> list[WebVid]:
    """Read all csv files of a folder; one whose videos were not downloaded stops no other."""
    found: list[WebVid] = []
    errors: list[ValueError] = []
    for path in tables:
        try:
            found.append(WebVid(str(path)))
        except ValueError as error:
            errors.append(error)
    if not found:
        raise errors[0]
    for error in errors:
        logger.warning("left out: %s", error)
    return found


def _is_webvid(path: Path) -> bool:
    return path.is_file() and set(read_header(path)) >= WEBVID_COLUMNS


def _caption(label: int | str, classes: list[str] | None) -> str:
    return label if isinstance(label, str) else _words((classes or [])[label])


def _words(name: str) -> str:
    """The words of a class name: "PlayingGuitar", "playing_guitar" to "playing guitar"."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    return " ".join(re.split(r"[\s_.-]+", spaced)).strip().lower()


def _share(folder: Path, paths: list[str], *, split: str, val_share: float) -> list[str]:
    """The videos of one split, in the given order."""
    if len(paths) < FEW:
        if split == "val":  # once for the two of them
            logger.warning(
                "%s: %d videos are too few to spare some, so val holds the training videos: "
                "its scores say nothing of other videos",
                *(folder, len(paths)),
            )
        return paths
    places = {path: _place(os.path.relpath(path, folder)) for path in paths}
    lowest, highest = (pick(paths, key=lambda path: places[path]) for pick in (min, max))
    val = {path for path in paths if places[path] < val_share} | {lowest}
    val -= {highest}
    return [path for path in paths if (path in val) == (split == "val")]


def _place(name: str) -> float:
    """A number in [0, 1) that is as good as random, but always the same for a name."""
    digest = hashlib.sha256(Path(name).as_posix().encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
