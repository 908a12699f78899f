"""Frames to the size and to the pixels that are wanted, the same way for every clip."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F


def resize_and_crop(
    frames: UInt8[Tensor, "*b c h w"] | Float[Tensor, "*b c h w"], size: tuple[int, int]
) -> Tensor:
    """Scale frames until they cover ``size``, antialiased, and cut out its centre.

    Args:
        frames: uint8 is fastest, and on a channels-last view; the type stays.
        size: Height and width wanted.
    """
    (height, width), (h, w) = size, frames.shape[-2:]
    scale = max(height / h, width / w)
    scaled = max(height, round(h * scale)), max(width, round(w * scale))
    if scaled != (h, w):
        flat = frames.reshape(-1, *frames.shape[-3:])
        flat = F.interpolate(flat, size=scaled, mode="bilinear", antialias=True)
        frames = flat.reshape(*frames.shape[:-2], *scaled)
    top, left = (scaled[0] - height) // 2, (scaled[1] - width) // 2
    return frames[..., top : top + height, left : left + width]


def to_pixels(clips: Float[Tensor, "*b 3 l h w"]) -> UInt8[Tensor, "*b 3 l h w"]:
    """Quantise RGB from [-1, 1] to 0..255, halves rounded up; what lies outside is clipped.

    Files, sheets and metrics all have it. NaN is black, and no error: a preview ends no training.
    """
    levels = (clips.detach().float() + 1) * 127.5
    return (levels + 0.5).floor().clamp(0, 255).nan_to_num(0).to(torch.uint8)
