"""From a csv in WebVid's format to a memory-mapped table, in one pass and bounded memory."""

import errno
import os
import time
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt64
from tqdm import tqdm

from cmdvid.data.files import NUM_LISTED, is_empty, path_key, report_missing, stays_inside, tried
from cmdvid.data.mapped_table import TableWriter
from cmdvid.data.tables import clean_caption, csv_rows

YOUNG = 2_000_000_000  # ns: what is this new may change again without a new time of change


class _Present(NamedTuple):
    """The videos that are there."""

    names: UInt64[np.ndarray, " n"]  # keys of their paths
    files: UInt64[np.ndarray, " n"]  # keys of what the paths lead to, if they are links
    empty: UInt64[np.ndarray, " e"]  # keys of the paths of files of no byte
    folders: dict[str, int]  # when each folder was changed


def convert(csv: Path, file: BinaryIO, *, videos: Path, source: dict[str, Any]) -> None:
    """Write the table of a csv.

    Args:
        csv: The columns ``videoid``, ``page_dir`` and ``name`` are read.
        file: Where the table goes, open for reading and writing.
        videos: Folder that holds the folders ``page_dir``.
        source: What the table is made of, for its facts; ``check_files`` and ``changed`` are read.

    Raises:
        ValueError: If the csv is wrong, none of its videos is there, or a folder is unreadable.
    """
    writer = TableWriter(file)
    real: dict[str, str] = {}  # folders of videos, links followed
    strange: list[str] = []  # names that break the rule; the first of them
    num_strange = 0
    for video_id, page_dir, said in csv_rows(csv, "videoid", "page_dir", "name"):
        name = f"{page_dir}/{video_id}.mp4" if page_dir else f"{video_id}.mp4"
        if not video_id or not stays_inside(name):
            num_strange += 1
            strange += [name] if num_strange <= NUM_LISTED else []
            continue
        folder, _, file_name = name.rpartition("/")
        if folder not in real:
            real[folder] = os.path.realpath(videos / folder)
        writer.add(name, clean_caption(said), path_key(f"{real[folder]}/{file_name}"))
    keys, kept, folders = writer.keys, np.ones(len(writer), np.bool_), {}
    hollow = ~kept  # rows whose file has no byte
    if source["check_files"]:
        present = _list_folders(videos, real)
        hollow = np.isin(keys, present.empty)
        kept, keys = _find(keys, present)
        folders = present.folders
    empty = [writer.name(int(row)) for row in np.flatnonzero(hollow)]
    absent = np.flatnonzero(~kept & ~hollow)
    missing = [*strange, *(writer.name(int(row)) for row in absent[:NUM_LISTED])]
    missing = [tried(videos, name) for name in missing[:NUM_LISTED]]
    num_missing = num_strange + len(absent)
    if not len(keys):
        report_missing(csv, missing, num_missing, 0, [tried(videos, name) for name in empty])
    writer.finish(
        kept,
        keys,
        source=source | {"changed": _settled(source["changed"])},
        folders=folders,
        num_missing=num_missing,
        missing=missing,
        empty=empty,
    )


def _list_folders(videos: Path, real: dict[str, str]) -> _Present:
    """List the folders that a csv names, each once, and no other."""
    names, files, empty = bytearray(), bytearray(), bytearray()
    folders = {}
    for folder, real_folder in tqdm(real.items(), desc="folders of videos", delay=2):
        before = changed(videos / folder)
        for file in _list(videos / folder):
            key = path_key(f"{real_folder}/{file.name}")
            if is_empty(file.path):
                empty += key
                continue
            names += key
            files += path_key(os.path.realpath(file.path)) if file.is_symlink() else key
        folders[folder] = _settled(before)
    there, apart, bare = (np.frombuffer(keys, "<u8") for keys in (names, files, empty))
    return _Present(there, apart, bare, folders)


def _list(folder: Path) -> list[os.DirEntry[str]]:
    """The mp4 files of a folder; none if it is not there, or no folder could be."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if entry.name.endswith(".mp4") and _is_file(entry)]
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
            return []
        raise ValueError(f"{folder}: the folder cannot be read ({error.strerror})") from error


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether an entry leads to a file; only links are looked at, for they may lead nowhere."""
    return os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file()


def _find(
    keys: UInt64[np.ndarray, " rows"], present: _Present
) -> tuple[Bool[np.ndarray, " rows"], UInt64[np.ndarray, " kept"]]:
    """Which rows have a file, and the keys of these files."""
    if not len(present.names):
        return np.zeros(len(keys), np.bool_), keys[:0]
    order = np.argsort(present.names)
    names = present.names[order]
    at = np.searchsorted(names, keys).clip(max=len(names) - 1)
    kept = names[at] == keys
    return kept, present.files[order[at[kept]]]


def changed(path: Path) -> int:
    """When a file, or the list of a folder's files, was last changed, in ns; 0 if there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _settled(then: int) -> int:
    """A time of change, or one that never comes if more changes could bear the same time."""
    return then if time.time_ns() - then > YOUNG else -1
