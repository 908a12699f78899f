"""Files that appear under their name only when they are complete, also if the process is killed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import get_native_id


@contextmanager
def whole(path: str | Path, *, shared: bool = False) -> Iterator[Path]:
    """Give a hidden name beside a file to write to, and rename it when all is written.

    An error leaves the file as it was. A kill leaves the hidden one as well, which the next writer
    replaces; of a shared file it stays.

    Args:
        path: The file; its folder is made. The hidden name has another suffix.
        shared: Whether several processes may write it at once; then each has its own hidden name.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = f".{os.uname().nodename}-{get_native_id()}" if shared else ""
    part = path.with_name(f".{path.name}{writer}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> Path:
    """Write a text file as UTF-8, whole or not at all, with its line ends as they are."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8", newline="")
    return path
