"""Files that gave no clip, or not all of it: how many, and one report for all processes."""

import fcntl
import json
import logging
import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType

import torch

logger = logging.getLogger(__name__)

MAX_MESSAGES = 20  # unusable files named in the log; a broken download has thousands
EMPTY = "the file is empty (0 bytes)"
FEW = 200  # files; the share of bad ones among fewer says little


class Unusable:
    """Files of an index that could not give a clip, counted over all loader workers.

    Args:
        num_files: Files of the index.
        max_fraction: Of the files tried so far, taken for 200 at least, no more may be unusable.
        report: Where they are listed.
        empty: Files of no byte, which the index left out.
        missing: What else it left out, with the reasons.

    Raises:
        ValueError: If the share is no share, or that of empty files too large.
    """

    def __init__(
        self,
        num_files: int,
        *,
        max_fraction: float,
        report: "SkippedFiles | None" = None,
        empty: Sequence[str] = (),
        missing: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        if not 0 <= max_fraction <= 1:
            raise ValueError(f"max_bad_fraction must lie in 0..1, got {max_fraction}")
        self.max_fraction, self.report = max_fraction, report
        # in shared memory, so that workers learn from each other and the main process can count
        self.marked = torch.zeros(num_files, dtype=torch.bool).share_memory_()
        self.tried = torch.zeros_like(self.marked).share_memory_()
        self.partial = torch.zeros_like(self.marked).share_memory_()
        self.reasons: list[str] = []  # the first that this process met
        if report:
            report.add_all(dict.fromkeys(empty, EMPTY) | dict(missing))
        if len(empty) > max_fraction * max(num_files + len(empty), FEW):
            raise ValueError(
                f"{len(empty)} of {num_files + len(empty)} videos are files of no byte, more than "
                f"data.max_bad_fraction ({max_fraction}) allows; the first is {empty[0]}"
            )

    @property
    def count(self) -> int:
        """Unusable files that all workers met so far."""
        return int(self.marked.sum())

    def add(self, file: int, path: str, error: ValueError) -> None:
        """Count, log and report a file, once.

        Raises:
            ValueError: If there are too many now.
        """
        if self.marked[file]:
            return
        self.marked[file] = True
        number, tried = self.count, int(self.tried.sum())
        if number <= MAX_MESSAGES:
            logger.warning("unusable, another video takes its place: %s", error)
        if number == MAX_MESSAGES:
            logger.warning("further unusable files are only counted")
        self.reasons = [*self.reasons, f"\n  {error}"][:3]
        self._list(path, str(error))
        if number > self.max_fraction * max(tried, FEW):
            listed = f"\nall of them are in {self.report.path}" if self.report else ""
            raise ValueError(
                f"{number} of the {tried} videos tried so far could not give a clip, more than "
                f"data.max_bad_fraction ({self.max_fraction}) allows; among them:"
                f"{''.join(self.reasons)}{listed}"
            )

    def add_partial(self, file: int, path: str, said: str) -> None:
        """Count, log and report a file that gave a clip, but without some frames, once."""
        if self.partial[file]:
            return
        self.partial[file] = True
        if (number := int(self.partial.sum())) <= MAX_MESSAGES:
            logger.warning("%s", said)
        if number == MAX_MESSAGES:
            logger.warning("further damaged or short files are only counted")
        self._list(path, said)

    def _list(self, path: str, said: str) -> None:
        if self.report:
            self.report.add(path, said.removeprefix(f"{os.path.abspath(path)}: "))


class SkippedFiles:
    """A JSON line for each file that gave no clip, or not all of it, or is not there.

    It holds ``path``, ``reason`` and ``first_seen`` (UTC). Loader workers, processes of a
    distributed run and later runs in the same folder add to it; each reads first what the others
    have added, so that no file comes twice. It is made with its first line.

    Args:
        path: The report.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.known: set[str] = set()
        self.offset = 0  # how far this process has read it

    def add(self, file: str, reason: str) -> None:
        """Add a file, unless it is there. A report that cannot be written stops no training."""
        self.add_all({file: reason})

    def add_all(self, reasons: Mapping[str, str]) -> None:
        """Add files by their reasons, as ``add`` does."""
        if not reasons.keys() - self.known:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as report:
                fcntl.lockf(report, fcntl.LOCK_EX)  # released when the file is closed
                report.seek(self.offset)
                self.known |= {_path_of(line) for line in report}
                now = datetime.now(timezone.utc).isoformat(timespec="seconds")
                for file in [file for file in reasons if file not in self.known]:
                    said = {"path": file, "reason": reasons[file], "first_seen": now}
                    report.write(json.dumps(said).encode() + b"\n")
                self.offset = report.tell()
        except OSError as error:
            logger.warning("%s: cannot be written (%s)", self.path, error.strerror)
        self.known |= reasons.keys()


def _path_of(line: bytes) -> str:
    """The file that a line names; none if a full disk cut the line short."""
    try:
        return json.loads(line)["path"]
    except ValueError:
        return ""
