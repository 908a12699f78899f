"""The one way from a model's clips to the 8-bit pixels that all metrics of videos read."""

from jaxtyping import Float, UInt8
from torch import Tensor

from cmdvid.frames import to_pixels


def to_uint8(clip: Float[Tensor, "*b 3 l h w"]) -> UInt8[Tensor, "*b 3 l h w"]:
    """Quantise RGB from [-1, 1] to 0..255, halves rounded up; what lies outside is clipped.

    Generated clips pass it before they are scored, as real ones did when their files were written:
    a difference in rounding would be measured as one of content. Pixels that came from 8 bits as
    ``x / 127.5 - 1`` return unchanged.

    Raises:
        ValueError: If a pixel is not finite.
    """
    if not clip.isfinite().all():
        raise ValueError("the clip has pixels that are NaN or infinite, which have no 8-bit value")
    return to_pixels(clip)
