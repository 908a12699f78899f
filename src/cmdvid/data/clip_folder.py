"""Clips that any model wrote, from files of any common kind, read exactly as they are."""

import re
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import UInt8
from numpy.lib import format as npy
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from cmdvid.data.files import VIDEO_SUFFIXES
from cmdvid.frames import resize_and_crop
from cmdvid.types import ClipBatch
from cmdvid.video import ClipSpec, frame_size, read_clip

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
SHEET = "contact_sheet"  # `cmdvid predict` writes one beside its clips
ARRAYS = 'uint8 arrays "num frames height width 3", or "frames height width 3" for one clip'
KINDS = f"videos, a folder of pictures for each clip, pictures CLIP_FRAME.png, or npz of {ARRAYS}"


class _Clip(NamedTuple):
    """Where one clip is."""

    name: str  # path below the folder, or of its file and its number
    files: tuple[Path, ...]  # a video, an npz, or the pictures in their order
    row: int | None  # in an array of several clips
    num_frames: int | None  # none for a video, whose header may lie
    size: tuple[int, int]


class ClipFolder(Dataset[ClipBatch]):
    """Every clip of a folder, in the order of their names: its first frames, one after the other.

    What counts is the first kind found, in the folder or below:

    1. ``.npz`` files of one uint8 array each: "n l h w 3", or "l h w 3" for one clip.
    2. Videos of any format; ``contact_sheet*`` is left out, and so are pictures beside them.
    3. Pictures: a folder of them for each clip, or all in one folder, numbered at their ends
       (``cat_0007.png`` is a frame of the clip ``cat``). Numbers are read as such: 10 follows 9.

    Args:
        folder: Where the clips are.
        num_frames: Frames to read; more are left.
        image_size: Height and width that frames are resized and cropped to, as real ones are.

    Raises:
        ValueError: If there are no clips, sizes differ, or a clip has too few frames.
    """

    def __init__(self, folder: str | Path, *, num_frames: int, image_size: tuple[int, int]) -> None:
        self.folder, self.spec = Path(folder), ClipSpec(num_frames, image_size)
        if not self.folder.is_dir():
            raise ValueError(f"{folder}: no such folder of clips")
        files = sorted((p for p in self.folder.rglob("*") if _shown(p, self.folder)), key=_order)
        self.clips = _arrays(files) or _videos(files) or _pictures(files)
        if not self.clips:
            raise ValueError(f"{folder}: no clips in this folder or below; looked for {KINDS}")
        self.clips = [
            c._replace(name=Path(c.name).relative_to(folder).as_posix()) for c in self.clips
        ]
        first = self.clips[0]
        for clip in self.clips:
            if clip.size != first.size:
                raise ValueError(
                    f"{folder}: clips must be of one size, but {first.name} has frames of "
                    f"{first.size[0]}x{first.size[1]} (height, width) and {clip.name} of "
                    f"{clip.size[0]}x{clip.size[1]}"
                )
            if clip.num_frames is not None and clip.num_frames < num_frames:
                raise ValueError(
                    f"{folder}: {num_frames} frames are needed, but {clip.name} has "
                    f"{clip.num_frames}: generate longer clips, or lower num_frames in the protocol"
                )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames, as the files hold them."""
        return self.clips[0].size

    @property
    def names(self) -> list[str]:
        """Each clip's path below the folder; a number after it where a file holds several."""
        return [clip.name for clip in self.clips]

    @property
    def files(self) -> list[Path]:
        """All files that hold clips."""
        return list(dict.fromkeys(file for clip in self.clips for file in clip.files))

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> ClipBatch:
        """Read a clip: uint8 "3 l h w"; it has no condition.

        Raises:
            ValueError: If a video is damaged or too short.
        """
        clip = self.clips[index]
        if (first := clip.files[0]).suffix.lower() in VIDEO_SUFFIXES:
            frames = read_clip(first, self.spec, position=0.0)
        else:
            frames = _stacked(clip, self.spec.num_frames)
            frames = rearrange(frames, "l h w c -> l c h w")
            frames = rearrange(resize_and_crop(frames, self.spec.image_size), "l c h w -> c l h w")
        return ClipBatch(frames.contiguous(), "", index)


