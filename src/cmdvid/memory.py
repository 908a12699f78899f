"""How much memory training steps and samples take, found by running them on fake tensors.

Torch's FakeTensorMode computes shapes and types in place of values, and its MemTracker follows
every storage from birth to death: a step of the largest network takes seconds and no memory.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from cmdvid.profiling import Call, Part


class Precision(NamedTuple):
    """What a precision of Lightning's Trainer means."""

    weights: torch.dtype
    autocast: torch.dtype | None = None


PRECISIONS = {
    "32-true": Precision(torch.float32),
    "bf16-mixed": Precision(torch.float32, torch.bfloat16),
    "16-mixed": Precision(torch.float32, torch.float16),
    "bf16-true": Precision(torch.bfloat16),
    "16-true": Precision(torch.float16),
}
SHORT = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}
FULL = (F.layer_norm, F.group_norm, F.softmax, torch.softmax, Tensor.softmax)


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step on one device.

    Attributes:
        states: Weights, gradients, Adam's moments, moving average and DDP's buckets.
        frozen: Weights of networks that are used and not trained.
        activations: What forward and backward pass add to that at their peak.
        other: What Adam's step, the encoding of clips or a preview adds at its peak, whichever
            is most.
    """

    states: float
    frozen: float
    activations: float
    other: float

    @property
    def peak(self) -> float:
        """The most at any time: encoding, passes, Adam's step and previews never meet."""
        return self.states + self.frozen + max(self.activations, self.other)


def training_memory(part: Part) -> Memory:
    """A training step as Lightning takes it after the first one: gradients are still there.

    Adam works on lists of tensors, as is PyTorch's default on GPUs. Left out: the allocator's
    waste, workspaces of convolutions, the CUDA context, and batches that wait to be read.
    """
    network = copy.deepcopy(part.network)
    _keep_kernels(network)
    with fake(part.precision) as precision:
        weights = [p for p in _fill(network, precision).parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(weights, foreach=True)
        for p in weights:
            p.grad = torch.empty_like(p)
        optimizer.step()
        owned = [network, optimizer, *(p.grad for p in weights)]

        def passes() -> None:
            with _autocast(precision):
                loss = part.run(network, part.batch_size).float().square().mean()
            loss.backward()

        activations, step = added(passes, owned), added(optimizer.step, owned)
        states = added(lambda: None, owned, count_owned=True)
        states += sum(map(_nbytes, weights)) * (part.ema + part.buckets)
    frozen = sum(map(weight_bytes, part.frozen))
    beside = [call_memory(call, part.precision) for call in (*part.before, *part.previews)]
    return Memory(states, frozen, activations, max([step, *beside]))


def call_memory(call: Call, precision: str) -> float:
    """Bytes that a call without gradients adds to its network's weights at its peak."""
    network = copy.deepcopy(call.network).requires_grad_(False)
    with fake(precision) as kind, torch.no_grad(), _autocast(kind):
        _fill(network, kind)
        return added(lambda: call.run(network), [network])


def sampling_memory(calls: Iterable[Call], precision: str) -> float:
    """Bytes at the peak of a sample: all weights, and the call that needs most beside them."""
    calls = list(calls)
    share = parse(precision).weights.itemsize / 4
    weights = share * sum(weight_bytes(call.network) for call in calls)
    return weights + max(call_memory(call, precision) for call in calls)


def weight_bytes(network: nn.Module) -> int:
    """Bytes of all weights as they are."""
    return sum(map(_nbytes, network.parameters()))


def parse(precision: Any) -> Precision:
    """Look up a precision of Lightning's Trainer.

    Raises:
        ValueError: If it is none that is counted here.
    """
    name = SHORT.get(str(precision), str(precision))
    if name not in PRECISIONS:
        raise ValueError(
            f"trainer.precision {precision}: memory is known of {', '.join(PRECISIONS)} alone"
        )
    return PRECISIONS[name]


@contextmanager
def fake(precision: Any) -> Iterator[Precision]:
    """Let tensors be fake ones that a GPU's kernels seem to work on."""
    with FakeTensorMode(), torch.device("cpu"), Kernels():
        yield parse(precision)


def added(call: Callable[[], Any], owned: list[Any], *, count_owned: bool = False) -> float:
    """Bytes at the peak of a call on fake tensors, less (or with) what there was before."""
    tracker = Tracker()
    tracker.track_external(*owned)
    before = 0 if count_owned else _total(tracker.get_tracker_snapshot())
    with tracker:
        call()
    return _total(tracker.get_tracker_snapshot("peak")) - before


class Tracker(MemTracker):
    """Torch's tracker without its statistics of each module.

    They take four fifths of its time, and it cannot keep them of weights that are not trained.
    """

    def _pre_fw_hook(self, *_: Any) -> None: ...
    def _post_fw_hook(self, *_: Any) -> None: ...
    def _pre_bw_hook(self, *_: Any) -> None: ...
    def _post_bw_hook(self, *_: Any) -> None: ...


class Kernels(TorchFunctionMode):
    """Lets the CPU's autocast and attention keep what the GPU's keep.

    Flash attention has no matrix; autocast leaves norms and softmax in fp32 there.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        mixed = torch.is_autocast_enabled("cpu")
        if func is F.scaled_dot_product_attention:
            names = ("query", "key", "value")
            qkv = [*args[:3], *(kwargs[name] for name in names[len(args) :])]
            dtype = torch.get_autocast_dtype("cpu") if mixed else qkv[0].dtype
            flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            return flash(*(x.to(dtype) for x in qkv))[0]
        if mixed and func in FULL:
            args = (args[0].float(), *args[1:])
        return func(*args, **kwargs)


def _autocast(precision: Precision) -> torch.autocast:
    dtype = precision.autocast
    return torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def _fill(network: nn.Module, precision: Precision) -> nn.Module:
    """Give a copy of a network on meta fake weights."""

    def empty(weight: Tensor) -> Tensor:
        kind = precision.weights if weight.is_floating_point() else weight.dtype
        return torch.empty(weight.shape, dtype=kind)

    return network._apply(empty)


def _keep_kernels(network: Any) -> None:
    """Let what a network computes twice run on the same kernels in the backward pass."""
    twice = partial(checkpoint, use_reentrant=False, context_fn=lambda: (nullcontext(), Kernels()))
    for module in network.modules():
        if vars(module).get("gradient_checkpointing"):
            module._gradient_checkpointing_func = twice


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.itemsize


def _total(snapshot: Mapping[torch.device, Mapping[Any, int]]) -> float:
    return sum(kinds["Total"] for kinds in snapshot.values())
