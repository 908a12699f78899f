"""The oracle: reads shape, colour, background and motion from a clip's pixels, in closed form.

Whatever the best shape's template leaves unexplained is its residual, so a second shape, a ghost,
a blur or noise anywhere in the frame counts against a clip's validity. The thresholds were set on
512 real clips (H.264 at 64 x 64, resized to 32 x 32), whose worst frame has a residual of 0.019.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from cmdvid.data.scene import COLOURS, DEMO_SHAPES, DIRECTIONS, PLAIN, UNITS, ShapeAttributes
from cmdvid.data.segmentation import NOTHING, Segments, angles, residuals, take_apart

RESIDUAL = 0.08  # four times the worst real frame; a blur by a third of a shape's radius is above
RADIUS = (3.0, 8.5)  # of a clean shape, in units; rendered ones have 3.2 to 8.3
CLEAN = 0.9  # 15 of 16 frames; share of the frames that must hold one clean shape
TRAVEL = 4.0  # units a shape moves at least, from the first frame to the last
GROWTH = 0.3  # radius gained from first to last frame, as share of the mean; rendered: 0.6
BOUNCE = 1.5  # units of standard deviation of height; rendered: 2.4 and more
TURN = math.radians(30)  # from first to last frame; rendered: 60 degrees and more
SYMMETRY = {"square": 4, "triangle": 3, "star": 5, "cross": 4}
CHUNK = 64  # clips read at once: bounds the memory


class Reading(NamedTuple):
    """What the oracle sees in one clip."""

    attributes: ShapeAttributes  # the best guess, whether the clip is valid or not; without size
    valid: bool  # one clean shape in nearly every frame, really moving
    residual: float  # of the clip's worst frame, as share of the shape's energy
    displacement: float  # from the first frame to the last, in units


def read_attributes(
    clip: Float[Tensor, "3 l h w"] | UInt8[Tensor, "3 l h w"], shapes: Sequence[str] = DEMO_SHAPES
) -> Reading:
    """Read one clip, see ``read_batch``."""
    return read_batch(clip[None], shapes)[0]


def read_batch(
    clips: Float[Tensor, "b 3 l h w"] | UInt8[Tensor, "b 3 l h w"],
    shapes: Sequence[str] = DEMO_SHAPES,
) -> list[Reading]:
    """Read what clips show, from their pixels alone.

    Args:
        clips: RGB, uint8 or float in [-1, 1].
        shapes: The shapes to choose from.

    Raises:
        ValueError: If there are fewer than 2 frames or 24 pixels.
    """
    _check(clips)
    return [reading for chunk in clips.split(CHUNK) for reading in _read(chunk, shapes)]


def measure(
    clips: Float[Tensor, "b 3 l h w"] | UInt8[Tensor, "b 3 l h w"],
    shapes: Sequence[str] = DEMO_SHAPES,
) -> Float[Tensor, "b d"]:
    """What the oracle measures before it decides, as numbers of the size of 1.

    In order: how well each shape fits, in the mean and in the worst frame; the colours of shape and
    background and whether it is textured; where the shape is, how it moves and how evenly; its
    radius, its growth and the radius's unevenness.

    Args:
        clips: RGB, uint8 or float in [-1, 1].
        shapes: The shapes to choose from; d = 2 s + 16.

    Raises:
        ValueError: If there are fewer than 2 frames or 24 pixels.
    """
    _check(clips)
    return torch.cat([_measure(chunk, shapes) for chunk in clips.split(CHUNK)])


def _check(clips: Tensor) -> None:
    if clips.shape[2] < 2 or min(clips.shape[-2:]) < 24:
        raise ValueError(
            "the oracle reads clips of at least 2 frames of at least 24 x 24 pixels, got "
            f"{clips.shape[2]} frames of {clips.shape[3]} x {clips.shape[4]}"
        )


def _measure(clips: Tensor, shapes: Sequence[str]) -> Float[Tensor, "b d"]:
    pixels = _normalise(clips)
    unit = min(pixels.shape[-2:]) / UNITS
    found = take_apart(pixels)
    fit = torch.stack([residuals(found, shape) for shape in shapes], dim=1).clamp(min=0)
    fit = fit / (1 + fit)  # of clips without any shape too
    place = torch.stack([found.x, found.y], dim=1) / unit / UNITS
    step = torch.stack([_change(found.x), _change(found.y)], dim=1) / unit / UNITS
    size = found.radius / unit / RADIUS[1]
    numbers = [
        fit.mean(dim=2),
        fit.amax(dim=2),
        found.colour,
        found.background,
        found.textured[:, None].float(),
        place.mean(dim=2),
        step,
        _unevenness(place),
        torch.stack([size.mean(dim=1), _change(size)], dim=1),
        _unevenness(size)[:, None],
    ]
    return torch.cat(numbers, dim=1)


def _read(clips: Tensor, shapes: Sequence[str]) -> list[Reading]:
    pixels = _normalise(clips)
    unit = min(pixels.shape[-2:]) / UNITS
    segments = take_apart(pixels)
    fit = torch.stack([residuals(segments, shape) for shape in shapes], dim=1)  # b s l
    step = torch.stack([_change(segments.x), _change(segments.y)], dim=1) / unit
    motions, moving = _motions(segments, step, unit)
    if turnable := [shape for shape in shapes if shape in SYMMETRY]:
        still = (~moving).nonzero().flatten()
        turned, turning = _turned(Segments(*(v[still] for v in segments)), turnable, fit[still])
        for i, shape_fit in zip(still[turning].tolist(), turned[turning], strict=True):
            fit[i] = math.inf
            fit[i, [shapes.index(shape) for shape in turnable]] = shape_fit
            motions[i], moving[i] = "rotating", True

    best = fit.mean(dim=2).argmin(dim=1)
    residual = fit[torch.arange(len(best)), best]
    same = fit.argmin(dim=1) == best[:, None]  # the shape does not change into another
    radius = segments.radius / unit
    clean = same & (residual < RESIDUAL) & (radius > RADIUS[0]) & (radius < RADIUS[1])
    valid = moving & (clean.float().mean(dim=1) >= CLEAN)
    palette = torch.tensor(list(COLOURS.values()), device=pixels.device)
    nearest = torch.cdist(segments.colour, palette).argmin(dim=1)
    colours = [list(COLOURS)[i] for i in nearest.tolist()]
    backgrounds = _scenery(pixels, segments)
    worst, displacement = residual.amax(dim=1), step.norm(dim=1)
    return [
        Reading(
            ShapeAttributes(shapes[int(best[i])], colours[i], motions[i], backgrounds[i]),
            valid=bool(valid[i]),
            residual=float(worst[i]),
            displacement=float(displacement[i]),
        )
        for i in range(len(clips))
    ]


def _normalise(clips: Tensor) -> Float[Tensor, "b 3 l h w"]:
    """RGB in [0, 1], one pixel a unit at most: then one threshold serves all resolutions."""
    pixels = clips.float() / 255 if clips.dtype == torch.uint8 else (clips.float() + 1) / 2
    height, width = clips.shape[-2:]
    if (short := min(height, width)) > UNITS:
        size = (round(height * UNITS / short), round(width * UNITS / short))
        frames = rearrange(pixels, "b c l h w -> (b l) c h w")
        frames = F.interpolate(frames, size, mode="bilinear", antialias=True)
        pixels = rearrange(frames, "(b l) c h w -> b c l h w", b=len(clips))
    return pixels.clamp(0, 1)


def _change(values: Float[Tensor, "b l"]) -> Float[Tensor, " b"]:
    """From the first frame to the last, along the least-squares line."""
    time = torch.linspace(-0.5, 0.5, values.shape[1], device=values.device)
    return values @ time / time.square().sum()


def _unevenness(values: Float[Tensor, "*b l"]) -> Float[Tensor, "*b"]:
    """How far each step is from the mean step, as a deviation."""
    return values.diff(dim=-1).std(dim=-1, correction=0)


def _motions(
    segments: Segments, step: Float[Tensor, "b 2"], unit: float
) -> tuple[list[str], Bool[Tensor, " b"]]:
    """The motion of an upright shape, and whether it really moves so."""
    ways = torch.tensor(list(DIRECTIONS.values()), device=step.device)
    motions = [list(DIRECTIONS)[i] for i in (step @ ways.T).argmax(dim=1).tolist()]
    travelling = step.norm(dim=1) > TRAVEL
    growing = _change(segments.radius) / segments.radius.mean(dim=1) > GROWTH
    bouncing = segments.y.std(dim=1) / unit > BOUNCE
    for i in (~travelling).nonzero().flatten().tolist():
        if growing[i] or bouncing[i]:
            motions[i] = "growing" if growing[i] else "bouncing"
    return motions, travelling | growing | bouncing


def _turned(
    segments: Segments, shapes: Sequence[str], upright: Float[Tensor, "b s l"]
) -> tuple[Float[Tensor, "b t l"], Bool[Tensor, " b"]]:
    """How well turned templates fit, and where they turn in time and fit better than upright."""
    fits, turns = [], []
    for shape in shapes:
        angle = angles(segments, shape, SYMMETRY[shape])
        fits.append(residuals(segments, shape, angle))
        period = 2 * math.pi / SYMMETRY[shape]
        steps = angle.diff(dim=1)
        steps = steps - period * (steps / period).round()
        turns.append(steps.sum(dim=1).abs())
    fit, turn = torch.stack(fits, dim=1), torch.stack(turns, dim=1)
    error, best = fit.mean(dim=2).min(dim=1)
    turn = turn.gather(1, best[:, None])[:, 0]
    return fit, (turn > TURN) & (error < upright.mean(dim=2).amin(dim=1))


def _scenery(pixels: Float[Tensor, "b 3 l h w"], segments: Segments) -> list[str]:
    """The background's name."""
    greys = torch.tensor(list(PLAIN.values()), device=pixels.device)
    lightness = segments.background.mean(dim=1)
    nearest = (lightness[:, None] - greys).abs().argmin(dim=1)
    names = [list(PLAIN)[i] for i in nearest.tolist()]
    for i in segments.textured.nonzero().flatten().tolist():
        names[i] = _texture(pixels[i].mean(dim=0), segments.cover[i].abs() < NOTHING)
    return names


def _texture(grey: Float[Tensor, "l h w"], free: Bool[Tensor, "l h w"]) -> str:
    """Tell gradient, stripes and speckles by a plane's fit and by how much edges line up."""
    count = free.sum(dim=0)
    still = (grey * free).sum(dim=0) / count.clamp(min=1)
    seen = count > 0
    y, x = (axis.float() for axis in seen.nonzero(as_tuple=True))
    plane = torch.stack([x, y, torch.ones_like(x)], dim=1)
    values = still[seen][:, None]
    left = values - plane @ torch.linalg.lstsq(plane, values).solution
    if left.var() < 0.2 * values.var():
        return "gradient"
    inner = seen[1:, 1:] & seen[:-1, 1:] & seen[1:, :-1]
    dx, dy = (still[1:, 1:] - still[1:, :-1])[inner], (still[1:, 1:] - still[:-1, 1:])[inner]
    xx, yy, xy = dx @ dx, dy @ dy, dx @ dy
    coherence = torch.hypot(xx - yy, 2 * xy) / (xx + yy)  # 1 if all edges have one direction
    return "striped" if coherence > 0.6 else "speckled"