def _shown(path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts
    hidden = any(part.startswith(".") for part in parts) or parts[-1].startswith(SHEET)
    return not hidden and path.is_file()


def _order(path: Path) -> list[tuple[int, str]]:
    """Sort numbers in names as numbers."""
    return [(int(x), "") if x.isdigit() else (-1, x) for x in re.split(r"(\d+)", str(path))]


def _arrays(files: list[Path]) -> list[_Clip]:
    clips = []
    for path in (file for file in files if file.suffix.lower() == ".npz"):
        shape = _shape(path)
        rows = [None] if len(shape) == 4 else list(range(shape[0]))
        length, *size = shape[-4:-1]
        for row in rows:
            name = str(path) if row is None else f"{path}:{row:06d}"
            clips.append(_Clip(name, (path,), row, length, (size[0], size[1])))
    return clips


def _shape(path: Path) -> tuple[int, ...]:
    """Shape of the one array of an npz file, from its header."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            with archive.open(names[0]) as file:
                version = npy.read_magic(file)
                read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, _, dtype = read(file)
    except (OSError, ValueError, IndexError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: no npz file ({error})") from error
    if len(names) > 1 or dtype != np.uint8 or len(shape) not in (4, 5) or shape[-1] != 3:
        found = f"{len(names)} arrays, the first {dtype} {'x'.join(map(str, shape))}"
        raise ValueError(f"{path}: needs {ARRAYS}, RGB from 0 to 255; found {found}")
    return shape


def _videos(files: list[Path]) -> list[_Clip]:
    videos = [file for file in files if file.suffix.lower() in VIDEO_SUFFIXES]
    return [_Clip(str(path), (path,), None, None, frame_size(path)) for path in videos]


def _pictures(files: list[Path]) -> list[_Clip]:
    """Pictures by clip: those of a folder, unless the folder holds several numbered series."""
    series: dict[str, list[Path]] = defaultdict(list)
    for path in (file for file in files if file.suffix.lower() in PICTURES):
        stem = re.sub(r"[-_. ]?\d+$", "", path.stem)
        series[str(path.with_name(stem) if stem else path.parent)].append(path)
    counts = defaultdict(int)
    for frames in series.values():
        counts[frames[0].parent] += 1
    clips = []
    for name, frames in series.items():
        own_folder = counts[frames[0].parent] == 1  # then it is the folder that names the clip
        name = str(frames[0].parent) if own_folder else name
        sizes = {_picture_size(path): path for path in frames}
        if len(sizes) > 1:
            (a, one), (b, other), *_ = sizes.items()
            raise ValueError(f"frames of one clip differ in size: {one} {a}, {other} {b}")
        ((width, height),) = sizes
        clips.append(_Clip(name, tuple(frames), None, len(frames), (height, width)))
    return clips


@contextmanager
def _picture(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as picture:
            yield picture
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"{path}: cannot be read as a picture ({error})") from error


def _picture_size(path: Path) -> tuple[int, int]:
    with _picture(path) as picture:
        return picture.size


def _pixels(path: Path) -> np.ndarray:
    with _picture(path) as picture:
        return np.asarray(picture.convert("RGB"))


def _stacked(clip: _Clip, num_frames: int) -> UInt8[Tensor, "l h w 3"]:
    """The first frames of a clip that is no video."""
    if clip.files[0].suffix.lower() != ".npz":
        return torch.from_numpy(np.stack([_pixels(path) for path in clip.files[:num_frames]]))
    with np.load(clip.files[0]) as arrays:
        frames = arrays[arrays.files[0]]
    frames = frames if clip.row is None else frames[clip.row]
    return torch.from_numpy(np.ascontiguousarray(frames[:num_frames]))
