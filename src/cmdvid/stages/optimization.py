"""How every stage optimises: the optimizer and schedule of its config, and gradient clipping."""

from collections.abc import Iterable
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_


def refuse_precision(stage: LightningModule) -> None:
    """Say that weights are kept in float32: steps of a thousandth would round to none in bf16.

    Raises:
        ValueError: If its trainer would cast them.
    """
    precision = str(stage.trainer.precision)
    if precision != "32-true" and not precision.endswith("-mixed"):
        raise ValueError(
            f"trainer.precision {precision}: {type(stage).__name__} keeps its weights in float32, "
            "or small steps of the optimizer and of the moving average would be lost; take "
            "bf16-mixed"
        )


def configure(
    network: nn.Module,
    optimizer: OptimizerCallable,
    lr_scheduler: LRSchedulerCallable | None,
    *,
    max_steps: int = -1,
) -> Any:
    """Lightning's optimizer configuration; a schedule counts optimizer steps, not epochs.

    Conditioners and tables of embeddings come as a group of their own, after the rest, marked for
    optimizers that treat matrices in a way of their own and leave others to a fallback, as Muon
    does; the rest ignore the mark. Orthogonalised steps have full size however weak the gradient:
    they wore a text tower down until left and right had the same embedding.

    Raises:
        ValueError: If the schedule ends before ``max_steps``, the trainer's; -1 is no limit.
    """
    apart = {
        id(p)
        for name, module in network.named_modules()
        if name == "conditioner" or isinstance(module, nn.Embedding)
        for p in module.parameters()
    }
    trained = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) not in apart]},
        {"params": [p for p in trained if id(p) in apart], "use_fallback": True},
    ]
    built = optimizer([group for group in groups if group["params"]])
    if lr_scheduler is None:
        return built
    scheduler = lr_scheduler(built)
    total = getattr(scheduler, "total_steps", None)  # OneCycleLR's, which raises at the next step
    if total is not None and max_steps > total:
        raise ValueError(
            f"trainer.max_steps is {max_steps}, but model.init_args.lr_scheduler "
            f"({type(scheduler).__name__}) ends after its total_steps, {total}: "
            "give both the same number"
        )
    return {"optimizer": built, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def clip(
    parameters: Iterable[nn.Parameter], limit: float | int | None, algorithm: str | None = None
) -> None:
    """Clip the global gradient norm, or each value if the ``algorithm`` is "value".

    Lightning 2.6 refuses to clip with a fused optimizer in mixed precision, although bf16
    gradients are not scaled; the stages call this instead.
    """
    if limit:
        (clip_grad_value_ if algorithm == "value" else clip_grad_norm_)(parameters, limit)
