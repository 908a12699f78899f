"""A coloured shape that moves over a background: its vocabulary, and its pixels.

Lengths are in units of 1/32 of the frame's shorter side, so a scene looks alike at any resolution.
A shape's radius is that of the circle with the same area: at one radius all shapes have equal area.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

UNITS = 32  # along the frame's shorter side

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
DIRECTIONS = {  # unit steps (right, down)
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
    "up left": (-math.sqrt(0.5), -math.sqrt(0.5)),
    "up right": (math.sqrt(0.5), -math.sqrt(0.5)),
    "down left": (-math.sqrt(0.5), math.sqrt(0.5)),
    "down right": (math.sqrt(0.5), math.sqrt(0.5)),
}
MOTIONS = (*DIRECTIONS, "rotating", "growing", "bouncing")  # the last three stay in place
COLOURS = {  # RGB in [0, 1]; far apart, and saturated where every background is nearly grey
    "red": (0.88, 0.12, 0.12),
    "yellow": (0.95, 0.82, 0.08),
    "green": (0.12, 0.68, 0.22),
    "cyan": (0.10, 0.78, 0.88),
    "blue": (0.14, 0.24, 0.90),
    "purple": (0.64, 0.16, 0.80),
}
PLAIN = {"dark": 0.10, "grey": 0.47, "light": 0.88}  # lightness in [0, 1]
TEXTURED = ("striped", "gradient", "speckled")
BACKGROUNDS = (*PLAIN, *TEXTURED)
SIZES = {"small": (4.6, 5.2), "large": (5.6, 6.4)}  # radius

DEMO_SHAPES = ("circle", "square", "triangle")
DEMO_MOTIONS = tuple(DIRECTIONS)
DEMO_BACKGROUNDS = tuple(PLAIN)

TRAVEL = (8.0, 12.0)  # from the first frame to the last
NEAR_CENTRE = 3.0  # how far from the frame's centre the path's middle lies at most
MARGIN = 0.5  # kept free between a shape and the frame's edge

# Sizes of shapes of radius one, from their areas: 4 s^2, 3 sqrt(3) t^2, 5 w^2, and the star's
# (pentagram of circumradius R) 5 R^2 sin(36) sin(18) / cos(36 degrees).
_SQUARE = math.sqrt(math.pi / 4)  # half side
_TRIANGLE = math.sqrt(math.pi / (3 * math.sqrt(3)))  # apothem
_CROSS = math.sqrt(math.pi / 5)  # width of an arm, a third of its length
_DEGREE = math.pi / 180
_STAR = math.sqrt(
    math.pi * math.cos(36 * _DEGREE) / (5 * math.sin(36 * _DEGREE) * math.sin(18 * _DEGREE))
)
_RING = math.sqrt(4 / 3)  # outer radius, twice the inner one

_EXTENT = {  # of an upright shape of radius one: left and right, up, down
    "circle": (1.0, 1.0, 1.0),
    "square": (_SQUARE, _SQUARE, _SQUARE),
    "triangle": (math.sqrt(3) * _TRIANGLE, 2 * _TRIANGLE, _TRIANGLE),
    "star": (_STAR * math.cos(18 * _DEGREE), _STAR, _STAR * math.cos(36 * _DEGREE)),
    "cross": (1.5 * _CROSS, 1.5 * _CROSS, 1.5 * _CROSS),
    "ring": (_RING, _RING, _RING),
}


@dataclass(frozen=True)
class ShapeAttributes:
    """What a scene shows, in the words of its caption; None where nothing is said.

    Raises:
        ValueError: If a word is not of the vocabulary.
    """

    shape: str
    colour: str
    motion: str
    background: str | None = None
    size: str | None = None

    def __post_init__(self) -> None:
        for name, words, free in (
            ("shape", SHAPES, False),
            ("colour", COLOURS, False),
            ("motion", MOTIONS, False),
            ("background", BACKGROUNDS, True),
            ("size", SIZES, True),
        ):
            value = getattr(self, name)
            if value not in words and not (free and value is None):
                raise ValueError(f"{name} must be one of {', '.join(words)}, got {value!r}")
        if (self.shape, self.motion) in (("circle", "rotating"), ("ring", "rotating")):
            raise ValueError(
                f"nobody can see a {self.shape} rotating: take another shape or motion"
            )


def coverage(
    shape: str,
    x: Float[Tensor, "*#n"],
    y: Float[Tensor, "*#n"],
    radius: Float[Tensor, "*#n"],
    softness: float = 1.0,
) -> Float[Tensor, "*n"]:
    """How much of each pixel an upright shape covers, in [0, 1].

    Args:
        shape: One of ``SHAPES``.
        x: Pixels right of the shape's centroid.
        y: Pixels below it.
        radius: Pixels, of the circle of equal area.
        softness: Width of the antialiased edge in pixels.
    """
    return (0.5 - _distance(shape, x, y, radius) / softness).clamp(0, 1)


def _distance(shape: str, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Signed distance to the outline, negative inside; exact but around convex corners."""
    if shape == "circle":
        return torch.hypot(x, y) - radius
    if shape == "ring":
        return (torch.hypot(x, y) - 0.75 * _RING * radius).abs() - 0.25 * _RING * radius
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - _SQUARE * radius
    if shape == "cross":
        long, short = torch.maximum(x.abs(), y.abs()), torch.minimum(x.abs(), y.abs())
        return torch.maximum(long - 1.5 * _CROSS * radius, short - 0.5 * _CROSS * radius)
    if shape == "triangle":
        slope = 0.5 * math.sqrt(3) * x.abs() - 0.5 * y
        return torch.maximum(slope, y) - _TRIANGLE * radius
    if shape == "star":  # the points that lie inside at least four of five half planes
        sides = [math.sin(72 * k * _DEGREE) * x + math.cos(72 * k * _DEGREE) * y for k in range(5)]
        second = torch.stack(torch.broadcast_tensors(*sides)).topk(2, dim=0).values[1]
        return second - _STAR * math.cos(72 * _DEGREE) * radius
    raise ValueError(f"shape must be one of {', '.join(SHAPES)}, got {shape!r}")


