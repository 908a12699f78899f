"""Our Fréchet distance beside torchmetrics' and the formula in NumPy and SciPy, and its cost.

    python benchmarks/frechet.py [--out benchmarks/frechet.md]

Features are random, but correlated as a network's are: a spectrum that falls by four decades.
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy
import torch
import torchmetrics
from jsonargparse import auto_cli
from scipy.linalg import sqrtm
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from tqdm import tqdm

from cmdvid.metrics.frechet import moments_distance
from cmdvid.metrics.i3d import I3D
from cmdvid.metrics.moments import FeatureStatistics
from cmdvid.metrics.resampling import bootstrap_frechet

BATCH = 16


class Given(nn.Module):
    """Takes features for clips, so that torchmetrics computes on ours."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def main(
    sizes: tuple[int, ...] = (16, 64, 512, 2048),
    num_features: int = 400,
    num_samples: int = 10_000,
    num_clips: int = 4,
    out: str | None = None,
) -> None:
    """Print two Markdown tables: the distances, and the seconds.

    Args:
        sizes: Numbers of feature vectors to compare at.
        num_features: Their width.
        num_samples: Feature vectors that are timed.
        num_clips: Clips of 16 frames of 128x128 pixels that I3D (random weights) is timed on.
        out: File to write the tables to as well.
    """
    torch.set_num_threads(1)
    text = agreement(sizes, num_features) + "\n" + cost(num_features, num_samples, num_clips)
    text += (
        f"\nOne thread; torch {torch.__version__}; "
        f"torchmetrics {torchmetrics.__version__}, SciPy {scipy.__version__}.\n"
    )
    print(text)
    if out:
        Path(out).write_text(text, encoding="utf-8")


def agreement(sizes: tuple[int, ...], num_features: int) -> str:
    lines = [
        "| n | covariance | ours | torchmetrics, float64 | NumPy and SciPy | largest difference |",
        "|---|---|---|---|---|---|",
    ]
    for n in tqdm(sizes, unit="size"):
        real, generated = (features(n, num_features, seed=seed) for seed in (1, 2))
        for unbiased in (True, False):
            values = [ours(real, generated, unbiased)]
            if unbiased:  # its only convention
                values.append(by_torchmetrics(real, generated))
            values.append(by_scipy(real, generated, unbiased))
            apart = max(abs(value / values[0] - 1) for value in values)
            shown = [f"{value:.9g}" for value in values]
            if not unbiased:
                shown.insert(1, "")
            share = "1/(n-1)" if unbiased else "1/n"
            lines.append(f"| {n} | {share} | {' | '.join(shown)} | {apart:.1e} |")
    return "\n".join(lines) + "\n"


def cost(num_features: int, num_samples: int, num_clips: int) -> str:
    real, generated = (features(num_samples, num_features, seed=seed).float() for seed in (1, 2))
    statistics = FeatureStatistics(num_features)

    def gather() -> None:
        for batch in real.split(BATCH):
            statistics.update(batch)

    gathered = seconds(gather)
    first, second = statistics.compute(), moments(generated)
    distance = seconds(lambda: moments_distance(first, second, True))
    theirs = seconds(lambda: by_torchmetrics(real.double(), generated.double()))
    plain = seconds(lambda: by_scipy(real, generated, True))
    resampled = seconds(lambda: bootstrap_frechet(real, generated, unbiased=True, num_resamples=40))
    network = I3D()
    clip = torch.randint(256, (1, 3, 16, 128, 128), dtype=torch.uint8)
    network(clip)  # the first call is slower
    forward = seconds(lambda: [network(clip) for _ in range(num_clips)]) / num_clips
    rows = {
        f"statistics of {num_samples:,} x {num_features}, batches of {BATCH}": gathered,
        "one distance from two statistics": distance,
        f"torchmetrics, 2 x {num_samples:,}, distance and all": theirs,
        f"NumPy and SciPy, 2 x {num_samples:,}, distance and all": plain,
        f"95 % interval, 40 resamples of 2 x {num_samples:,}": resampled,
        f"I3D, {num_samples:,} clips (from {num_clips})": forward * num_samples,
    }
    lines = ["| what | CPU seconds |", "|---|---|"]
    lines += [f"| {name} | {value:,.2f} |" for name, value in rows.items()]
    share = 100 * (gathered + distance) / (forward * num_samples)
    lines += ["", f"Statistics and distance cost {share:.3f} % of the features that I3D makes."]
    return "\n".join(lines) + "\n"


def features(n: int, d: int, *, seed: int) -> Tensor:
    """Correlated vectors; sets of different seeds differ a little in mean and covariance."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q
    spectrum = torch.logspace(0, -2, d, dtype=torch.float64)
    generator.manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64) * spectrum * (1 + 0.05 * seed)
    return x @ basis + 0.02 * seed


def moments(x: Tensor):
    statistics = FeatureStatistics(x.shape[1])
    for batch in x.split(BATCH):
        statistics.update(batch)
    return statistics.compute()


def ours(real: Tensor, generated: Tensor, unbiased: bool) -> float:
    return moments_distance(moments(real), moments(generated), unbiased)


def by_torchmetrics(real: Tensor, generated: Tensor) -> float:
    metric = FrechetInceptionDistance(Given(real.shape[1]), input_img_size=(real.shape[1],))
    metric.set_dtype(torch.float64)
    for x, is_real in ((real, True), (generated, False)):
        for batch in x.split(BATCH):
            metric.update(batch, real=is_real)
    return float(metric.compute())


def by_scipy(real: Tensor, generated: Tensor, unbiased: bool) -> float:
    """The formula as it is written."""
    (m1, c1), (m2, c2) = (
        (x.double().numpy().mean(0), np.cov(x.double().numpy(), rowvar=False, ddof=int(unbiased)))
        for x in (real, generated)
    )
    root = sqrtm(c1 @ c2).real
    return float(((m1 - m2) ** 2).sum() + np.trace(c1) + np.trace(c2) - 2 * np.trace(root))


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


if __name__ == "__main__":
    auto_cli(main)
