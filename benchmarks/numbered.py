"""Videos whose frames bear their numbers, and small pictures to know frames without numbers by."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor

from cmdvid.frames import resize_and_crop

RATE, LENGTH = 25, 300
BITS, SQUARES = 9, 15  # of a frame's number; squares of which side fill the height


class Video(NamedTuple):
    """A file to read; ``truth`` holds small pictures of its frames where they bear no numbers."""

    path: str
    size: tuple[int, int]
    num_frames: int
    rate: float
    truth: UInt8[Tensor, "l h w"] | None


def bits_at(height: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Where the squares of a frame's number are: in the middle, so that no crop loses them."""
    side = height / SQUARES
    for bit in range(BITS):
        left = width / 2 + (bit - BITS / 2) * side
        yield slice(0, round(side)), slice(round(left), round(left + side))


def number_of(frame: UInt8[Tensor, "h w c"]) -> int:
    squares = [frame[place].float().mean() > 127 for place in bits_at(*frame.shape[:2])]
    return sum(2**bit for bit, is_white in enumerate(squares) if is_white)


def write_numbered(
    path: Path, height: int, width: int, codec: str, gop: int, b_frames: int | None = None
) -> None:
    """A drifting texture with some noise, so that there is work for the decoder, and numbers.

    ``b_frames`` in a row are the codec's own choice if not given.
    """
    rng = np.random.default_rng(0)
    texture = torch.from_numpy(rng.integers(0, 256, (1, 3, height // 8, width // 8), np.uint8))
    texture = torch.nn.functional.interpolate(texture.float(), (height, width), mode="bicubic")
    texture = texture[0].permute(1, 2, 0).clamp(0, 255).byte().numpy()
    noise = rng.integers(0, 8, (height, width, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.gop_size, stream.thread_count = gop, 1
        if b_frames is not None:
            stream.max_b_frames = b_frames
        if codec == "libx264":
            stream.options = {"preset": "veryfast"}
        else:
            stream.bit_rate = 20 * height * width
        for rank in range(LENGTH):
            image = np.roll(texture, (rank, 2 * rank), (0, 1)) // 2 + np.roll(noise, 5 * rank, 0)
            for bit, place in enumerate(bits_at(height, width)):
                image[place] = 255 if rank >> bit & 1 else 0
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def thumbnails(frames: UInt8[Tensor, "l h w c"]) -> UInt8[Tensor, "l 32 32"]:
    """The square in the middle, which is in clips of every size."""
    side = min(frames.shape[1:3])
    top, left = ((n - side) // 2 for n in frames.shape[1:3])
    square = frames[:, top : top + side, left : left + side]
    small = resize_and_crop(rearrange(square, "l h w c -> l c h w"), (32, 32))
    return small.float().mean(1).byte()


def given(path: Path) -> Video:
    """A video of the user's, with small pictures of its frames by decoding from the start."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate or RATE)
        frames = [torch.from_numpy(f.to_ndarray(format="rgb24")) for f in container.decode(stream)]
    size = frames[0].shape[0], frames[0].shape[1]
    truth = torch.cat([thumbnails(frame[None]) for frame in frames])
    return Video(str(path), size, len(frames), rate, truth)


def is_right(video: Video, start: int, frames: UInt8[Tensor, "l h w c"]) -> bool:
    if video.truth is None:
        return [number_of(frame) for frame in frames] == list(range(start, start + len(frames)))
    wanted = video.truth[start : start + len(frames)].float()
    return bool((thumbnails(frames).float() - wanted).abs().mean((1, 2)).max() < 4)
