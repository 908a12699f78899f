"""Small trees of real videos in the layouts that the indexes read."""

import io
import tarfile
from pathlib import Path

import pytest
import torch

from cmdvid.video import write_clip


@pytest.fixture
def make_video():
    """Write a video whose grey tells who it is: ``make_video(path, grey=40, num_frames=12)``."""

    def make(path: Path, grey: int = 128, num_frames: int = 12) -> Path:
        # brighter to the right and with time, so that a flip or another window shows
        clip = torch.full((3, num_frames, 32, 48), grey, dtype=torch.uint8)
        clip[:, :, :, 24:] += 12
        clip += 2 * torch.arange(num_frames, dtype=torch.uint8)[None, :, None, None]
        write_clip(path, clip, fps=8)
        return path

    return make


@pytest.fixture
def folder(tmp_path, make_video):
    """Two classes, four and three videos."""
    for i in range(4):
        make_video(tmp_path / "videos" / "left" / f"{i}.mp4", 30 + 20 * i)
    for i in range(3):
        make_video(tmp_path / "videos" / "right" / f"{i}.mp4", 120 + 20 * i)
    return tmp_path / "videos"


@pytest.fixture
def write_tar():
    """Write a tar of members by name: ``write_tar(path, {"a.mp4": b"..."})``."""

    def write(path: Path, members: dict[str, bytes]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for name, data in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        return path

    return write
