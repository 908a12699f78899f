"""Distances between frames, and running moments of latents."""

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from cmdvid.types import VideoLatent


def psnr(
    clip: Float[Tensor, "b 3 l h w"], reference: Float[Tensor, "b 3 l h w"]
) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio of each clip in dB; both in [-1, 1], so the peak is 2."""
    error = reduce((clip - reference).square(), "b c l h w -> b", "mean")
    return 10 * torch.log10(4 / error.clamp(min=1e-10))


class LatentMoments(Metric):
    """Mean and standard deviation of latents per channel, over all processes, in float64."""

    full_state_update = False

    def __init__(self):
        super().__init__()
        for name in ("content", "motion"):
            # Shapes are learnt from the first update: 0 broadcasts with any of them.
            self.add_state(f"{name}_sums", torch.zeros(1, 1, dtype=torch.float64), "sum")

    def update(self, latent: VideoLatent) -> None:
        """Add a batch of latents."""
        for name, value in latent._asdict().items():
            x = rearrange(value.double(), "b c ... -> c (b ...)")
            sums = torch.stack([torch.full_like(x[:, 0], x.shape[1]), x.sum(1), x.square().sum(1)])
            setattr(self, f"{name}_sums", getattr(self, f"{name}_sums") + sums)

    def compute(self) -> tuple[Float[Tensor, "2 c"], Float[Tensor, "2 m"]]:
        """Mean and deviation of each channel of content and of motion."""
        return self._moments("content"), self._moments("motion")

    def _moments(self, name: str) -> Tensor:
        count, total, squares = getattr(self, f"{name}_sums")
        mean = total / count
        deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
        return torch.stack([mean, deviation.clamp(min=1e-5)]).float()
