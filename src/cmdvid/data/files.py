"""Video files on disk: finding them, naming them, and saying which are not there.

One rule for every table and list: a name is relative to the data set's root, has forward slashes
and stays below the root. One that is absolute, or has ``..`` or a backslash, names no video.
"""

import hashlib
import logging
import os
import stat
from collections.abc import Container, Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt64

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = {".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg"}
VIDEO_SUFFIXES |= {".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv"}
KEY_BYTES = 8
NUM_SHOWN = 5  # missing files that are named in the log,
NUM_LISTED = 1000  # and in the report of a run
ABSENT = "listed, but not there"
RULE = "not a relative path with forward slashes and without '..'"


def files_below(folder: Path, suffixes: Container[str] = VIDEO_SUFFIXES) -> list[Path]:
    """All files of some kinds in a tree, sorted by path; links are followed, hidden ones left out.

    Each folder is listed once and no file is looked at, so a slow disk is asked little.

    Raises:
        ValueError: If a folder cannot be listed, for what is in it would be missing unsaid.
    """
    found: list[Path] = []
    seen: set[str] = set()  # folders visited, or links to a parent would never end
    for directory, subfolders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        real = os.path.realpath(directory)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        found += [
            Path(directory, name)
            for name in names
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes
        ]
    return sorted(found)


def _refuse(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # an absent folder holds no video; others say so
        raise ValueError(f"{error.filename}: the folder cannot be read ({error.strerror})")


def stays_inside(name: str) -> bool:
    """Whether a name from a table is relative, with forward slashes, and stays below its root."""
    strange = name.startswith("/") or "\\" in name or "\0" in name
    return bool(name) and not strange and ".." not in name.split("/")


def path_key(real_path: str) -> bytes:
    """Eight bytes that tell a file from others, from its path without links."""
    data = real_path.encode("utf-8", "surrogateescape")
    return hashlib.blake2b(data, digest_size=KEY_BYTES).digest()


def path_keys(paths: Iterable[str]) -> UInt64[np.ndarray, " n"]:
    """The keys of files, links followed."""
    return np.frombuffer(b"".join(path_key(os.path.realpath(path)) for path in paths), "<u8")


def tried(root: Path, name: str) -> str:
    """The path that a name stands for, and what is wrong with a name that breaks the rule."""
    path = os.path.join(root, name)
    return path if stays_inside(name) else f"{path} ({RULE})"


def is_empty(path: str | Path) -> bool:
    """Whether a file has no byte, as a download that failed leaves it; the file is not opened."""
    try:
        found = os.stat(path)
    except OSError:  # found when it is read, with a reason
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == 0


def is_writable(folder: Path) -> bool:
    """Whether files may be put there; root may anywhere, but leaves alone what is read-only."""
    return os.access(folder, os.W_OK) and bool(folder.stat().st_mode & stat.S_IWUSR)


def report_missing(
    source: Path,
    missing: Sequence[str],
    num_missing: int,
    num_found: int,
    empty: Sequence[str] = (),
) -> int:
    """Warn of listed files that are not there or hold nothing, and return their number.

    Args:
        source: What lists them.
        missing: Those that are not there, or some of them.
        num_missing: How many are not there.
        num_found: Files that can be used.
        empty: All files of no byte.

    Raises:
        ValueError: If none is there.
    """
    num_missing += len(empty)
    shown = ", ".join([*missing, *(f"{path} (empty)" for path in empty)][:NUM_SHOWN])
    total = num_missing + num_found
    if not total:
        raise ValueError(f"{source}: names no video")
    if not num_found:
        raise ValueError(f"{source}: none of its {total} videos is there; tried {shown}")
    if num_missing:
        logger.warning(
            "%s: %d of %d listed videos are missing or empty: %s",
            *(source, num_missing, total, shown),
        )
    return num_missing


def listed_missing(
    source: Path, missing: Sequence[str], num_missing: int | None = None
) -> dict[str, str]:
    """What the report of a run says of listed files that are not there: of many the first.

    Args:
        source: What lists them; stands for the others.
        missing: Those that are not there, or some of them.
        num_missing: How many are not there, if ``missing`` has not all.
    """
    said = dict.fromkeys(missing[:NUM_LISTED], ABSENT)
    if (others := (num_missing or len(missing)) - len(missing[:NUM_LISTED])) > 0:
        said[str(source)] = f"{others} more videos that it lists are not there"
    return said


def report_rows(source: Path | str, *, num_repeated: int = 0, num_bare: int = 0) -> None:
    """Warn of files that are named again, and of rows without a caption."""
    if num_repeated:
        logger.warning("%s: %d rows name a video that another row names", source, num_repeated)
    if num_bare:
        logger.warning(
            "%s: %d videos have no caption and train the null condition", source, num_bare
        )
