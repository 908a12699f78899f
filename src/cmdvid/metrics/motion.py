"""How much clips move: a frozen clip of good frames must not pass for a good video."""

import torch
from einops import rearrange, reduce
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

CELLS = 16  # along the short side; what changes within a cell alone is noise or grain
FROZEN = 0.5  # grey levels of dynamics, below which nothing moves that a viewer would see


class MotionStatistics(Metric):
    """Change over time, each clip counting alike, over all processes; in grey levels of 0 to 255.

    ``compute()`` gives the means of

    * ``frame_difference``: absolute change of a pixel from one frame to the next. Noise and flicker
      raise it too.
    * ``dynamics``: deviation over time of the clip's cells, 16 along the short side, after each
      frame's mean colour is taken away. Neither noise nor flicker counts much, slow drifts do.
    * ``frozen``: share of clips whose dynamics are below half a grey level,

    the standard errors ``*_error`` of the first two (infinite for one clip) and the ``count``.
    A clip of shuffled frames has much of both: compare with real clips, more is not better.
    """

    sums: Tensor
    squares: Tensor
    count: Tensor
    full_state_update = False

    def __init__(self, **metric_options) -> None:
        super().__init__(**metric_options)
        for name in ("sums", "squares"):
            self.add_state(name, torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, clip: UInt8[Tensor, "b 3 l h w"]) -> None:
        """Add a batch of clips.

        Raises:
            ValueError: If clips have one frame alone.
        """
        if clip.shape[2] < 2:
            raise ValueError(f"a clip needs at least 2 frames to have motion, got {clip.shape[2]}")
        moving = dynamics(clip)
        values = torch.stack([frame_difference(clip), moving, moving < FROZEN]).double()
        self.sums += values.sum(dim=1)
        self.squares += values.square().sum(dim=1)
        self.count += len(clip)

    def compute(self) -> dict[str, float]:
        """Means over all clips.

        Raises:
            ValueError: If no clip was added.
        """
        if not (count := int(self.count)):
            raise ValueError("no clips were measured, so there is no motion: call update first")
        means = self.sums / count
        spread = (self.squares / count - means.square()).clamp(min=0)  # variance of these clips
        errors = (spread / (count - 1)).sqrt() if count > 1 else torch.full_like(means, torch.inf)
        return {
            "frame_difference": float(means[0]),
            "frame_difference_error": float(errors[0]),
            "dynamics": float(means[1]),
            "dynamics_error": float(errors[1]),
            "frozen": float(means[2]),
            "count": count,
        }


def frame_difference(clip: UInt8[Tensor, "b 3 l h w"]) -> Float[Tensor, " b"]:
    """Mean absolute change of a pixel from one frame to the next, in grey levels."""
    return reduce(clip.float().diff(dim=2).abs(), "b c l h w -> b", "mean")


def dynamics(clip: UInt8[Tensor, "b 3 l h w"]) -> Float[Tensor, " b"]:
    """Deviation over time of coarse frames without their mean colour, in grey levels."""
    height, width = clip.shape[-2:]
    scale = min(CELLS / min(height, width), 1)
    cells = round(scale * height), round(scale * width)
    frames = rearrange(clip.float(), "b c l h w -> (b l) c h w")
    coarse = F.adaptive_avg_pool2d(frames, cells)
    coarse = coarse - coarse.mean(dim=(2, 3), keepdim=True)
    coarse = rearrange(coarse, "(b l) c y x -> b c l y x", b=len(clip))
    variance = coarse.var(dim=2, correction=0)
    return reduce(variance, "b c y x -> b", "mean").sqrt()
