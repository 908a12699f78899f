"""What the networks cost, counted on the meta device: no weights, no files, no arithmetic.

Two countings stand side by side. *FLOPs* are real ones: 2 per multiply-accumulate, attention
included. *Paper* is the counting of CMD Tables 8 and 9: multiply-accumulates, attention's products
left out, no guidance, no VAE; its training figures are one forward pass.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from cmdvid.models.autoencoder import Autoencoder
from cmdvid.models.conditioning import LabelConditioner
from cmdvid.models.motion_dit import MotionDiT
from cmdvid.types import VideoLatent

ATTENTION_OPS = (torch.ops.aten.bmm, torch.ops.aten.baddbmm)  # nothing else here is batched
WIDTHS = (320, 640, 1280, 1280)  # of the U-Nets of Stable Diffusion and ModelScope
# CMD Tables 8 (512x512x16, one forward) and 9 (512x1024x16; 50 and 100 steps), TFLOPs; Table 10
PAPER = {"autoencoder": 0.77, "content": 0.34, "motion": 0.14, "ModelScope": 9.41}
PAPER_SAMPLING = {50: 46.8, 100: 92.1}
PAPER_MODELSCOPE_SAMPLING = 939.0
PAPER_PARAMETERS = {"CMD": 1.6e9, "ModelScope": 1.7e9}
PAPER_MEMORY = {"autoencoder": 8.93, "content": 21.5, "motion": 18.7, "ModelScope": 69.6}  # GB


@dataclass(frozen=True)
class Cost:
    """Operations of some work, in both countings."""

    flops: float = 0.0  # 2 per multiply-accumulate, attention included
    paper: float = 0.0  # multiply-accumulates without attention's products

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.paper + other.paper)

    def __mul__(self, times: float) -> "Cost":
        return Cost(times * self.flops, times * self.paper)


@dataclass(frozen=True)
class Part:
    """One network that is trained, and how it is called.

    Attributes:
        name: As in the tables.
        network: On the meta device.
        run: ``(network, num)`` to the prediction for ``num`` samples, of which the loss is made.
        batch_size: Samples in a training step of one device.
        ema: Whether a moving average of the trained weights is kept beside them.
    """

    name: str
    network: nn.Module
    run: Callable[[Any, int], Tensor]
    batch_size: int = 1
    ema: bool = True


def count(call: Callable[[], Any]) -> Cost:
    """Count what ``call`` computes, on any device; attention as its plain products."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    by_op = counter.get_flop_counts()["Global"]
    attention = sum(by_op.get(op, 0) for op in ATTENTION_OPS)
    total = counter.get_total_flops()
    return Cost(total, (total - attention) / 2)


def forward_cost(part: Part) -> Cost:
    """One forward pass of one sample."""
    with torch.device("meta"), torch.no_grad():
        return count(lambda: part.run(part.network, 1))


def training_cost(part: Part) -> Cost:
    """Forward and backward pass of one sample, nothing computed twice."""
    with torch.device("meta"):
        return count(lambda: part.run(part.network, 1).square().mean().backward())


def num_parameters(network: nn.Module, *, trained: bool = False) -> int:
    """All parameters, or those that are trained."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad or not trained)


def peak_memory(part: Part) -> float:
    """Estimate the peak memory of a training step on one device, in bytes, all in fp32.

    Weights, gradients, Adam's two moments and the moving average, and what autograd keeps of a
    forward pass, each storage once, attention without its matrix (as fused kernels do). Left out:
    temporary buffers, the allocator's waste, frozen networks outside the part. Under bf16-mixed
    the kept activations take between half of this and all of it. Torch's own MemTracker in
    FakeTensorMode needs 30 to 100 s for a network of the paper's; this takes about a second.
    """
    kept: dict[int, Any] = {}
    weights = {p.untyped_storage()._cdata for p in part.network.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage  # held, so that no other gets its address
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.device("meta"), FusedAttention(), hooks:
        loss = part.run(part.network, part.batch_size).square().mean()
    activations = sum(storage.nbytes() for storage in kept.values())
    del loss
    trained = num_parameters(part.network, trained=True)
    copies = 4 if part.ema else 3  # gradient, two moments, average
    return 4.0 * (num_parameters(part.network) + copies * trained) + activations


class FusedAttention(TorchFunctionMode):
    """Lets attention on the meta device keep what a flash kernel keeps, not its matrix."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            return flash(*args[:3])[0] if len(args) >= 3 else flash(*_qkv(kwargs))[0]
        return func(*args, **(kwargs or {}))


