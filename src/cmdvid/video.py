"""Video files to clips and back, with PyAV.

To read a clip: list the time stamps of all packets (no decoding), choose the frames of the window,
seek to the key frame before it, decode from there. Stamps lie in some real files (UCF-101 holds
packed B-frames, which leave the decoder in the right order stamped 1, 2, 4, 3), so each decoded
frame must carry the stamp foretold, or else frames are counted from the start of the file.
"""

import logging
import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.container import InputContainer
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from cmdvid.container import (
    Timetable,
    VideoError,
    list_frames,
    opened_video,
    read_video,
    too_large,
)
from cmdvid.frames import to_pixels
from cmdvid.pixels import pixels_of
from cmdvid.types import FilePart
from cmdvid.window import ClipSpec, num_starts, window

logger = logging.getLogger(__name__)


def read_clip(
    path: str | Path,
    spec: ClipSpec,
    position: float = 0.5,
    part: FilePart | None = None,
    notice: Callable[[str], None] = logger.warning,
) -> UInt8[Tensor, "3 l h w"]:
    """Cut one clip from a video file, as RGB in [0, 255].

    Frames are upright (rotations by quarter turns are applied). Of several video streams the first
    is read; cover pictures are none. After damage in mid-file the frames before it are used.
    Pixels are taken as square and frames as progressive.

    Args:
        path: A video file in any format that FFmpeg knows.
        spec: Number of frames, their size and their distance.
        position: Start of the window among the possible ones: 0 the first, 1 the last.
        part: Where the video lies in a larger file; ``path`` is its name in messages then.
        notice: Is told when the clip had to do without some frames: they are damaged, or the
            last is repeated.

    Raises:
        VideoError: If the file is missing, no video, damaged, or too short for the clip.
    """
    path = os.path.abspath(path) if part is None else str(path)
    data = None if part is None else read_video(path, part)
    clip = np.empty((3, spec.num_frames, *spec.image_size), np.uint8)
    met = 0
    num_lost = 0
    with opened_video(path, data) as opened:
        table = list_frames(*opened)
        seconds = table.seconds
        wanted = window(path, seconds, spec, position)
        start = max((k for k in table.keys if k <= wanted[0]), default=0)
        for seek in table.keys.get(start, ()):
            if met < len(set(wanted)):
                met, _ = _decode(opened, wanted, clip, table, start, seek)
    if met < len(set(wanted)):  # no stamps, false ones, or damage: count frames instead
        with opened_video(path, data) as opened:
            met, decoded = _decode(opened, wanted, clip)
            if not decoded and not opened[1].width:  # FFmpeg has refused it itself
                raise VideoError(f"{path}: {too_large(0, 0)}")
        if decoded <= wanted[-1]:  # fewer frames decode than the file has packets
            num_lost = len(seconds) - decoded
            seconds = seconds[:decoded]
            wanted = window(path, seconds, spec, position, num_lost)
            with opened_video(path, data) as opened:
                met, _ = _decode(opened, wanted, clip)
    if met < len(set(wanted)):
        raise VideoError(f"{path}: changed while it was read")
    if num_lost:
        total = num_lost + len(seconds)
        notice(f"{path}: damaged, {num_lost} of {total} frames are lost; the clip is of the others")
    elif num_starts(seconds, spec) < 1:
        notice(f"{path}: shorter than a clip ({len(seconds)} frames), its last frame is repeated")
    return torch.from_numpy(clip)


def write_clip(
    path: str | Path, clip: Float[Tensor, "3 l h w"] | UInt8[Tensor, "3 l h w"], fps: float = 8
) -> None:
    """Write a clip as an H.264 mp4 file that any browser plays.

    The format needs even sizes: an odd height or width gets its last row or column twice.

    Args:
        path: File to write; its folder is made.
        clip: RGB, uint8 or float in [-1, 1].
        fps: Frames a second.
    """
    if clip.is_floating_point():
        clip = to_pixels(clip)
    frames = rearrange(clip, "c l h w -> l h w c").cpu()
    rows, columns = (torch.arange(n + n % 2).clamp(max=n - 1) for n in frames.shape[1:3])
    frames = frames[:, rows][:, :, columns]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    options = {"movflags": "+faststart"}
    with av.open(os.path.abspath(path), "w", format="mp4", options=options) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.options = {"crf": "18"}
        stream.thread_count = 1  # a pool of clips is written side by side
        for frame in frames.numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def frame_size(path: str | Path) -> tuple[int, int]:
    """Height and width of a video's frames, as its header has them; no frame is decoded.

    Raises:
        VideoError: If the file is missing or no video.
    """
    with opened_video(os.path.abspath(path)) as (_, stream):
        return stream.height, stream.width


def _decode(
    opened: tuple[InputContainer, VideoStream],
    wanted: Sequence[int],
    clip: UInt8[np.ndarray, "3 l h w"],
    table: Timetable | None = None,
    start: int = 0,
    seek: int = 0,
) -> tuple[int, int]:
    """Decode up to the last wanted frame, the first error, or the first unforeseen time stamp.

    Frames come to their size and into ``clip`` one by one, so memory stays small. Without a
    ``table`` of the stamps that they must have they are just counted. ``start`` is the key frame
    to begin at, ``seek`` its stamp.

    Returns:
        How many different wanted frames were met, and the rank of the first frame not decoded.
    """
    rank, met, convert = start, 0, VideoReformatter()
    stamps = table.stamps if table else []
    with suppress(FFmpegError, OSError):  # the caller sees how far it went
        if table:
            opened[0].seek(seek, stream=opened[1])
        for frame in _frames(*opened, stamps[wanted[0]] if table and table.reordered else None):
            if table and frame.pts is not None:
                if frame.pts < stamps[start]:
                    continue  # the seek landed earlier, or B-frames of the group before
                while rank < wanted[0] and stamps[rank] < frame.pts and table.reordered:
                    rank += 1  # was left out
            if frame.is_corrupt or (table and frame.pts != stamps[rank]):
                break
            places = slice(bisect_left(wanted, rank), bisect_right(wanted, rank))
            if places.start < places.stop:  # more than one where fps shows a frame again
                colours = pixels_of(frame, convert, (clip.shape[2], clip.shape[3]))
                for pixels, colour in zip(clip, colours, strict=True):
                    pixels[places] = colour
                met += 1
            rank += 1
            if rank > wanted[-1]:
                break
    return met, rank


def _frames(
    container: InputContainer, stream: VideoStream, first: int | None
) -> Iterator[av.VideoFrame]:
    """Decode on from where the container stands.

    Before the time stamp ``first`` frames that no other needs are left out: a third of x264's.
    """
    for packet in container.demux(stream):
        early = first is not None and packet.pts is not None and packet.pts < first
        stream.codec_context.skip_frame = "NONREF" if early else "DEFAULT"
        yield from packet.decode()
