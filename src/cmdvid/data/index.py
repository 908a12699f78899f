"""Indexes: all that differs between data sets. An item is a file and its label or caption.

An index holds paths and conditions, no video. Listed files that are not there are left out and
counted in ``num_missing``; an index without any file is an error.
"""

import csv as csv_files
import io
import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from torch.utils.data import Dataset

from cmdvid.types import VideoEntry

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = {".avi", ".flv", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv"}
VIDEO_SUFFIXES |= {".ts", ".webm", ".wmv"}


class UCF101(Dataset[VideoEntry]):
    """UCF-101 as published: class folders in ``UCF-101``, lists in ``ucfTrainTestlist``.

    Labels follow ``classInd.txt`` by class name, from 0; the order of sorted folders differs
    (Hammering, HammerThrow). Names match in any case (v_HandStandPushups in HandstandPushups).

    Args:
        root: Folder that holds ``UCF-101`` and ``ucfTrainTestlist``.
        split: The train or the test list.
        fold: Which of the three official splits.

    Raises:
        ValueError: If a list or all listed videos are missing, or a class is unknown.
    """

    def __init__(
        self,
        root: str,
        *,
        split: Literal["train", "test"] = "train",
        fold: Literal[1, 2, 3] = 1,
    ) -> None:
        lists, videos = Path(root) / "ucfTrainTestlist", Path(root) / "UCF-101"
        names = [line.split(maxsplit=1)[1] for line in _lines(lists / "classInd.txt")]
        labels = {name.lower(): label for label, name in enumerate(names)}
        on_disk = {p.relative_to(videos).as_posix().lower(): p for p in _video_files(videos)}
        self.classes: list[str] | None = names
        self.entries: list[VideoEntry] = []
        missing = []
        list_file = lists / f"{split}list{fold:02d}.txt"
        for line in _lines(list_file):
            listed = line.split()[0]  # train lists add the label, test lists do not
            class_name = listed.split("/")[0]
            if class_name.lower() not in labels:
                raise ValueError(f"{list_file}: class {class_name!r} is not in classInd.txt")
            if path := on_disk.get(listed.lower()):
                self.entries.append(VideoEntry(str(path), labels[class_name.lower()]))
            else:
                missing.append(str(videos / listed))
        self.num_missing = _report_missing(list_file, missing, len(self.entries))

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> VideoEntry:
        return self.entries[index]


class WebVid(Dataset[VideoEntry]):
    """Captioned videos named by a csv in WebVid's format.

    The columns ``videoid``, ``page_dir`` and ``name`` (the caption) are read, in any order, and
    others ignored. A video is ``root/videos/{page_dir}/{videoid}.mp4``. An empty caption is the
    null condition.

    Args:
        csv: The csv file (UTF-8, commas).
        root: Folder that holds ``videos``; by default the csv's folder.

    Raises:
        ValueError: If the csv or a column is missing, or none of its videos is there.
    """

    def __init__(self, csv: str, *, root: str | None = None) -> None:
        videos = (Path(root) if root else Path(csv).parent) / "videos"
        on_disk = {str(path) for path in _video_files(videos)}
        self.classes: list[str] | None = None
        self.entries: list[VideoEntry] = []
        missing = []
        for video_id, page_dir, caption in _columns(csv, ("videoid", "page_dir", "name")):
            path = str(videos / page_dir / f"{video_id}.mp4")
            if path in on_disk:
                self.entries.append(VideoEntry(path, caption))
            else:
                missing.append(path)
        self.num_missing = _report_missing(Path(csv), missing, len(self.entries))

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> VideoEntry:
        return self.entries[index]


class VideoFolder(Dataset[VideoEntry]):
    """Any tree of videos; the condition is found in the first of these ways that applies.

    1. ``metadata.csv`` or ``metadata.jsonl`` in ``root``: ``file_name`` (relative to ``root``) and
       ``text`` or ``caption``. Only files named there are used.
    2. Captions in text files beside the videos (``cat.txt`` for ``cat.mp4``). A video without one
       gets the empty caption, which is the null condition.
    3. The class, which is the first folder below ``root``; for videos in ``root`` itself, its name.

    Args:
        root: The folder, searched with all below it.

    Raises:
        ValueError: If there is no video, or the metadata file lacks a column.
    """

    def __init__(self, root: str) -> None:
        folder = Path(root)
        self.classes: list[str] | None = None
        self.num_missing = 0
        if metadata := _metadata(folder):
            rows = [VideoEntry(str(folder / name), caption) for name, caption in metadata]
            self.entries = [row for row in rows if os.path.isfile(row.path)]
            missing = [row.path for row in rows if not os.path.isfile(row.path)]
            self.num_missing = _report_missing(folder, missing, len(self.entries))
            return
        if not (files := _video_files(folder)):
            raise ValueError(
                f"{folder}: no video in this folder or below "
                f"(looked for {' '.join(sorted(VIDEO_SUFFIXES))})"
            )
        captions = [_sidecar(path) for path in files]
        if any(caption is not None for caption in captions):
            if num_bare := captions.count(None):
                logger.warning("%s: %d videos have no caption file", folder, num_bare)
            self.entries = [
                VideoEntry(str(p), c or "") for p, c in zip(files, captions, strict=True)
            ]
            return
        parts = [path.relative_to(folder).parts for path in files]
        names = [part[0] if len(part) > 1 else folder.resolve().name for part in parts]
        self.classes = sorted(set(names))
        labels = {name: label for label, name in enumerate(self.classes)}
        self.entries = [VideoEntry(str(p), labels[n]) for p, n in zip(files, names, strict=True)]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> VideoEntry:
        return self.entries[index]


class Prompts(Dataset[str]):
    """Captions to generate from.

    Args:
        file: Text file with one prompt a line; empty lines are left out.
        prompt: The one prompt, instead of a file.
        num_samples: Samples to generate for each prompt; they stand next to each other.

    Raises:
        ValueError: Unless exactly one of ``file`` and ``prompt`` is given, with some text.
    """

    def __init__(
        self, file: str | None = None, *, prompt: str | None = None, num_samples: int = 1
    ) -> None:
        if (file is None) == (prompt is None):
            raise ValueError("Prompts needs either a file of prompts or a prompt, not both")
        if num_samples < 1:
            raise ValueError(f"Prompts.num_samples must be at least 1, got {num_samples}")
        prompts = _lines(Path(file)) if file is not None else [prompt or ""]
        self.entries = [text for text in prompts for _ in range(num_samples)]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> str:
        return self.entries[index]


def _read_text(path: Path) -> str:
    """Read UTF-8 text with or without a byte order mark; stray bytes do not stop it."""
    try:
        return path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error


def _lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty, in any line-end convention."""
    if lines := [line.strip() for line in _read_text(path).splitlines() if line.strip()]:
        return lines
    raise ValueError(f"{path}: the file holds no line of text")


def _columns(path: str | Path, needed: Sequence[str]) -> list[tuple[str, ...]]:
    """Read some columns of a csv file with a header, wherever they stand."""
    rows = csv_files.reader(io.StringIO(_read_text(Path(path)), newline=""))
    try:
        header = [name.strip() for name in next(rows, [])]
        if absent := [name for name in needed if name not in header]:
            raise ValueError(
                f"{path}: needs the columns {', '.join(needed)} separated by commas, "
                f"lacks {', '.join(absent)}, found {', '.join(header) or 'nothing'}"
            )
        at = [header.index(name) for name in needed]
        # a row that is cut short names no video and counts as a missing one
        return [tuple(row[i].strip() if i < len(row) else "" for i in at) for row in rows if row]
    except csv_files.Error as error:
        raise ValueError(f"{path}: line {rows.line_num} is no csv ({error})") from error


def _metadata(folder: Path) -> list[tuple[str, ...]] | None:
    """File names and captions of ``metadata.csv`` or ``metadata.jsonl``; None without one."""
    if (path := folder / "metadata.csv").is_file():
        header = next(csv_files.reader(io.StringIO(_read_text(path), newline="")), [])
        return _columns(path, ("file_name", "caption" if "caption" in header else "text"))
    if not (path := folder / "metadata.jsonl").is_file():
        return None
    return [_json_row(path, line) for line in _lines(path)]


def _json_row(path: Path, line: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
        caption = row["text"] if "text" in row else row["caption"]
        return str(row["file_name"]), str(caption or "")
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path}: each line needs {{"file_name": ..., "text": ...}}, got {line[:80]!r}'
        ) from error


def _sidecar(path: Path) -> str | None:
    """The caption in the text file beside a video; None without one."""
    text = path.with_suffix(".txt")
    return " ".join(_read_text(text).split()) if text.is_file() else None


def _video_files(folder: Path) -> list[Path]:
    """All videos of a tree, sorted by path; links are followed, hidden files left out."""
    found: list[Path] = []
    seen: set[str] = set()  # folders visited, or links to a parent would never end
    for directory, subfolders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(directory)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        found += [
            Path(directory, name)
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in VIDEO_SUFFIXES
        ]
    return sorted(found)


def _report_missing(source: Path, missing: Iterable[str], num_found: int) -> int:
    """Warn of listed files that are not there, and return their number."""
    missing = list(missing)
    shown = ", ".join(missing[:5])
    if not num_found:
        raise ValueError(f"{source}: none of its {len(missing)} videos is there; tried {shown}")
    if missing:
        total = len(missing) + num_found
        logger.warning(
            "%s: %d of %d listed videos are missing: %s", source, len(missing), total, shown
        )
    return len(missing)
