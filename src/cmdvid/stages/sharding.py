"""Networks cut up over processes (FSDP2): each keeps a share of weights, gradients and moments."""

import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from cmdvid.models.diffusion import Diffusion
from cmdvid.models.layers import AdaLNBlock
from cmdvid.optim import Muon

BLOCKS = (AdaLNBlock, BasicTransformerBlock, ResnetBlock2D)  # whole one at a time, while they work


class Sharded(ModelParallelStrategy):
    """Lightning's strategy, with checkpoints in one file, as any other command reads.

    Args:
        data_parallel_size: Copies of the model; one on each machine by default.
        tensor_parallel_size: Devices that a copy is cut over; those of a machine by default.
    """

    def __init__(
        self,
        data_parallel_size: Literal["auto"] | int = "auto",
        tensor_parallel_size: Literal["auto"] | int = "auto",
    ):
        super().__init__(
            data_parallel_size, tensor_parallel_size, save_distributed_checkpoint=False
        )

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load weights and optimizers, unless their states would go to other weights.

        Lightning goes by their numbers: those of the weights in the model here, but in the
        optimizer's groups on uncut models.

        Raises:
            ValueError: If the networks were not cut up when the checkpoint was written, and its
                optimizer has them in another order.
        """
        path = self.broadcast(checkpoint_path)
        saved = torch.load(path, map_location="cpu", mmap=True, weights_only=weights_only)
        assert self.lightning_module is not None
        number = {id(p): n for n, p in enumerate(self.lightning_module.parameters())}
        states = saved.get("optimizer_states", [])
        for optimizer, state in zip(self.optimizers, states, strict=False):
            ours = [[number[id(p)] for p in group["params"]] for group in optimizer.param_groups]
            if ours != [group["params"] for group in state["param_groups"]]:
                raise ValueError(
                    f"{path}: its optimizer is of a model that was not cut up; go on with "
                    "strategy ddp (a model that was cut up can go on with any)"
                )
        return super().load_checkpoint(path, weights_only)


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
        ValueError: If denoiser and average share weights, as with LoRA, or if the strategy is
            Lightning's own.
    """
    if not is_sharded(stage.trainer):
        return
    if not isinstance(stage.trainer.strategy, Sharded):
        raise ValueError(
            "trainer.strategy: take cmdvid.stages.sharding.Sharded, as configs/cluster/fsdp.yaml "
            "does; checkpoints of Lightning's ModelParallelStrategy are in pieces, and could be "
            "read by nothing but another run of as many processes"
        )
    average = diffusion.ema.module
    if set(diffusion.denoiser.parameters()) & set(average.parameters()):
        raise ValueError(
            "trainer.strategy: a network that shares weights with its moving average, as with "
            "lora_rank, cannot be cut up; take strategy ddp, for LoRA trains very little"
        )
    # what the networks give is never changed in place
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for network in (diffusion.denoiser, diffusion.conditioner, *diffusion.averaged):
        _shard(network, stage.device_mesh)


def refuse_optimizer(stage: LightningModule, configured: Any) -> None:
    """Say that an optimizer needs whole matrices.

    Args:
        stage: Whose trainer it is.
        configured: The optimizer, alone or with a schedule, as the trainer gets it.

    Raises:
        ValueError: If it would get pieces of them.
    """
    optimizer = configured["optimizer"] if isinstance(configured, dict) else configured
    if is_sharded(stage.trainer) and isinstance(optimizer, Muon):
        raise ValueError(
            "model.init_args.optimizer: Muon needs whole matrices, but trainer.strategy cuts them "
            "up; take torch.optim.Adam, or strategy ddp"
        )


def _shard(network: nn.Module, mesh: DeviceMesh | None) -> None:
    if isinstance(network, FSDPModule) or not list(network.parameters()):
        return  # Lightning configures a model again in a second run; frozen towers are not seen
    network.to(memory_format=torch.contiguous_format)
    for block in [m for m in network.modules() if isinstance(m, BLOCKS)]:
        fully_shard(block, mesh=mesh)
    # else what validation made whole would stay so, beside the shares that training moves it to
    fully_shard(network, mesh=mesh, reshard_after_forward=True)
