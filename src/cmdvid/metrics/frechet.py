"""The Fréchet distance between two sets of clips, by the Gaussians that fit their features.

FVD (Unterthiner et al. 2018) is this distance over the logits of I3D, see ``cmdvid.metrics.i3d``;
over any other features it must not be called so.
"""

import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor, nn
from torchmetrics import Metric

from cmdvid.metrics.moments import FeatureMoments, FeatureStatistics


def frechet_distance(
    mean1: Float[Tensor, " d"],
    cov1: Float[Tensor, "d d"],
    mean2: Float[Tensor, " d"],
    cov2: Float[Tensor, "d d"],
) -> Float64[Tensor, ""]:
    """Squared 2-Wasserstein distance of two Gaussians (Dowson and Landau 1982), in float64.

    ``|m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2)``. With ``C = F F'`` the last trace is the
    sum of the singular values of ``F1' F2``. It needs no root of rounding errors, so singular
    matrices (fewer clips than features) are as exact as others, and a set is at 0 from itself.

    Raises:
        ValueError: If a value is not finite.
    """
    mean1, cov1, mean2, cov2 = (x.double() for x in (mean1, cov1, mean2, cov2))
    if not all(bool(x.isfinite().all()) for x in (mean1, cov1, mean2, cov2)):
        raise ValueError("the statistics hold NaN or infinite values: look at the features")
    overlap = torch.linalg.svdvals(_factor(cov1).T @ _factor(cov2)).sum()
    distance = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * overlap
    return distance.clamp(min=0)


def moments_distance(real: FeatureMoments, generated: FeatureMoments, unbiased: bool) -> float:
    """The Fréchet distance of two sets of features.

    Args:
        real: Moments of one set.
        generated: Moments of the other; the distance is symmetric.
        unbiased: Covariances by 1/(n-1), else by 1/n.

    Raises:
        ValueError: If they are of different widths, or one has fewer than two vectors.
    """
    if real.mean.shape != generated.mean.shape:
        raise ValueError(
            f"features of {len(real.mean)} and of {len(generated.mean)} numbers have no distance: "
            "both sets need the same network"
        )
    pairs = ((m.mean.cpu(), m.covariance(unbiased).cpu()) for m in (real, generated))
    (mean1, cov1), (mean2, cov2) = pairs
    return float(frechet_distance(mean1, cov1, mean2, cov2))


class FrechetVideoDistance(Metric):
    """The Fréchet distance of generated clips from real ones; with I3D's features it is FVD.

    Args:
        features: Network from a uint8 clip (b 3 l h w) to features (b d), in eval mode; it tells
            ``d`` as its ``num_features``. Metrics may share one.
        unbiased: Covariances by 1/(n-1); else by 1/n. The protocol says which.
        keep_features: Keep features for ``cmdvid.metrics.resampling``; see ``FeatureStatistics``.
        real_statistics: Those of the real clips, if known; then no real clips are to be added.
        metric_options: Those of ``torchmetrics.Metric``.
    """

    full_state_update = False
    higher_is_better = False

    def __init__(
        self,
        features: nn.Module,
        *,
        unbiased: bool,
        keep_features: bool = False,
        real_statistics: FeatureMoments | None = None,
        **metric_options,
    ) -> None:
        super().__init__(**metric_options)
        self.network, self.unbiased = features, unbiased
        width = int(features.num_features)  # pyright: ignore[reportArgumentType]
        self.real = FeatureStatistics(width, keep=keep_features, **metric_options)
        self.generated = FeatureStatistics(width, keep=keep_features, **metric_options)
        self.known = real_statistics

    @property
    def real_statistics(self) -> FeatureMoments:
        """Of the real clips, over all processes."""
        return self.known or self.real.compute()

    @torch.no_grad()
    def update(self, clip: UInt8[Tensor, "b 3 l h w"], real: bool) -> None:
        """Add a batch of real or of generated clips; ``to_uint8`` quantises both alike.

        Raises:
            ValueError: If real clips are added to real statistics that were given.
        """
        if real and self.known:
            raise ValueError("real_statistics were given: add no real clips to them")
        (self.real if real else self.generated).update(self.network(clip))

    def compute(self) -> float:
        """The distance.

        Raises:
            ValueError: If there are fewer than two clips on a side.
        """
        return moments_distance(self.real_statistics, self.generated.compute(), self.unbiased)

    def reset(self) -> None:
        """Forget all clips; real statistics that were given stay."""
        super().reset()
        self.real.reset()
        self.generated.reset()


def _factor(cov: Float64[Tensor, "d d"]) -> Float64[Tensor, "d r"]:
    """A matrix F with F F' = cov, and of its rank: rounding errors have no root."""
    values, vectors = torch.linalg.eigh((cov + cov.T) / 2)
    sure = values > values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, sure] * values[sure].sqrt()
