"""Text tables that name videos: csv files, metadata files, split lists.

Text is UTF-8 with or without a byte order mark, lines end in any way, and stray bytes do not stop
it. A csv has commas and a header, whose columns may stand in any order among others. A caption
that is empty or "nan", as pandas writes an absent one, is the empty caption: the null condition.
"""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

METADATA = ("metadata.csv", "metadata.jsonl")


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        ValueError: If it cannot be read or has no such line.
    """
    if lines := [line.strip() for line in read_text(path).split("\n") if line.strip()]:
        return lines
    raise ValueError(f"{path}: the file holds no line of text")


def read_header(path: Path) -> list[str]:
    """The names of a csv file's columns.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            return [name.strip() for name in next(csv.reader([file.readline()]), [])]
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error


def csv_rows(path: Path, *columns: str) -> Iterator[tuple[str, ...]]:
    """Read some columns of a csv file row by row, whatever its size.

    Yields:
        The values of ``columns``; all are "" in a row that is cut short, so it names no video.

    Raises:
        ValueError: If the file cannot be read, lacks a column or is no csv.
    """
    header = read_header(path)
    if absent := [name for name in columns if name not in header]:
        raise ValueError(
            f"{path}: needs the columns {', '.join(columns)} separated by commas, "
            f"lacks {', '.join(absent)}, found {', '.join(header) or 'nothing'}"
        )
    at = [header.index(name) for name in columns]
    last, short = max(at), ("",) * len(at)
    size = path.stat().st_size
    with (
        path.open("rb", buffering=0) as file,  # the layer above buffers, and then calls `read`
        tqdm.wrapattr(file, "read", total=size, desc=path.name, delay=2) as counted,
    ):
        form = {"encoding": "utf-8-sig", "errors": "replace", "newline": ""}
        rows = csv.reader(io.TextIOWrapper(counted, **form))  # type: ignore[arg-type]
        try:
            next(rows)
            for row in rows:
                if row:
                    yield tuple([row[i].strip() for i in at]) if last < len(row) else short
        except csv.Error as error:
            raise ValueError(f"{path}: line {rows.line_num} is no csv ({error})") from error


def metadata_rows(folder: Path) -> tuple[Path, list[tuple[str, str]]] | None:
    """The metadata file of a folder, with its file names and captions; None without one.

    Raises:
        ValueError: If the file lacks a column, or a line its keys.
    """
    path = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    if path is None:
        return None
    if path.suffix == ".jsonl":
        return path, [_json_row(path, number, line) for number, line in _numbered(path)]
    text = "caption" if "caption" in read_header(path) else "text"
    return path, [(name, clean_caption(said)) for name, said in csv_rows(path, "file_name", text)]


def clean_caption(said: Any) -> str:
    """A caption as it is trained on: "" for one that is absent, whoever wrote that.

    Half of a character pair, as JSON may hold, becomes "?": nothing could write it as UTF-8.
    """
    caption = "" if said is None else str(said).strip().encode("utf-8", "replace").decode()
    return "" if caption.lower() == "nan" else caption


def _numbered(path: Path) -> list[tuple[int, str]]:
    # not splitlines: JSON holds U+2028 and others as they are; other line ends are read as \n
    lines = enumerate(read_text(path).split("\n"), start=1)
    return [(number, line) for number, line in lines if line.strip()]


def _json_row(path: Path, number: int, line: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
        said = row["text"] if "text" in row else row["caption"]
        return str(row["file_name"]), clean_caption(said)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path}: each line needs {{"file_name": ..., "text": ...}}, '
            f"got {line[:80]!r} in line {number}"
        ) from error
