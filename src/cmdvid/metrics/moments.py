"""Means and covariances of feature vectors: gathered in one pass, saved and loaded."""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Float32, Float64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torchmetrics import Metric

from cmdvid.whole import whole

KIND = "cmdvid feature statistics"


class FeatureMoments(NamedTuple):
    """Mean and spread of ``n`` feature vectors, in float64."""

    n: int
    mean: Float64[Tensor, " d"]
    scatter: Float64[Tensor, "d d"]  # sum over the vectors of the outer square of x - mean

    def covariance(self, unbiased: bool) -> Float64[Tensor, "d d"]:
        """Divide by n - 1 if ``unbiased`` (TATS, PVDM, CMD), else by n (StyleGAN-V).

        Raises:
            ValueError: If there are fewer than two vectors.
        """
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 clips, got {self.n}")
        return self.scatter / (self.n - 1 if unbiased else self.n)

    def save(self, path: str | Path, made_of: dict | None = None) -> None:
        """Write a safetensors file, whole or not at all.

        Args:
            path: File to write; its folder is made.
            made_of: What the features depend on, as JSON; ``load`` compares it.
        """
        values = {"mean": self.mean, "scatter": self.scatter}
        told = {"kind": KIND, "n": str(self.n), "made_of": json.dumps(made_of, sort_keys=True)}
        with whole(path, shared=True) as part:
            save_file({k: v.cpu().contiguous() for k, v in values.items()}, part, metadata=told)

    @classmethod
    def load(cls, path: str | Path, made_of: dict | None = None) -> "FeatureMoments":
        """Read what ``save`` wrote.

        Raises:
            ValueError: If it is no such file, or of features that depend on something else.
        """
        try:
            with safe_open(path, "pt") as file:
                told = file.metadata() or {}
                values = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path}: no feature statistics can be read ({error})") from error
        if told.get("kind") != KIND:
            raise ValueError(f"{path}: a safetensors file, but not of feature statistics")
        if (wanted := json.dumps(made_of, sort_keys=True)) != told["made_of"]:
            raise ValueError(
                f"{path}: statistics of other features: needed are those of {wanted}, found "
                f"{told['made_of']}; delete the file to have them made again"
            )
        return cls(int(told["n"]), values["mean"], values["scatter"])


class FeatureStatistics(Metric):
    """Mean and covariance of feature vectors, in one pass; float64 sums over all processes.

    Order, batches and processes change nothing beyond rounding (1e-12, relative to the largest
    squared feature). ``compute()`` gives ``FeatureMoments``.

    Args:
        num_features: Width of the vectors.
        keep: Also keep the vectors themselves, for ``cmdvid.metrics.resampling``; 10,000 of 400
            numbers are 16 MB.
        metric_options: Those of ``torchmetrics.Metric``.
    """

    n: Tensor
    sum: Tensor
    outer: Tensor
    kept: list[Tensor]
    full_state_update = False

    def __init__(self, num_features: int, *, keep: bool = False, **metric_options) -> None:
        super().__init__(**metric_options)
        self.num_features, self.keep = num_features, keep
        self.add_state("n", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        zeros = torch.zeros(num_features, dtype=torch.float64)
        self.add_state("sum", zeros, dist_reduce_fx="sum")
        self.add_state("outer", zeros.outer(zeros), dist_reduce_fx="sum")
        # Flat, for a process that saw nothing joins the others with an empty vector.
        self.add_state("kept", [], dist_reduce_fx="cat")

    def update(self, features: Float[Tensor, "b d"]) -> None:
        """Add a batch.

        Raises:
            ValueError: If the vectors are of another width, or not finite.
        """
        if features.shape[1] != self.num_features:
            raise ValueError(f"need features of {self.num_features}, got {features.shape[1]}")
        if not features.isfinite().all():
            raise ValueError("the features hold NaN or infinite values: look at the clips")
        x = features.detach().double()
        self.n += len(x)
        self.sum += x.sum(dim=0)
        self.outer += x.T @ x
        if self.keep:
            self.kept.append(features.detach().float().flatten())

    def compute(self) -> FeatureMoments:
        """Moments of all vectors.

        Raises:
            ValueError: If there is none.
        """
        if not (n := int(self.n)):
            raise ValueError("no clips were added, so there are no statistics: call update first")
        mean = self.sum / n
        return FeatureMoments(n, mean, self.outer - n * mean.outer(mean))

    def features(self) -> Float32[Tensor, "n d"]:
        """All vectors that were kept, of all processes; each process must call this.

        Their order is one of their values alone, see ``sorted_rows``.

        Raises:
            ValueError: If they were not kept.
        """
        if not self.keep:
            raise ValueError("the features were not kept: construct the metric with keep=True")
        with self.sync_context(should_sync=self._to_sync, should_unsync=True):
            kept = [self.kept] if isinstance(self.kept, Tensor) else self.kept
            flat = torch.cat([*kept, torch.empty(0, device=self.device)])
        return sorted_rows(rearrange(flat, "(n d) -> n d", d=self.num_features))


def sorted_rows(features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Bring vectors into an order that depends on their values alone.

    By their projection on a fixed direction, not by a hash: a rounding error moves a vector a
    little, if at all. What is drawn from rows by a seed is then the same for any order and number
    of processes in which they came.
    """
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(features.shape[1], generator=generator, dtype=torch.float64)
    return features[(features.double() @ direction.to(features.device)).argsort(stable=True)]