def _qkv(kwargs: dict[str, Any]) -> list[Tensor]:
    return [kwargs[name] for name in ("query", "key", "value")]


def autoencoder_part(network: Autoencoder, clip: Sequence[int], batch_size: int = 1) -> Part:
    """The autoencoder on frames of (l, h, w); stage one keeps no moving average."""

    def run(net: Any, num: int) -> Tensor:
        return net(torch.empty(num, network.channels, *clip))[0]

    return Part("autoencoder", network, run, batch_size, ema=False)


def diffusion_part(
    name: str,
    denoiser: nn.Module,
    conditioner: nn.Module,
    shape: Sequence[int],
    *,
    batch_size: int = 1,
    **context: Sequence[int],
) -> Part:
    """A denoiser and its conditioner on one part of a latent; ``context`` by shape."""

    def run(net: Any, num: int) -> Tensor:
        inputs = {key: torch.empty(num, *size) for key, size in context.items()}
        t = torch.zeros(num, dtype=torch.long)
        return net[0](torch.empty(num, *shape), t, _embed(net[1], num), **inputs)

    return Part(name, nn.ModuleList([denoiser, conditioner]), run, batch_size)


def _embed(conditioner: Any, num: int) -> Tensor:
    """The embedding without its checks, which read values that the meta device does not have."""
    if isinstance(conditioner, LabelConditioner):
        return conditioner.embedding(torch.zeros(num, dtype=torch.long))
    tokens = torch.zeros(num, conditioner.context_length, dtype=torch.long)
    return conditioner.tower(tokens)


def paper_parts(height: int = 512, width: int = 512) -> dict[str, Part]:
    """The paper's networks for Stable Diffusion 2.1-base at this size in pixels, and ModelScope."""
    h, w = height // 8, width // 8
    heads: Any = (5, 10, 20, 20)  # diffusers calls it a width, and its type says one number
    with torch.device("meta"):
        autoencoder = Autoencoder(4, gated_mlp=True)  # Table 5
        unet = UNet2DConditionModel(
            **{"block_out_channels": WIDTHS, "cross_attention_dim": 1024, "sample_size": 64},
            attention_head_dim=heads,
            use_linear_projection=True,
        )
        motion = MotionDiT(
            **{"channels": 4, "condition_dim": 1024, "width": 1152, "depth": 28},
            content_patch=8,  # Table 7
        )
        modelscope = UNet3DConditionModel(
            block_out_channels=WIDTHS, cross_attention_dim=1024, attention_head_dim=64
        )

    def denoise(net: Any, num: int, *shape: int) -> Tensor:
        text, t = torch.empty(num, 77, 1024), torch.zeros(num, dtype=torch.long)
        return net(torch.empty(num, *shape), t, text).sample

    def move(net: Any, num: int) -> Tensor:
        noisy, t = torch.empty(num, 8, 16, (h + w) // 2), torch.zeros(num, dtype=torch.long)
        return net(noisy, t, torch.empty(num, 1024), content=torch.empty(num, 4, h, w))

    return {
        "autoencoder": autoencoder_part(autoencoder, (16, h, w)),
        "content": Part("content", unet, lambda net, num: denoise(net, num, 4, h, w)),
        "motion": Part("motion", motion, move),
        "ModelScope": Part("ModelScope", modelscope, lambda net, n: denoise(net, n, 4, 16, h, w)),
    }


def coding_cost(network: Autoencoder, clip: Sequence[int]) -> tuple[Cost, Cost]:
    """Encode and decode frames of (l, h, w)."""
    with torch.device("meta"), torch.no_grad():
        frames = torch.empty(1, network.channels, *clip)
        latent = VideoLatent(*(part.detach() for part in network.encode(frames)))
        return count(lambda: network.encode(frames)), count(lambda: network.decode(latent))