def render(
    attributes: ShapeAttributes,
    *,
    seed: int | Sequence[int] = 0,
    num_frames: int = 16,
    image_size: tuple[int, int] = (64, 64),
    free_position: bool = False,
) -> UInt8[Tensor, "3 l h w"]:
    """Draw a scene; equal arguments give equal pixels.

    Args:
        attributes: What to show; what is None is drawn from the seed.
        seed: Picks radius, speed, position, tints and textures.
        num_frames: At least 2; the way from first to last frame does not depend on it.
        image_size: Height and width, at least 24 pixels each.
        free_position: Let the path lie anywhere in the frame, not only near its centre.

    Raises:
        ValueError: If there are too few frames or pixels.
    """
    if num_frames < 2 or min(image_size) < 24:
        raise ValueError(
            f"a scene needs at least 2 frames of at least 24 x 24 pixels, got {num_frames} frames "
            f"of {image_size[0]} x {image_size[1]}"
        )
    rng = np.random.default_rng(seed)
    height, width = image_size
    unit = min(image_size) / UNITS
    backdrop = _backdrop(attributes.background or rng.choice(DEMO_BACKGROUNDS), image_size, rng)
    colour = np.array(COLOURS[attributes.colour]) + rng.uniform(-0.04, 0.04, 3)
    x, y, radius, angle = _track(attributes, num_frames, image_size, rng, free_position)

    per_frame = torch.from_numpy(np.stack([x, y, radius]) * unit).float()[..., None, None]
    right = torch.arange(width) + 0.5 - per_frame[0]
    down = torch.arange(height)[:, None] + 0.5 - per_frame[1]
    if angle.any():
        cos, sin = (torch.from_numpy(f(angle)).float()[:, None, None] for f in (np.cos, np.sin))
        right, down = cos * right + sin * down, cos * down - sin * right
    alpha = coverage(attributes.shape, right, down, per_frame[2])
    paint = torch.from_numpy(colour).float().clamp(0, 1)[:, None, None, None]
    frames = torch.lerp(backdrop[:, None], paint, alpha)
    return (frames * 255 + 0.5).to(torch.uint8)


