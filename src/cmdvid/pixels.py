"""Decoded frames to red, green and blue of the wanted size."""

from typing import Any, cast

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from einops import rearrange
from jaxtyping import UInt8

from cmdvid.frames import resize_and_crop


def pixels_of(
    frame: av.VideoFrame, convert: VideoReformatter, size: tuple[int, int]
) -> list[UInt8[np.ndarray, "h w"]]:
    """Red, green and blue of one decoded frame, upright and of the wanted size.

    Args:
        frame: As it left the decoder.
        convert: Serves all frames of a video; what it prepares for the first it keeps.
        size: Height and width, resized to and cropped to as ``resize_and_crop`` does.
    """
    if _fits_planes(frame, size):
        planar = convert.reformat(frame, format="gbrp", dst_color_range="JPEG", threads=1)
        top, left = (frame.height - size[0]) // 2, (frame.width - size[1]) // 2
        green, blue, red = (
            np.frombuffer(cast(Any, plane), np.uint8).reshape(frame.height, -1)[
                top : top + size[0], left : left + size[1]
            ]
            for plane in planar.planes
        )
        return [red, green, blue]
    rgb = convert.reformat(frame, format="rgb24", dst_color_range="JPEG", threads=1)
    image = torch.from_numpy(rgb.to_ndarray())
    if frame.rotation and frame.rotation % 90 == 0:
        image = torch.rot90(image, frame.rotation // 90)  # both count anticlockwise
    # as a batch from the start, or torch does not see that the channels come last, and takes twice
    # the time to resize
    batch = rearrange(image[None], "b h w c -> b c h w")
    return list(resize_and_crop(batch, size)[0].numpy())


def _fits_planes(frame: av.VideoFrame, size: tuple[int, int]) -> bool:
    """Whether to have red, green and blue apart: three times as fast where nothing is resized.

    The values are those of packed RGB, but FFmpeg 8 leaves columns of other widths unwritten and
    rounds otherwise at other heights and in other formats.
    """
    return (
        frame.format.name in ("yuv420p", "yuvj420p")
        and (frame.width % 16, frame.height % 2) == (0, 0)
        and not frame.rotation
        and max(size[0] / frame.height, size[1] / frame.width) == 1
    )
