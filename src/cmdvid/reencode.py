"""Videos made small and quick to seek: what training reads over and over is decoded once here."""

import io
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import chain
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import UInt8

from cmdvid.container import VideoError, list_frames, opened_video

TICKS = 90_000  # a second; the usual rates, 30000/1001 among them, are whole numbers of ticks


class VideoInfo(NamedTuple):
    """What a video holds. ``fps`` is the mean rate; width and height are as stored, not turned."""

    width: int
    height: int
    fps: float
    num_frames: int
    duration: float  # seconds


class SmallVideo(NamedTuple):
    """A video written anew: an mp4 file, and how many frames damage has cost it."""

    data: bytes
    frames_lost: int


def video_info(path: str, data: bytes | None = None) -> VideoInfo:
    """List a video's frames without decoding them.

    Args:
        path: An absolute path.
        data: The video itself; ``path`` is its name in messages then.

    Raises:
        VideoError: If it is no video, or has no frame.
    """
    with opened_video(path, data) as (container, stream):
        seconds = list_frames(container, stream).seconds
        if not seconds:
            raise VideoError(f"{path}: no frame can be decoded")
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        steps, lasts = len(seconds) - 1, seconds[-1] - seconds[0]
        fps = steps / lasts if lasts > 0 else rate
        width, height = stream.width, stream.height
        return VideoInfo(width, height, round(fps, 3), len(seconds), round(len(seconds) / fps, 3))


def reencode(
    path: str, data: bytes | None = None, *, short_side: int, gop: int = 16, crf: int = 18
) -> SmallVideo:
    """Write a video anew as a small H.264 mp4 in which any frame is reached by little decoding.

    Frames are upright and keep their times; sound and other streams are left out. After damage in
    mid-file the frames before it are kept. Nothing is made larger, but for sizes that become even.
    Frames come and go one by one, so memory stays small.

    Args:
        path: An absolute path.
        data: The video itself; ``path`` is its name in messages then.
        short_side: Height or width of the result in pixels, whichever is less; even.
        gop: Frames from one key frame to the next.
        crf: Quality of x264: 18 is hardly told from the original, 23 takes half the space.

    Raises:
        VideoError: If no frame can be decoded.
    """
    with opened_video(path, data) as opened:
        seconds = list_frames(*opened).seconds
        foretold = _foretold(*opened, len(seconds))
    file = io.BytesIO()
    with opened_video(path, data) as opened, av.open(file, "w", format="mp4") as output:
        frames = _upright_frames(*opened, short_side)
        if (first := next(frames, None)) is None:
            raise VideoError(f"{path}: no frame can be decoded")
        rate = opened[1].average_rate or opened[1].guessed_rate or Fraction(25)
        stream = _h264_stream(output, first.shape, rate, gop=gop, crf=crf)
        last, rank = -1, 0
        for rank, image in enumerate(chain([first], frames)):
            # by rank, as in read_clip: the stamps on decoded frames lie in some files
            time = seconds[rank] - seconds[0] if rank < len(seconds) else float(rank / rate)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = last = max(round(time * TICKS), last + 1)
            frame.time_base = stream.codec_context.time_base
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return SmallVideo(file.getvalue(), max(0, foretold - rank - 1))


def _foretold(container: InputContainer, stream: VideoStream, num_packets: int) -> int:
    """Frames that a video should have: of an avi that was cut its header still tells.

    Other headers tell nothing, or count what an edit hides.
    """
    return max(num_packets, stream.frames) if container.format.name == "avi" else num_packets


def _h264_stream(
    output: OutputContainer, shape: tuple[int, ...], rate: Fraction, *, gop: int, crf: int
) -> VideoStream:
    """A stream without B-frames: what is decoded from a key frame on is what is shown."""
    stream = output.add_stream("libx264", rate=rate)
    stream.height, stream.width, stream.pix_fmt = shape[0], shape[1], "yuv420p"
    stream.gop_size, stream.max_b_frames = gop, 0
    stream.options = {"crf": str(crf)}
    stream.thread_count = 1  # many videos are written side by side
    stream.codec_context.time_base = Fraction(1, TICKS)
    return stream


def _upright_frames(
    container: InputContainer, stream: VideoStream, short_side: int
) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Decode all frames up to the first error, in one small even size."""
    convert = VideoReformatter()
    size: tuple[int, int] | None = None  # of the first frame: some files change theirs
    with suppress(FFmpegError, OSError):
        for frame in container.decode(stream):
            if frame.is_corrupt:
                break
            size = size or _small(frame.height, frame.width, short_side)
            rgb = convert.reformat(
                frame,
                *reversed(size),
                format="rgb24",
                interpolation="BICUBIC",
                dst_color_range="JPEG",
                threads=1,
            )
            image = rgb.to_ndarray()
            if frame.rotation and frame.rotation % 90 == 0:
                image = np.rot90(image, frame.rotation // 90)  # both count anticlockwise
            yield np.ascontiguousarray(image)


def _small(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Scale a size down to its short side and make it even, as the format needs."""
    scale = min(1.0, short_side / min(height, width))
    return max(2, 2 * round(height * scale / 2)), max(2, 2 * round(width * scale / 2))
