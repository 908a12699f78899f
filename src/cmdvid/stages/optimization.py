"""How every stage optimises: the optimizer and schedule of its config, and gradient clipping."""

from collections.abc import Iterable
from typing import Any

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn
from torch.nn.utils import clip_grad_norm_


def configure(
    parameters: Iterable[nn.Parameter],
    optimizer: OptimizerCallable,
    lr_scheduler: LRSchedulerCallable | None,
) -> Any:
    """Lightning's optimizer configuration; a schedule counts optimizer steps, not epochs."""
    built = optimizer([p for p in parameters if p.requires_grad])
    if lr_scheduler is None:
        return built
    schedule = {"scheduler": lr_scheduler(built), "interval": "step"}
    return {"optimizer": built, "lr_scheduler": schedule}


def clip(parameters: Iterable[nn.Parameter], max_norm: float | int | None) -> None:
    """Clip the global gradient norm.

    Lightning 2.6 refuses to clip with a fused optimizer in mixed precision, although bf16
    gradients are not scaled; the stages call this instead.
    """
    if max_norm:
        clip_grad_norm_(parameters, max_norm)
