"""How close clips are to their originals, over a whole data set."""

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.functional.image import structural_similarity_index_measure

from cmdvid.losses import psnr

MIN_SIDE = 6  # pixels; SSIM reflects five of them around its window


class Reconstruction(Metric):
    """Mean PSNR and SSIM of clips, each clip counting alike, in float64 over all processes.

    ``compute()`` gives ``psnr`` in dB, ``ssim``, with ``lpips`` that too, the standard error of
    each (``psnr_error``, infinite for one clip), and the ``count`` of clips.

    Args:
        lpips: From ``cmdvid.metrics.lpips.load_lpips``; metrics may share one.
        metric_options: Those of ``torchmetrics.Metric``.
    """

    full_state_update = False
    higher_is_better = True

    def __init__(self, lpips: nn.Module | None = None, **metric_options) -> None:
        super().__init__(**metric_options)
        self.lpips: Any = lpips
        self.scores = ("psnr", "ssim") if lpips is None else ("psnr", "ssim", "lpips")
        sums = [f"{score}_{kind}" for score in self.scores for kind in ("sum", "squares")]
        for name in ("count", *sums):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self, clip: Float[Tensor, "b 3 l h w"], reference: Float[Tensor, "b 3 l h w"]
    ) -> None:
        """Compare a batch of clips, both in [-1, 1].

        Raises:
            ValueError: If frames are too small for SSIM's window.
        """
        if min(clip.shape[-2:]) < MIN_SIDE:
            raise ValueError(
                f"SSIM needs frames of at least {MIN_SIDE}x{MIN_SIDE} pixels, "
                f"got {clip.shape[-2]}x{clip.shape[-1]}"
            )
        clip, reference = clip.float(), reference.float()
        self.count += len(clip)
        self._add("psnr", psnr(clip, reference))
        for one, other in zip(clip, reference, strict=True):  # one by one, to save memory
            self._add("ssim", _ssim(one, other))
            if self.lpips is not None:
                frames, originals = (rearrange(x, "c l h w -> l c h w") for x in (one, other))
                self._add("lpips", self.lpips(frames, originals).mean())

    def _add(self, score: str, values: Tensor) -> None:
        values = values.double()
        for kind, more in (("sum", values.sum()), ("squares", values.square().sum())):
            setattr(self, f"{score}_{kind}", getattr(self, f"{score}_{kind}") + more)

    def compute(self) -> dict[str, float]:
        """Means over all clips.

        Raises:
            ValueError: If no clip was compared.
        """
        count = int(self.count)
        if not count:
            raise ValueError("no clips were compared, so there is no PSNR: call update first")
        found: dict[str, float] = {"count": count}
        for score in self.scores:
            mean = float(getattr(self, f"{score}_sum")) / count
            # variance of these clips
            spread = max(float(getattr(self, f"{score}_squares")) / count - mean**2, 0.0)
            found[score] = mean
            found[f"{score}_error"] = (spread / (count - 1)) ** 0.5 if count > 1 else float("inf")
        return found


def _ssim(clip: Float[Tensor, "3 l h w"], reference: Float[Tensor, "3 l h w"]) -> Tensor:
    """Mean over the frames of SSIM (Wang et al. 2004), on pixels from 0 as it is defined."""
    frames, originals = (rearrange(x + 1, "c l h w -> l c h w") for x in (clip, reference))
    score = structural_similarity_index_measure(frames, originals, data_range=2.0)
    assert isinstance(score, Tensor)
    return score
