"""A clip taken apart in closed form: background, one coloured shape, and where it is.

A frame is modelled as ``background + cover * (colour - background)``. The background is read off
the frame's rim, the colour off the pixels that differ most from it; projecting a frame on their
difference gives each pixel's cover, whose moments give the shape's centroid and area.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cmdvid.data.scene import UNITS, coverage

RIM = 1.5  # width of the frame's rim that shows background alone in most frames, in units
TEXTURE = 0.06  # spread of lightness along the rim between quartiles, above which it is textured
NOTHING = 0.15  # cover below this is taken for noise
SOFTNESS = 1.5  # pixels; edges are softer after coding and resizing than as rendered


class Segments(NamedTuple):
    """Clips taken apart; colours in [0, 1], lengths in pixels."""

    background: Float[Tensor, "b 3"]
    textured: Bool[Tensor, " b"]
    colour: Float[Tensor, "b 3"]
    cover: Float[Tensor, "b l h w"]  # 0 is background, 1 the shape; not clipped
    energy: Float[Tensor, "b l"]  # of all that is not background; a fully covered pixel has 1
    x: Float[Tensor, "b l"]  # centroid
    y: Float[Tensor, "b l"]
    radius: Float[Tensor, "b l"]  # of the circle of equal area

    def offsets(self) -> tuple[Float[Tensor, "b l 1 w"], Float[Tensor, "b l h 1"]]:
        """How far right of and below the centroid each column and row of pixels lies."""
        height, width = self.cover.shape[-2:]
        right = torch.arange(width, device=self.x.device) + 0.5 - self.x[..., None, None]
        down = torch.arange(height, device=self.y.device)[:, None] + 0.5 - self.y[..., None, None]
        return right, down


def take_apart(pixels: Float[Tensor, "b 3 l h w"]) -> Segments:
    """Separate the shape from its background.

    Args:
        pixels: RGB in [0, 1].
    """
    height, width = pixels.shape[-2:]
    unit = min(height, width) / UNITS
    background, textured = _backgrounds(pixels, math.ceil(RIM * unit))

    contrast = pixels - background[:, :, None, None, None]
    # Textures are grey: in front of one only the hue tells the shape from the background.
    contrast -= contrast.mean(dim=1, keepdim=True) * textured[:, None, None, None, None]
    energy = contrast.square().sum(dim=1)
    num_sure = round(25 * unit**2) * pixels.shape[2]  # a third of the smallest shape
    sure = energy.flatten(1).topk(num_sure, dim=1, sorted=False).indices
    sure = sure[:, None].expand(-1, 3, -1)
    colour = pixels.flatten(2).gather(2, sure).median(dim=2).values
    axis = contrast.flatten(2).gather(2, sure).median(dim=2).values
    norm = axis.square().sum(dim=1).clamp(min=1e-6)

    cover = torch.einsum("bclhw,bc->blhw", contrast, axis / norm[:, None])
    weight = cover.clamp(0, 1) * (cover > NOTHING)
    area = weight.sum(dim=(2, 3)).clamp(min=1e-6)
    right = torch.arange(width, device=pixels.device) + 0.5
    down = torch.arange(height, device=pixels.device) + 0.5
    return Segments(
        background=background,
        textured=textured,
        colour=colour,
        cover=cover,
        energy=energy.sum(dim=(2, 3)) / norm[:, None],
        x=(weight.sum(dim=2) @ right) / area,
        y=(weight.sum(dim=3) @ down) / area,
        radius=(area / math.pi).sqrt(),
    )


def _backgrounds(
    pixels: Float[Tensor, "b 3 l h w"], depth: int
) -> tuple[Float[Tensor, "b 3"], Bool[Tensor, " b"]]:
    """The rim's colour, and whether it is textured."""
    rim = torch.ones(pixels.shape[-2:], dtype=torch.bool, device=pixels.device)
    rim[depth:-depth, depth:-depth] = False
    still = pixels[..., rim].median(dim=2).values  # b 3 n
    low, high = still.mean(dim=1).quantile(torch.tensor([0.25, 0.75]).to(still), dim=1)
    return still.median(dim=2).values, high - low > TEXTURE


def residuals(
    segments: Segments, shape: str, angle: Float[Tensor, "b l"] | None = None
) -> Float[Tensor, "b l"]:
    """Energy that a shape's template leaves unexplained in each frame, as share of the template's.

    Args:
        segments: The clips.
        shape: Whose template to place at the centroid, with the area measured.
        angle: Turn it clockwise by so many radians.
    """
    template = _template(segments, shape, angle)
    # |contrast - template * axis|^2 / |axis|^2, where contrast projected on axis is cover
    left = segments.energy + (template * (template - 2 * segments.cover)).sum(dim=(2, 3))
    return left / template.square().sum(dim=(2, 3)).clamp(min=1e-6)


def angles(segments: Segments, shape: str, symmetry: int) -> Float[Tensor, "b l"]:
    """How far a shape is turned clockwise, in radians within its symmetry, by its moments.

    Args:
        segments: The clips.
        shape: Whose upright template is the reference.
        symmetry: The number of turns onto itself.
    """
    right, down = segments.offsets()
    near = torch.hypot(right, down) < 2 * segments.radius[..., None, None]
    power = torch.complex(*torch.broadcast_tensors(right, down)) ** symmetry * near
    found = (segments.cover.clamp(0, 1) * power).sum(dim=(2, 3)).angle()
    upright = (_template(segments, shape, None) * power).sum(dim=(2, 3)).angle()
    turned = torch.polar(torch.ones_like(found), found - upright)
    return turned.angle() / symmetry


def _template(
    segments: Segments, shape: str, angle: Float[Tensor, "b l"] | None
) -> Float[Tensor, "b l h w"]:
    right, down = segments.offsets()
    if angle is not None:
        cos, sin = angle.cos()[..., None, None], angle.sin()[..., None, None]
        right, down = cos * right + sin * down, cos * down - sin * right
    return coverage(shape, right, down, segments.radius[..., None, None], SOFTNESS)
