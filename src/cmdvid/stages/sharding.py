"""Networks cut up over processes (FSDP2): each keeps a share of weights, gradients and moments."""

from typing import Any, cast

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.optim import Optimizer

from cmdvid.models.diffusion import Diffusion
from cmdvid.models.layers import AdaLNBlock
from cmdvid.optim import Muon

BLOCKS = (AdaLNBlock, BasicTransformerBlock, ResnetBlock2D)  # whole one at a time, while they work


def is_sharded(trainer: Trainer) -> bool:
    """Whether networks are cut up; then all processes must call them at the same time."""
    return isinstance(trainer.strategy, ModelParallelStrategy)


def refuse_sharding(stage: LightningModule) -> None:
    """Say that a stage has nothing to cut up.

    Raises:
        ValueError: If its trainer would have it cut up.
    """
    if is_sharded(stage.trainer):
        raise ValueError(
            "trainer.strategy: only content and motion models are cut up, not "
            f"{type(stage).__name__}; take strategy ddp"
        )


def shard(stage: LightningModule, diffusion: Diffusion) -> None:
    """Cut up the networks that train and their averages, in place, if the trainer says so.

    The trainer's mesh has two axes: copies of the model ("data_parallel_size", by default one on
    each machine), each of which is cut over the second ("tensor_parallel_size", by default the
    devices of a machine). Weights lose the memory layout ``channels_last``, which cannot be cut.

    Args:
        stage: Whose trainer it is; called before there are optimizers.
        diffusion: Its networks.

    Raises:
        ValueError: If denoiser and average share weights, as with LoRA, or if checkpoints would be
            folders, which no other command reads.
    """
    if not is_sharded(stage.trainer):
        return
    if cast(Any, stage.trainer.strategy)._save_distributed_checkpoint:
        raise ValueError(
            "trainer.strategy.init_args.save_distributed_checkpoint must be false: a checkpoint in "
            "pieces could be read by nothing but another run of as many processes"
        )
    average = cast(nn.Module, diffusion.ema.module)
    if set(diffusion.denoiser.parameters()) & set(average.parameters()):
        raise ValueError(
            "trainer.strategy: a network that shares weights with its moving average, as with "
            "lora_rank, cannot be cut up; take strategy ddp, for LoRA trains very little"
        )
    for network in (diffusion.denoiser, diffusion.conditioner, *diffusion.averaged):
        _shard(network, stage.device_mesh)


def refuse_optimizer(stage: LightningModule, optimizer: Optimizer) -> None:
    """Say that an optimizer needs whole matrices.

    Raises:
        ValueError: If it would get pieces of them.
    """
    if is_sharded(stage.trainer) and isinstance(optimizer, Muon):
        raise ValueError(
            "model.init_args.optimizer: Muon needs whole matrices, but trainer.strategy cuts them "
            "up; take torch.optim.Adam, or strategy ddp"
        )


def refuse_other_order(stage: LightningModule, checkpoint: dict[str, Any]) -> None:
    """See that the optimizer's states of a checkpoint went to the weights that they belong to.

    Lightning goes by their numbers: those of the weights in the model here, but in the optimizer's
    groups on uncut models.

    Raises:
        ValueError: If the networks are cut up, but were not when the checkpoint was written.
    """
    if not any(isinstance(module, FSDPModule) for module in stage.modules()):
        return
    number = {id(p): n for n, p in enumerate(stage.parameters())}
    states = checkpoint.get("optimizer_states", [])
    for optimizer, state in zip(stage.trainer.optimizers, states, strict=False):
        ours = [[number[id(p)] for p in group["params"]] for group in optimizer.param_groups]
        if ours != [group["params"] for group in state["param_groups"]]:
            raise ValueError(
                "the checkpoint's optimizer is of a model that was not cut up; go on with strategy "
                "ddp (a model that was cut up can go on with any)"
            )


def _shard(network: nn.Module, mesh: DeviceMesh | None) -> None:
    if isinstance(network, FSDPModule) or not list(network.parameters()):
        return  # Lightning configures a model again in a second run; frozen towers are not seen
    network.to(memory_format=torch.contiguous_format)
    for block in [m for m in network.modules() if isinstance(m, BLOCKS)]:
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
