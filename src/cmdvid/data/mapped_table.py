"""Rows of an index in one memory-mapped file: no object per row, and no copy per process.

Layout, little-endian: the text of all rows, each ``path NUL caption`` in UTF-8; zeros up to a
multiple of 8; start and end of each kept row's text (int64 "n 2"); the key of its file (uint64
"n"); the facts as JSON; the length of that JSON and a magic word.
"""

import hashlib
import json
import mmap
import os
import struct
from array import array
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt64

from cmdvid.types import VideoEntry

TAIL = struct.Struct("<Q8s")
MAGIC = b"cmdvid-2"  # a file of another layout gets another number
ROW_BYTES = 24  # of a row beside its text


class TableFacts(NamedTuple):
    """What a table was made of and what its making found."""

    source: dict[str, Any]  # of which file, with which settings: to see whether it is out of date
    folders: dict[str, int]  # time of last change in ns of each folder of videos
    num_rows: int
    num_missing: int  # rows whose file is not there
    missing: list[str]  # the first of them
    empty: list[str]  # files that are there, but hold no byte; their rows are left out
    num_bare: int  # kept rows without a caption
    num_repeated: int  # kept rows whose file another row has
    digest: str  # of the rows


class MappedTable:
    """Captioned videos; an entry is made when it is asked for.

    A process that gets a table by pickle, as workers may, gets its path and maps the file itself.

    Args:
        path: A file that TableWriter wrote.
        root: Folder that the rows' paths are relative to.

    Raises:
        ValueError: If the file is no such table, or not a whole one.
        OSError: If it cannot be opened.
    """

    def __init__(self, path: str, *, root: str) -> None:
        self.path, self.root = path, root
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        end = len(self._map) - TAIL.size
        size, magic = TAIL.unpack(self._map[max(end, 0) :]) if end >= 0 else (0, b"")
        if magic != MAGIC or size > end:
            raise ValueError(f"{path}: no table of this version")
        self.facts = TableFacts(**json.loads(self._map[end - size : end]))
        count = self.facts.num_rows
        start = end - size - ROW_BYTES * count
        self._spans = np.frombuffer(self._map, "<i8", 2 * count, start).reshape(count, 2)
        self.keys: UInt64[np.ndarray, " n"] = np.frombuffer(
            self._map, "<u8", count, start + 16 * count
        )

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, row: int) -> VideoEntry:
        start, end = self._spans[row].tolist()
        name, caption = self._map[start:end].decode().split("\0", 1)
        return VideoEntry(f"{self.root}/{name}", caption)

    def __getstate__(self) -> dict[str, str]:
        return {"path": self.path, "root": self.root, "digest": self.facts.digest}

    def __setstate__(self, state: dict[str, str]) -> None:
        self.__init__(state["path"], root=state["root"])
        if self.facts.digest != state["digest"]:
            raise ValueError(
                f"{self.path}: made anew by another process, which found other rows or files, "
                "while this run used it; start the run again"
            )


class TableWriter:
    """Writes the rows of a table one by one.

    Args:
        file: Where to; the caller opens and closes it, and moves it to its place.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self._digest = hashlib.sha256()
        self._ends = array("q")
        self._keys = bytearray()
        self._bare = bytearray()

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, name: str, caption: str, key: bytes) -> None:
        """Write one row; it may yet be left out."""
        text = f"{name}\0{caption}".encode()
        self.file.write(text)
        self._digest.update(text)
        self._ends.append((self._ends[-1] if self._ends else 0) + len(text))
        self._keys += key
        self._bare.append(not caption)

    @property
    def keys(self) -> UInt64[np.ndarray, " n"]:
        """The keys of all rows, to be asked for after the last one."""
        return np.frombuffer(self._keys, "<u8")

    def name(self, row: int) -> str:
        """The path of a row, as it was given."""
        start = self._ends[row - 1] if row else 0
        self.file.seek(start)
        text = self.file.read(self._ends[row] - start)
        self.file.seek(0, os.SEEK_END)
        return text.decode().split("\0", 1)[0]

    def finish(
        self,
        kept: Bool[np.ndarray, " rows"],
        keys: UInt64[np.ndarray, " n"],
        **facts: Any,
    ) -> None:
        """Write what makes the rows a table.

        Args:
            kept: Which rows to keep.
            keys: Keys of the files of the rows that are kept.
            facts: The facts that the writer does not know itself.
        """
        ends = np.frombuffer(self._ends, "<i8")
        spans = np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1)[kept].tobytes()
        self._digest.update(spans)
        all_facts = TableFacts(
            num_rows=len(keys),
            num_bare=int((np.frombuffer(self._bare, np.bool_) & kept).sum()),
            num_repeated=len(keys) - len(np.unique(keys)),
            digest=self._digest.hexdigest(),
            **facts,
        )
        text = json.dumps(all_facts._asdict()).encode()
        self.file.write(bytes(-self.file.tell() % 8))
        for part in (spans, keys.tobytes(), text, TAIL.pack(len(text), MAGIC)):
            self.file.write(part)
