"""What the networks cost, counted on the meta device: no weights, no files, no arithmetic.

Two countings stand side by side. *FLOPs* are real ones: 2 per multiply-accumulate, attention
included. *Paper* is the counting of CMD Tables 8 and 9: multiply-accumulates, attention's products
left out, no guidance, no VAE; its training figures are one forward pass.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

ATTENTION_OPS = (torch.ops.aten.bmm, torch.ops.aten.baddbmm)  # nothing else here is batched


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
class Call:
    """Work of a network that is not trained by it.

    Attributes:
        network: On the meta device.
        run: Does the work with it, or with a copy.
        times: How often it is done.
    """

    network: nn.Module
    run: Callable[[Any], Any]
    times: float = 1


@dataclass(frozen=True)
class Part:
    """One network that is trained, how it is called, and what is on the device beside it.

    Attributes:
        name: As in the tables.
        network: On the meta device.
        run: ``(network, num)`` to the prediction for ``num`` samples, of which the loss is made.
        batch_size: Samples in a pass of one device.
        ema: Whether a moving average of the trained weights is kept beside them.
        accumulate: Passes before each step of the optimizer.
        precision: As Lightning's Trainer names it.
        buckets: Whether DDP keeps a second copy of the gradients, to send it.
        frozen: Networks that are used and not trained.
        before: What they do to the clips and captions of one sample before the pass.
        previews: What is done between steps to look at a few samples.
    """

    name: str
    network: nn.Module
    run: Callable[[Any, int], Tensor]
    batch_size: int = 1
    ema: bool = True
    accumulate: int = 1
    precision: str = "32-true"
    buckets: bool = False
    frozen: tuple[nn.Module, ...] = ()
    before: tuple[Call, ...] = ()
    previews: tuple[Call, ...] = ()


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
    """Forward and backward pass of one sample; what is checkpointed counts twice."""

    def passes() -> None:
        part.run(part.network, 1).square().mean().backward()
        part.network.zero_grad()

    with torch.device("meta"):
        return count(passes)


def num_parameters(network: nn.Module, *, trained: bool = False) -> int:
    """All parameters, or those that are trained."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad or not trained)


def calls_cost(calls: Iterable[Call]) -> Cost:
    """What calls cost one sample."""
    with torch.device("meta"), torch.no_grad():
        costs = (count(partial(call.run, call.network)) * call.times for call in calls)
        return sum(costs, Cost())
