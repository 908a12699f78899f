"""Which frames of a video make a clip."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from cmdvid.container import NEEDED, VideoError

TICK = 1e-3  # seconds; the coarsest rounding of time stamps in common files is Matroska's


@dataclass(frozen=True)
class ClipSpec:
    """The clip to cut from a video.

    Attributes:
        num_frames: Frames of the clip.
        image_size: Height and width in pixels; frames are resized and centre-cropped to it.
        stride: Take each ``stride``-th frame of the file, whatever their times.
        fps: Take what is on screen at this rate, by time stamps; ``stride`` must be 1 then.
        repeat_last: Let a video that is too short stand still at its end, instead of refusing it.
    """

    num_frames: int = 16
    image_size: tuple[int, int] = (64, 64)
    stride: int = 1
    fps: float | None = None
    repeat_last: bool = False

    def __post_init__(self) -> None:
        if self.num_frames < 1 or self.stride < 1:
            raise ValueError(f"spec.num_frames and spec.stride must be at least 1, got {self}")
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise ValueError(f"spec.image_size must be height and width, got {self.image_size}")
        if self.fps is not None and (self.fps <= 0 or self.stride != 1):
            raise ValueError(
                f"spec.fps picks the frames by time: it must be positive and spec.stride 1, "
                f"got {self.fps} and {self.stride}"
            )


def window(
    path: str, seconds: Sequence[float], spec: ClipSpec, position: float, num_lost: int = 0
) -> list[int]:
    """Choose the frames of a clip.

    Args:
        path: The video's name in messages.
        seconds: The times of all its frames, sorted.
        spec: Number of frames and their distance.
        position: Start among the possible ones: 0 the first, 1 the last.
        num_lost: Frames that are damaged, for the message.

    Returns:
        Their ranks, which do not decrease.

    Raises:
        VideoError: If there is no frame, or too few.
    """
    if not seconds:
        raise VideoError(f"{path}: no frame can be decoded")
    count = num_starts(seconds, spec)
    if count < 1 and not spec.repeat_last:
        lost = f" and {num_lost} damaged ones" if num_lost else ""
        raise VideoError(
            f"{path}: a clip of {spec.num_frames} frames at {_lack(seconds, spec)}{lost}; {NEEDED}"
        )
    count = max(count, 1)
    if spec.fps is None:
        start = min(int(position * count), count - 1)
        return [min(start + i * spec.stride, len(seconds) - 1) for i in range(spec.num_frames)]
    target = seconds[0] + position * (seconds[count - 1] - seconds[0])
    first = seconds[min(bisect_left(seconds, target), count - 1)]
    moments = (first + i / spec.fps for i in range(spec.num_frames))
    return [bisect_right(seconds, moment + TICK) - 1 for moment in moments]


def num_starts(seconds: Sequence[float], spec: ClipSpec) -> int:
    """How many frames a clip can begin with; none if the video is too short."""
    if spec.fps is None:
        return len(seconds) - (spec.num_frames - 1) * spec.stride
    return bisect_right(seconds, seconds[-1] - (spec.num_frames - 1) / spec.fps + TICK)


def _lack(seconds: Sequence[float], spec: ClipSpec) -> str:
    """Why a video is too short."""
    if spec.fps is None:
        span = (spec.num_frames - 1) * spec.stride + 1
        return f"stride {spec.stride} spans {span} frames, but the video has {len(seconds)}"
    length, lasts = (spec.num_frames - 1) / spec.fps, seconds[-1] - seconds[0]
    return f"{spec.fps} fps lasts {length:.2f} s, but the video's frames last {lasts:.2f} s"
