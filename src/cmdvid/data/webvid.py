"""WebVid: captioned videos named by a csv of any size, and the table made of it.

A csv is read once into a MappedTable, ``.cmdvid/{csv name}-{hash}.table`` beside the csv or, where
that folder is read-only, the same name in ``$XDG_CACHE_HOME/cmdvid`` (``~/.cache/cmdvid``). It is
made anew when the csv or a folder of videos was changed since: a folder's time of change tells of
videos that came or went; files that were empty are looked at again. On a disk that keeps no such
times, delete ``.cmdvid`` instead.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from jaxtyping import UInt64
from torch.utils.data import Dataset

from cmdvid.data.files import is_empty, is_writable, listed_missing, report_missing, report_rows
from cmdvid.data.mapped_table import MappedTable
from cmdvid.data.webvid_conversion import changed, convert
from cmdvid.types import VideoEntry
from cmdvid.whole import whole


class WebVid(Dataset[VideoEntry]):
    """Captioned videos named by a csv in WebVid's format.

    The columns ``videoid``, ``page_dir`` and ``name`` (the caption) are read, in any order, and
    others ignored. A video is ``root/videos/{page_dir}/{videoid}.mp4``. An empty caption, or
    "nan", is the null condition.

    Rows are kept in a memory-mapped file, made at the first use (ten million rows take minutes)
    and again when the csv or a folder of videos has changed.

    Args:
        csv: The csv file (UTF-8, commas).
        root: Folder that holds ``videos``; by default the csv's folder.
        check_files: Leave out rows whose video is not there or empty. Without it the folders are
            not listed, and such a video is found when its turn comes, as any unusable file.

    Raises:
        ValueError: If the csv or a column is missing, none of its videos is there, or the table
            cannot be written.
    """

    def __init__(self, csv: str, *, root: str | None = None, check_files: bool = True) -> None:
        videos = (Path(root) if root else Path(csv).parent) / "videos"
        self.classes: list[str] | None = None
        self.entries = _open_table(Path(csv), videos, check_files)
        facts, source = self.entries.facts, Path(csv)
        report_rows(source, num_repeated=facts.num_repeated, num_bare=facts.num_bare)
        self.empty = [str(videos / name) for name in facts.empty]
        self.num_missing = report_missing(
            source, facts.missing, facts.num_missing, len(self), self.empty
        )
        self.missing = listed_missing(source, facts.missing, facts.num_missing)

    @property
    def path_keys(self) -> UInt64[np.ndarray, " n"]:
        """The key of each row's file, links followed."""
        return self.entries.keys

    @property
    def digest(self) -> str:
        """What tells the rows from others, without reading them."""
        return f"{self.entries.root} {self.entries.facts.digest}"

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> VideoEntry:
        return self.entries[index]


def _open_table(csv: Path, videos: Path, check_files: bool) -> MappedTable:
    """The table of a csv; a new one if there is none or it is out of date."""
    source = _source(csv, videos, check_files)
    words = [source["csv"], source["videos"], str(check_files)]
    place = hashlib.sha256(os.fsencode("\0".join(words))).hexdigest()[:12]
    name = f"{csv.name}-{place}.table"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "cmdvid")
    beside = csv.absolute().parent / ".cmdvid"
    for folder in (beside, cache):
        if table := _fresh_table(folder / name, videos, source):
            return table
    path = (beside if is_writable(csv.absolute().parent) else cache) / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):  # the others wait for the first, and use its table
            if table := _fresh_table(path, videos, source):
                return table
            _make_table(path, csv, videos, source)
            return MappedTable(str(path), root=str(videos))
    except OSError as error:
        raise ValueError(
            f"{error.filename or path}: {error.strerror}, while {csv} was made into the table "
            f"{path}; where the csv's folder is read-only, XDG_CACHE_HOME says where tables go"
        ) from error


def _source(csv: Path, videos: Path, check_files: bool) -> dict[str, Any]:
    """What a table depends on, beside the folders of videos."""
    try:
        status = csv.stat()
    except OSError as error:
        raise ValueError(f"{csv}: cannot be read ({error.strerror})") from error
    return {
        "csv": os.path.abspath(csv),
        "size": status.st_size,
        "changed": status.st_mtime_ns,
        "videos": os.path.realpath(videos),
        "check_files": check_files,
    }


def _fresh_table(path: Path, videos: Path, source: dict[str, Any]) -> MappedTable | None:
    """The table in a file, unless it is out of date, of another version, damaged or not there."""
    try:
        table = MappedTable(str(path), root=str(videos))
    except (OSError, ValueError):
        return None
    facts = table.facts
    if facts.source != source:
        return None
    if any(changed(videos / name) != then for name, then in facts.folders.items()):
        return None
    return table if all(is_empty(videos / name) for name in facts.empty) else None


def _make_table(path: Path, csv: Path, videos: Path, source: dict[str, Any]) -> None:
    """Write a table, whole or not at all; the caller holds its lock."""
    with whole(path) as part, part.open("w+b") as file:
        convert(csv, file, videos=videos, source=source)
