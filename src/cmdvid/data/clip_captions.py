"""The captions of generated clips, from a list, a table or text files beside them."""

from collections.abc import Sequence
from pathlib import Path

from cmdvid.data.clip_folder import ClipFolder
from cmdvid.data.tables import csv_rows, read_text

TABLE = "metadata.csv"


def read_captions(folder: ClipFolder, file: str | None = None) -> list[str] | None:
    """The caption of each clip; none if nothing tells them.

    Args:
        folder: The clips.
        file: Text with one caption a line, in the order of the clips' names; by default
            ``metadata.csv`` (file_name, text) in the folder, or else ``NAME.txt`` beside each clip
            that has a file of its own.

    Raises:
        ValueError: If there is not exactly one caption for each clip.
    """
    if file is not None:
        said = read_text(Path(file)).splitlines()
        if len(said) != len(folder):
            raise ValueError(
                f"{file}: {len(said)} captions for {len(folder)} clips in {folder.folder}: one a "
                "line is needed for each, in the order of their names"
            )
        return _checked(said, file)
    if (table := folder.folder / TABLE).is_file():
        captions = {row[0]: row[1] for row in csv_rows(table, "file_name", "text")}
        if absent := sorted(captions.keys() - set(folder.names)):
            raise ValueError(
                f"{table}: captions without videos: {len(absent)} of {len(captions)} rows name no "
                f"clip of {folder.folder}, such as {', '.join(absent[:3])}"
            )
        return _checked([captions.get(name, "") for name in folder.names], table)
    if any(clip.row is not None for clip in folder.clips):
        return None  # a text beside an array of clips may mean each or all of them
    texts = [_beside(folder.folder / name) for name in folder.names]
    if not any(text.is_file() for text in texts):
        return None
    said = [" ".join(read_text(x).split()) if x.is_file() else "" for x in texts]
    return _checked(said, folder.folder)


def _beside(clip: Path) -> Path:
    return clip.with_name(f"{clip.name}.txt") if clip.is_dir() else clip.with_suffix(".txt")


def _checked(captions: Sequence[str], source: str | Path) -> list[str]:
    if empty := [row for row, text in enumerate(captions) if not text.strip()]:
        raise ValueError(
            f"{source}: {len(empty)} of {len(captions)} clips have no caption, the first is clip "
            f"{empty[0] + 1} in the order of their names"
        )
    return [text.strip() for text in captions]
