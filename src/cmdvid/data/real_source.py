"""What a folder of real videos is, told by what lies in it."""

from pathlib import Path
from typing import Literal

from torch.utils.data import Dataset

from cmdvid.data.clip_folder import ClipFolder
from cmdvid.data.files import files_below
from cmdvid.data.index import UCF101, VideoFolder, WebVid
from cmdvid.data.msrvtt import MSRVTT
from cmdvid.data.tables import read_header
from cmdvid.types import VideoEntry
from cmdvid.video import ClipSpec

LISTS = "ucfTrainTestlist"  # of UCF-101
MADE = (
    "contact_sheet.png",
    "config.predict.yaml",
    "report.json",
)  # by `cmdvid predict` or a report


def real_source(
    folder: str, spec: ClipSpec, split: Literal["train", "val", "test"]
) -> Dataset[VideoEntry] | ClipFolder:
    """The index that fits a folder of real videos.

    UCF-101 as published; a csv of WebVid's or MSR-VTT's columns, or MSR-VTT's json, beside its
    videos; clips as pictures or arrays; or any tree of videos.

    Args:
        folder: The data set.
        spec: Of the clips, for pictures and arrays.
        split: Of UCF-101, and of several csv files the one with this word in its name.

    Raises:
        ValueError: If there are no videos, no such split, or several tables that fit.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"{folder}: no such folder of real videos")
    if (root / LISTS).is_dir():
        if split == "val":
            raise ValueError(f"{folder}: UCF-101 has the splits train and test, not val")
        return UCF101(folder, split=split)
    tables = {path: kind for path in sorted(root.iterdir()) if (kind := _kind(path))}
    if len(tables) > 1:
        tables = {path: kind for path, kind in tables.items() if split in path.stem} or tables
    if len(tables) > 1:
        names = ", ".join(path.name for path in tables)
        raise ValueError(f"{folder}: {names} all name videos, and not one of them is for {split!r}")
    for path, kind in tables.items():
        return WebVid(str(path)) if kind == "WebVid" else MSRVTT(str(path))
    if not files_below(root):
        return ClipFolder(root, num_frames=spec.num_frames, image_size=spec.image_size)
    return VideoFolder(folder)


def check_sides(real: str, generated: str) -> None:
    """See that real and generated clips are not the same, nor exchanged.

    Raises:
        ValueError: If they are, as far as it can be seen.
    """
    one, other = Path(real).resolve(), Path(generated).resolve()
    if one == other or one in other.parents or other in one.parents:
        raise ValueError(
            f"{real} and {generated}: real and generated clips must be in folders of their own"
        )
    if (other / LISTS).is_dir() or any(_kind(path) for path in _files(other)):
        raise ValueError(
            f"{generated}: looks like a data set, not like generated clips: are --real and "
            "--generated exchanged?"
        )
    if found := [name for name in MADE if (one / name).exists()]:
        raise ValueError(
            f"{real}: holds {found[0]}, which generated clips have: are --real and --generated "
            "exchanged?"
        )


def _files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _kind(path: Path) -> str | None:
    """The data set whose table a file is."""
    if path.suffix == ".json":
        return "MSR-VTT" if "videodatainfo" in path.name else None
    columns = {"WebVid": ("videoid", "page_dir", "name"), "MSR-VTT": ("video_id", "sentence")}
    header = set(read_header(path)) if path.suffix == ".csv" else set()
    return next((kind for kind, needed in columns.items() if header >= set(needed)), None)
