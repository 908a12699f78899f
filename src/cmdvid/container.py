"""Opened video files: what is no video is refused with a reason, and what they hold is listed.

A video is a file, or a part of a larger file (a member of a tar shard, here or far away).
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.stream import VideoStream
from fsspec.core import url_to_fs

from cmdvid.types import FilePart

MAX_PIXELS = 2**26  # 67 megapixels, twice 8K: a larger frame is a mistake or an attack
NEEDED = (
    "check the file, set a shorter clip (spec.num_frames, spec.stride, spec.fps) or let short "
    "videos stand still at their end (spec.repeat_last: true)"
)
NOT_VIDEO = {
    b"version https://git-lfs": "a Git LFS pointer, not a video; run `git lfs pull`",
    b"<": "an HTML or XML page, not a video; download it again",
    b"#EXTM3U": "a playlist, not a video",  # FFmpeg would open what it names
    b"ffconcat": "a playlist, not a video",
}
HEAD = 512  # bytes that tell a text from a video


class VideoError(ValueError):
    """This file cannot give a clip; the message names the file and the reason."""


class Timetable(NamedTuple):
    """All frames of a video in the order shown.

    Attributes:
        stamps: Time stamps; none for raw streams.
        keys: For each key frame's rank the stamps to seek to (mp4 and mkv know them by
            presentation time, avi and ts by decoding time).
        seconds: Their times.
        reordered: Whether presentation and decoding times differ anywhere. Avi has one time only,
            which may be either.
    """

    stamps: list[int]
    keys: dict[int, tuple[int, ...]]
    seconds: list[float]
    reordered: bool


def read_video(path: str, part: FilePart | None = None) -> bytes:
    """Read a whole video as it is stored, on disk or wherever fsspec reaches.

    Args:
        path: Its file; of a part of a larger file its name in messages.
        part: Where it lies in a larger file.

    Raises:
        VideoError: If it cannot be read, or is shorter than foretold.
    """
    try:
        if part is None:
            return Path(path).read_bytes()
        storage, name = url_to_fs(part.url)
        data = storage.cat_file(name, start=part.offset, end=part.offset + part.size)
    except Exception as error:  # each kind of storage raises the errors of its own library
        # whatever they are, the storage failed and not the video: it may be asked again
        cause = error if isinstance(error, OSError) else ConnectionError(str(error))
        raise VideoError(f"{path}: cannot be read ({_reason(error)})") from cause
    if len(data) != part.size:
        raise VideoError(
            f"{path}: {len(data)} of {part.size} bytes; {part.url} was cut or replaced"
        )
    return data


@contextmanager
def opened_video(
    path: str, data: bytes | None = None
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and its first video stream that is no cover picture.

    Args:
        path: An absolute path, so that a name like "a:b.mp4" is no protocol to FFmpeg.
        data: What to open instead of the file; ``path`` is its name in messages then.

    Raises:
        VideoError: For all that FFmpeg raises, also while the caller decodes.
    """
    _sniff(path, _head(path) if data is None else data[:HEAD])
    file = path if data is None else io.BytesIO(data)
    try:
        with av.open(file, **_any_text(av.__version__)) as container:
            yield container, _video_stream(path, container)
    except VideoError:
        raise
    except (FFmpegError, OSError, ValueError) as error:  # ValueError: an unknown pixel format
        raise VideoError(f"{path}: cannot be read as video ({_reason(error)}); {NEEDED}") from error


def list_frames(container: InputContainer, stream: VideoStream) -> Timetable:
    """List all frames without decoding, for headers and mean rates are often wrong."""
    packets = []
    with suppress(FFmpegError):  # a cut-off file: what came before the cut may do
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:
                packets.append((packet.pts, packet.dts, packet.is_keyframe))  # noqa: PERF401
    if not stream.time_base or any(pts is None for pts, _, _ in packets):
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        return Timetable([], {}, [rank / rate for rank in range(len(packets))], False)
    packets.sort(key=itemgetter(0))
    keys = {
        rank: (pts, pts if dts is None else dts)
        for rank, (pts, dts, is_key) in enumerate(packets)
        if is_key
    }
    stamps = [pts for pts, _, _ in packets]
    tick, ticks = stream.time_base.as_integer_ratio()  # a product of Fractions each is slow
    seconds = [pts * tick / ticks for pts in stamps]
    return Timetable(stamps, keys, seconds, any(pts != dts for pts, dts, _ in packets))


def too_large(width: int, height: int) -> str:
    """What is wrong with such frames; FFmpeg gives those that it refuses no size."""
    size = f"{width}x{height} pixels" if width else "no size or a huge one"
    return f"frames of {size} are too large, the limit is {MAX_PIXELS} pixels"


def _reason(error: Exception) -> str:
    """What an error says, without the file's name."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _head(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(HEAD)
    except OSError as error:
        raise VideoError(f"{path}: cannot be read ({error.strerror})") from error


def _sniff(path: str, head: bytes) -> None:
    """Refuse what is no video by its first bytes, with a reason that helps more than FFmpeg's."""
    if not head:
        raise VideoError(f"{path}: the file is empty (0 bytes)")
    for start, reason in NOT_VIDEO.items():
        if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(start):
            raise VideoError(f"{path}: {reason}")


def _any_text(version: str) -> dict[str, Any]:
    """What lets this PyAV open files whose titles are not UTF-8; from 19 on nothing is needed."""
    return {"metadata_errors": "ignore"} if int(version.split(".")[0]) < 19 else {}


def _video_stream(path: str, container: InputContainer) -> VideoStream:
    """The first video stream that is not a cover picture."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        found = ", ".join(s.type for s in container.streams) or "nothing"
        raise VideoError(f"{path}: no video stream (found: {found})")
    stream = streams[0]
    if stream.codec_context is None:
        raise VideoError(f"{path}: no decoder for its video")
    if stream.width * stream.height > MAX_PIXELS:
        raise VideoError(f"{path}: {too_large(stream.width, stream.height)}")
    stream.thread_type = "NONE"  # loader workers already use all cores
    return stream
