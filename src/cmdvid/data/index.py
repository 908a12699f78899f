"""Indexes: all that differs between data sets. An item is a file and its label or caption.

An index holds paths and conditions, no video. Listed files that are not there or hold no byte are
left out, counted in ``num_missing``, and named in ``missing`` and ``empty``; an index without any
file is an error. No video is opened: damage is found at its first use. How names in lists and
tables are read, see ``cmdvid.data.files`` and ``cmdvid.data.tables``.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from torch.utils.data import Dataset

from cmdvid.data.files import (
    VIDEO_SUFFIXES,
    files_below,
    is_empty,
    listed_missing,
    report_missing,
    report_rows,
    stays_inside,
    tried,
)
from cmdvid.data.tables import clean_caption, metadata_rows, read_lines, read_text
from cmdvid.data.webvid import WebVid
from cmdvid.types import VideoEntry

__all__ = ["UCF101", "Prompts", "VideoFolder", "WebVid"]

logger = logging.getLogger(__name__)


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
        names = _class_names(lists / "classInd.txt")
        labels = {name.lower(): label for label, name in enumerate(names)}
        on_disk = {p.relative_to(videos).as_posix().lower(): p for p in files_below(videos)}
        self.classes: list[str] | None = names
        self.entries: list[VideoEntry] = []
        self.empty: list[str] = []
        missing = []
        list_file = lists / f"{split}list{fold:02d}.txt"
        for line in read_lines(list_file):
            listed = line.split()[0]  # train lists add the label, test lists do not
            class_name = listed.split("/")[0]
            if class_name.lower() not in labels:
                raise ValueError(f"{list_file}: class {class_name!r} is not in classInd.txt")
            if not (path := on_disk.get(listed.lower())):
                missing.append(tried(videos, listed))
            elif is_empty(path):
                self.empty.append(str(path))
            else:
                self.entries.append(VideoEntry(str(path), labels[class_name.lower()]))
        self.num_missing = report_missing(
            list_file, missing, len(missing), len(self.entries), self.empty
        )
        self.missing = listed_missing(list_file, missing)
        report_rows(list_file, num_repeated=_num_repeated(self.entries))

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
        classes: Names of the class folders in the order of their numbers; with it only the third
            way is looked for. By default the folders that are there, sorted, so that a split
            without one of them would number the others differently.

    Raises:
        ValueError: If there is no video, the metadata file lacks a column, or a folder is none of
            ``classes``.
    """

    def __init__(self, root: str, *, classes: Sequence[str] | None = None) -> None:
        folder = Path(root)
        self.classes: list[str] | None = None
        self.empty: list[str] = []
        self.missing: dict[str, str] = {}
        if classes is None and (metadata := metadata_rows(folder)):
            self._read_metadata(folder, *metadata)
            return
        if not (found := files_below(folder)):
            raise ValueError(
                f"{folder}: no video in this folder or below "
                f"(looked for {' '.join(sorted(VIDEO_SUFFIXES))})"
            )
        self.empty = [str(path) for path in found if is_empty(path)]
        self.num_missing = report_missing(folder, [], 0, len(found) - len(self.empty), self.empty)
        empty = set(self.empty)
        files = [path for path in found if str(path) not in empty]
        if classes is None and (captions := _sidecars(folder, files)):
            self.entries = [VideoEntry(str(path), captions.get(path, "")) for path in files]
            if num_alone := len(files) - len(captions):
                logger.warning("%s: %d videos have no caption file", folder, num_alone)
            report_rows(folder, num_bare=list(captions.values()).count(""))
            return
        parts = [path.relative_to(folder).parts for path in files]
        names = [part[0] if len(part) > 1 else folder.resolve().name for part in parts]
        self.classes = sorted(set(names)) if classes is None else _checked(classes, names, folder)
        labels = {name: label for label, name in enumerate(self.classes)}
        self.entries = [VideoEntry(str(p), labels[n]) for p, n in zip(files, names, strict=True)]

    def _read_metadata(self, folder: Path, table: Path, rows: Sequence[tuple[str, str]]) -> None:
        self.entries: list[VideoEntry] = []
        missing = []
        for name, caption in rows:
            path = folder / name
            if not stays_inside(name) or not os.path.isfile(path):
                missing.append(tried(folder, name))
            elif is_empty(path):
                self.empty.append(str(path))
            else:
                self.entries.append(VideoEntry(str(path), caption))
        self.num_missing = report_missing(
            table, missing, len(missing), len(self.entries), self.empty
        )
        self.missing = listed_missing(table, missing)
        num_bare = sum(entry.condition == "" for entry in self.entries)
        report_rows(table, num_repeated=_num_repeated(self.entries), num_bare=num_bare)

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
        prompts = read_lines(Path(file)) if file is not None else [prompt or ""]
        self.entries = [text for text in prompts for _ in range(num_samples)]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> str:
        return self.entries[index]


def _class_names(path: Path) -> list[str]:
    """The names in classInd.txt, in its order."""
    names = []
    for line in read_lines(path):
        number, _, name = line.partition(" ")
        if not number.isdigit() or not name.strip():
            raise ValueError(f"{path}: each line needs a number and a class name, got {line!r}")
        names.append(name.strip())
    return names


def _checked(classes: Sequence[str], found: Sequence[str], folder: Path) -> list[str]:
    """The given classes, if they are all that a folder needs."""
    if repeated := sorted({name for name in classes if list(classes).count(name) > 1}):
        raise ValueError(f"VideoFolder.classes names {', '.join(repeated)} more than once")
    if unknown := sorted(set(found) - set(classes)):
        raise ValueError(
            f"{folder}: the folders {', '.join(unknown)} are none of VideoFolder.classes, "
            f"which are {', '.join(classes)}"
        )
    return list(classes)


def _sidecars(folder: Path, videos: Sequence[Path]) -> dict[Path, str]:
    """The captions in the text files beside videos."""
    there = set(files_below(folder, {".txt"}))
    texts = {path: path.with_suffix(".txt") for path in videos}
    return {
        path: clean_caption(" ".join(read_text(text).split()))
        for path, text in texts.items()
        if text in there
    }


def _num_repeated(entries: Sequence[VideoEntry]) -> int:
    """How many rows name a file that stands in a row before."""
    return len(entries) - len({os.path.normpath(entry.path) for entry in entries})
