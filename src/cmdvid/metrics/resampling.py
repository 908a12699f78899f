"""What a Fréchet distance is worth: its interval at this number of clips, and at infinitely many.

Both work on features that were kept, see ``FrechetVideoDistance(keep_features=True)``.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from tqdm import tqdm

from cmdvid.metrics.frechet import moments_distance
from cmdvid.metrics.moments import FeatureMoments

QUANTILES = (0.025, 0.975)


class Bootstrap(NamedTuple):
    """A distance, its 95 % interval, and how far resampling alone moves it up."""

    value: float
    low: float
    high: float
    bias: float


class Extrapolation(NamedTuple):
    """A line through distances over 1/n; ``value`` is where n is infinite."""

    value: float
    slope: float
    points: tuple[tuple[int, float], ...]  # n, and the mean distance of subsets of that size


def feature_moments(
    features: Float[Tensor, "n d"], counts: Int[Tensor, " n"] | None = None
) -> FeatureMoments:
    """Moments of feature vectors, each taken once or ``counts`` times."""
    x = features.double()
    weights = torch.ones(len(x), device=x.device) if counts is None else counts
    weights = weights.double()
    n = int(weights.sum())
    mean = weights @ x / n
    centred = (x - mean) * weights.sqrt()[:, None]
    return FeatureMoments(n, mean, centred.T @ centred)


def in_their_span(
    one: Float[Tensor, "n d"], other: Float[Tensor, "m d"]
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "m k"]]:
    """The vectors in coordinates of the space that they span, if they are fewer than features.

    Distances stay as they are, and a hundred of few clips cost next to nothing.
    """
    both = torch.cat([one, other]).double()
    if len(both) >= both.shape[1]:
        return one, other
    axes = torch.linalg.qr(both.T).Q
    return one.double() @ axes, other.double() @ axes


def bootstrap_frechet(
    real: Float[Tensor, "n d"] | FeatureMoments,
    generated: Float[Tensor, "m d"],
    *,
    unbiased: bool,
    num_resamples: int = 100,
    seed: int = 0,
) -> Bootstrap:
    """A 95 % percentile interval by resampling the clips of both sets (Efron 1979).

    A set drawn with replacement has fewer different clips, which moves every replicate up as a
    smaller n would. The interval is therefore that of the replicates, moved by what their median
    lies above the distance itself, which is given as ``bias``. It tells how a distance at this n
    scatters over other draws of clips, nothing of other trainings.

    Args:
        real: Features of the real clips, or their moments, which are then held fixed.
        generated: Features of the generated clips.
        unbiased: Covariances by 1/(n-1), else by 1/n.
        num_resamples: Of both sets; each costs about what the distance itself does.
        seed: Of the draws; order the features by ``sorted_rows`` first.

    Raises:
        ValueError: If there are too few resamples for a quantile, or too few clips.
    """
    if num_resamples < 40:
        raise ValueError(f"2.5 % quantiles need at least 40 resamples, got {num_resamples}")
    generator = torch.Generator().manual_seed(seed)
    fixed = real if isinstance(real, FeatureMoments) else feature_moments(real)
    value = moments_distance(fixed, feature_moments(generated), unbiased)
    replicates = []
    for _ in tqdm(range(num_resamples), desc="bootstrap", leave=False, delay=5):
        drawn = real if isinstance(real, FeatureMoments) else _redrawn(real, generator)
        other = _redrawn(generated, generator)
        replicates.append(moments_distance(drawn, other, unbiased))
    found = torch.tensor(replicates, dtype=torch.float64)
    bias = float(found.median()) - value
    low, high = (found.quantile(q).item() - bias for q in QUANTILES)
    return Bootstrap(value, max(low, 0.0), max(high, 0.0), bias)


def frechet_at_infinity(
    real: Float[Tensor, "n d"] | FeatureMoments,
    generated: Float[Tensor, "m d"],
    *,
    unbiased: bool,
    sizes: Sequence[int] | None = None,
    num_repeats: int = 2,
    seed: int = 0,
) -> Extrapolation:
    """Extrapolate to infinitely many clips, as the bias falls like 1/n (Chong and Forsyth 2020).

    Distances of seeded subsets, equally large on both sides, are fitted by a line over 1/n. At few
    clips for many features (n < 2 d, say) the bias is no line yet, and the result too high.

    Args:
        real: Features of the real clips, or their moments, which are then held fixed.
        generated: Features of the generated clips.
        unbiased: Covariances by 1/(n-1), else by 1/n.
        sizes: Numbers of clips; by default 8 from a quarter of them to all, evenly in 1/n.
        num_repeats: Subsets of each size.
        seed: Of the subsets; order the features by ``sorted_rows`` first.

    Raises:
        ValueError: If there are fewer than two sizes, or one larger than there are clips.
    """
    sides = [generated] if isinstance(real, FeatureMoments) else [real, generated]
    most = min(map(len, sides))
    if sizes is None:
        inverse = torch.linspace(4 / most, 1 / most, 8, dtype=torch.float64)
        sizes = sorted({int(n) for n in (1 / inverse).round()})
    if len(set(sizes)) < 2 or min(sizes) < 2 or max(sizes) > most:
        raise ValueError(f"need two sizes or more from 2 to {most}, the clips at hand, got {sizes}")
    generator = torch.Generator().manual_seed(seed)
    points = []
    for n in tqdm(sizes, desc="extrapolation", leave=False, delay=5):
        found = []
        for _ in range(num_repeats):
            drawn = [feature_moments(_subset(side, n, generator)) for side in sides]
            first = real if isinstance(real, FeatureMoments) else drawn[0]
            found.append(moments_distance(first, drawn[-1], unbiased))
        points.append((n, sum(found) / num_repeats))
    value, slope = _line(torch.tensor(points, dtype=torch.float64))
    return Extrapolation(value, slope, tuple(points))


def _redrawn(features: Tensor, generator: torch.Generator) -> FeatureMoments:
    """Moments of as many vectors, drawn with replacement: weights in place of copies."""
    n = len(features)
    counts = torch.randint(n, (n,), generator=generator).bincount(minlength=n)
    drawn = counts > 0  # about 63 %
    return feature_moments(features[drawn], counts[drawn].to(features.device))


def _subset(features: Tensor, n: int, generator: torch.Generator) -> Tensor:
    return features[torch.randperm(len(features), generator=generator)[:n]]


def _line(points: Float64[Tensor, "p 2"]) -> tuple[float, float]:
    """Intercept and slope of the least-squares line over 1/n."""
    x = torch.stack([torch.ones(len(points), dtype=torch.float64), 1 / points[:, 0]], dim=1)
    intercept, slope = torch.linalg.lstsq(x, points[:, 1:]).solution[:, 0].tolist()
    return intercept, slope