def _backdrop(
    background: str, image_size: tuple[int, int], rng: np.random.Generator
) -> Float[Tensor, "3 h w"]:
    """A nearly grey still image, faintly tinted; textures keep clear of black and white."""
    height, width = image_size
    unit = min(image_size) / UNITS
    tint = rng.uniform(-0.025, 0.025, (3, 1, 1))
    grid_y, grid_x = np.mgrid[:height, :width] / unit
    if background in PLAIN:
        grey = np.full(image_size, PLAIN[background] + rng.uniform(-0.04, 0.04))
    elif background == "striped":
        turn = rng.integers(4) * np.pi / 4
        phase = (np.cos(turn) * grid_x + np.sin(turn) * grid_y) / rng.uniform(5, 8) + rng.uniform()
        grey = 0.5 + rng.uniform(0.15, 0.25) * np.clip(2 * np.sin(2 * np.pi * phase), -1, 1)
    elif background == "gradient":
        turn = rng.uniform(0, 2 * np.pi)
        ramp = np.cos(turn) * (grid_x - grid_x.mean()) + np.sin(turn) * (grid_y - grid_y.mean())
        grey = 0.5 + rng.uniform(0.25, 0.35) * ramp / np.abs(ramp).max()
    else:
        coarse = torch.from_numpy(rng.uniform(-1, 1, (1, 1, UNITS // 2, UNITS // 2)))
        smooth = torch.nn.functional.interpolate(
            coarse, (height, width), mode="bicubic", align_corners=False
        )
        grey = 0.5 + 0.25 * smooth[0, 0].numpy()
    return torch.from_numpy(grey + tint).float().clamp(0, 1)


def _track(
    attributes: ShapeAttributes,
    num_frames: int,
    image_size: tuple[int, int],
    rng: np.random.Generator,
    free_position: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Centroid x and y, radius (all in units) and clockwise angle (radians) of each frame."""
    size = attributes.size or rng.choice(list(SIZES))
    time = np.linspace(-0.5, 0.5, num_frames)
    radius = np.full(num_frames, rng.uniform(*SIZES[size]))
    angle = np.zeros(num_frames)
    motion = attributes.motion
    if motion == "growing":
        radius = radius * (1 + 0.6 * time)
    elif motion == "rotating":  # by 60 to 100 degrees; a square shows at most 90
        angle = rng.choice([-1, 1]) * rng.uniform(60, 100) * _DEGREE * (time + 0.5)

    side, up, down = np.array(_EXTENT[attributes.shape]) * radius.max() + MARGIN
    if motion == "rotating":
        side = up = down = math.hypot(side, down)  # no corner is further out
    limits = [UNITS * n / min(image_size) for n in reversed(image_size)]  # width, height
    room = np.array([limits[0] - 2 * side, limits[1] - up - down])
    step = np.array(DIRECTIONS.get(motion, (0.0, 1.0 if motion == "bouncing" else 0.0)))
    reach = np.min(room[step != 0] / np.abs(step[step != 0]), initial=TRAVEL[1])
    travel = min(rng.uniform(*TRAVEL), reach) * step

    low = np.array([side, up]) + np.abs(travel) / 2
    high = low + room - np.abs(travel)
    centre = np.array(limits) / 2
    if not free_position:
        low, high = (np.clip(v, centre - NEAR_CENTRE, centre + NEAR_CENTRE) for v in (low, high))
    middle = rng.uniform(low, high)
    if motion == "bouncing":
        time = 0.5 - np.abs(np.sin(2 * np.pi * (time + 0.5)))
    x, y = middle[:, None] + travel[:, None] * time
    return x, y, radius, angle
