"""The scores of an evaluation with their intervals: of a run by level (CMD Table 4a), by protocol.

A level says how much of a clip is generated, from nothing (the real clip, which calibrates the
judge) to everything.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics import Metric

from cmdvid.metrics.inception import inception_score
from cmdvid.metrics.motion import FROZEN
from cmdvid.metrics.reconstruction import Reconstruction
from cmdvid.metrics.resampling import bootstrap_frechet, frechet_at_infinity, in_their_span
from cmdvid.metrics.shapes import wilson_interval
from cmdvid.protocols import WITH_REALS, Protocol
from cmdvid.report import Interval
from cmdvid.types import Condition

REAL, RECONSTRUCTION = "real", "reconstruction"
MOTION, GENERATED = "motion given content", "generated"
LEVELS = (REAL, RECONSTRUCTION, MOTION, GENERATED)
NORMAL = 1.959964  # 97.5 % quantile
SUBSETS = 16  # clips below which no line through distances of subsets means anything


def fraction(value: float, n: int) -> Interval:
    """Give a share of ``n`` clips its Wilson interval."""
    return Interval(value, *wilson_interval(round(value * n), n), n)


def mean(value: float, standard_error: float, n: int) -> Interval:
    """Give a mean over ``n`` clips its normal interval."""
    if not math.isfinite(standard_error):
        return Interval(value, None, None, n)
    half = NORMAL * standard_error
    return Interval(value, value - half, value + half, n)


def single_scores(vectors: Mapping[str, Float[Tensor, "n _"]]) -> dict[str, Interval]:
    """The scores of clips that need no others: of motion, captions and classes.

    Args:
        vectors: By metric, see ``cmdvid.vectors``.

    Raises:
        ValueError: If there are too few clips for the Inception Score's splits.
    """
    found: dict[str, Interval] = {}
    if (moved := vectors.get("motion")) is not None:
        change, dynamics = moved.double().T
        found["frame_difference"], found["dynamics"] = _mean(change), _mean(dynamics)
        found["frozen"] = fraction(float((dynamics < FROZEN).double().mean()), len(moved))
    if (similar := vectors.get("clipsim")) is not None:
        found["clipsim"] = _mean(similar[:, 0].double())
    if (classes := vectors.get("inception")) is not None:
        score, spread = inception_score(classes)
        found["inception_score"] = Interval(score, score - spread, score + spread, len(classes))
    return found


def frechet_scores(
    protocol: Protocol,
    real: Mapping[str, Float[Tensor, "n _"]],
    clips: Mapping[str, Float[Tensor, "m _"]],
) -> dict[str, Interval]:
    """Fréchet distances of clips from real ones, and what they would be for infinitely many.

    Args:
        protocol: Names the kind of covariances.
        real: Vectors of the real clips, by metric.
        clips: Vectors of the clips, by metric.
    """
    found = {}
    how = {"unbiased": protocol.unbiased, "seed": protocol.seed}
    for metric in (metric for metric in WITH_REALS if metric in real):
        pair, n = in_their_span(real[metric], clips[metric]), len(clips[metric])
        distance = bootstrap_frechet(*pair, **how)
        found[metric] = Interval(distance.value, distance.low, distance.high, n)
        if min(map(len, pair)) >= SUBSETS:
            limit = frechet_at_infinity(*pair, **how)
            found[f"{metric}_infinite"] = Interval(limit.value, None, None, n)
    return found


def averaged(repeats: Sequence[Mapping[str, Interval]]) -> dict[str, Interval]:
    """The means of scores over repeats, and of the ends of their intervals."""
    found = {}
    for key in repeats[0]:
        parts = [scores[key] for scores in repeats]
        ends = [
            [x for part in parts if (x := getattr(part, end)) is not None]
            for end in ("low", "high")
        ]
        low, high = (sum(x) / len(x) if x else None for x in ends)
        found[key] = Interval(sum(p.value for p in parts) / len(parts), low, high, parts[0].n)
    return found


class Scoreboard:
    """Metrics for each test set and level.

    Args:
        names: Of the test sets.
        judge: Metric ``update(clip, captions)`` whose ``compute()`` gives fractions by name and
            their ``count``; none for videos that nothing can judge.
        lpips: From ``cmdvid.metrics.lpips.load_lpips``, for reconstructions.
        device: Where clips are compared.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        judge: Metric | None,
        lpips: nn.Module | None = None,
        device: torch.device,
    ):
        def judges() -> dict[str, Metric]:
            return {level: judge.clone().to(device) for level in LEVELS} if judge else {}

        def fidelities() -> dict[str, Reconstruction]:
            rebuilt, still = Reconstruction(lpips), Reconstruction()
            return {"psnr": rebuilt.to(device), "psnr_mean_frame": still.to(device)}

        self.judges = {name: judges() for name in names}
        self.fidelities = {name: fidelities() for name in names}

    def update(self, name: str, clips: Mapping[str, Tensor], condition: Condition) -> None:
        """Add a batch of a test set: its real clips and those of the other levels, by level."""
        clips = {level: clip.float() for level, clip in clips.items()}
        real = clips[REAL]
        still = real.mean(dim=2, keepdim=True).expand_as(real)
        self.fidelities[name]["psnr"].update(clips[RECONSTRUCTION], real)
        self.fidelities[name]["psnr_mean_frame"].update(still, real)
        for level, judge in self.judges[name].items():
            judge.update(clips[level], condition)

    def scores(self) -> dict[str, dict[str, dict[str, Interval]]]:
        """All scores over all processes; each process must call this."""
        return {name: self._levels(name) for name in self.judges}

    def _levels(self, name: str) -> dict[str, dict[str, Interval]]:
        found: dict[str, dict[str, Interval]] = {}
        for level, judge in self.judges[name].items():
            values = dict(judge.compute())
            n = int(values.pop("count"))
            found[level] = {key: fraction(float(value), n) for key, value in values.items()}
        rebuilt = found.setdefault(RECONSTRUCTION, {})
        for key, metric in self.fidelities[name].items():
            values = metric.compute()
            names = {"psnr": key} | ({"ssim": "ssim", "lpips": "lpips"} if key == "psnr" else {})
            for score, name in ((x, name) for x, name in names.items() if x in values):
                count = int(values["count"])
                rebuilt[name] = mean(values[score], values[f"{score}_error"], count)
        return found


def _mean(values: Float[Tensor, " n"]) -> Interval:
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else math.inf
    return mean(float(values.mean()), error, len(values))
