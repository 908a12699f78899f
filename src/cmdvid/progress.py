"""How a long training goes: its throughput, for the logger, and lines, for the log of a job."""

import resource
import sys
import time
from datetime import timedelta
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode


class Throughput(Callback):
    """Log how fast a training is and what holds it up, every ``log_every_n_steps`` steps.

    Lightning's ThroughputMonitor waits for the GPU in each pass and must be told what a pass costs.
    This counts the operations of the first pass as :mod:`cmdvid.profiling` does: 2 for each
    multiply-accumulate, those computed twice included, and all that frozen networks do before.
    Logged are, of the steps since the last time and without validation:

    - ``speed/clips_per_s``: of all devices together;
    - ``speed/clips``: seen since the run began, stops included;
    - ``speed/data_wait``: share of the time between two passes, where the next batch is read. On a
      GPU, which works on meanwhile, no time may be lost to it;
    - ``speed/tflops`` of a device, and ``speed/utilisation``, its share of ``peak_tflops``;
    - ``speed/memory_gb``: most memory so far, of the first GPU, or of the process on a CPU;
    - ``train/gradient_norm``: before it is clipped; and ``train/lr``, of the first group.

    Args:
        peak_tflops: What a device can do in the precision of training, such as 312 for an A100 and
            989 for an H100 in bf16; none leaves the utilisation out.
    """

    def __init__(self, peak_tflops: float | None = None):
        if peak_tflops is not None and peak_tflops <= 0:
            raise ValueError(f"Throughput.peak_tflops must be above 0, got {peak_tflops}")
        self.peak_tflops = peak_tflops
        self.clips, self.used = 0, 0  # seen, and those of them that optimizer steps have used
        self.flops = 0.0
        self.counter: FlopCounterMode | None = None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: a resumed run reads again what no step has used."""
        return {"clips": self.used}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on where the checkpoint stood."""
        self.clips = self.used = state_dict["clips"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clocks."""
        self.step = trainer.global_step
        self._begin()
        self.ended = self.begun

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Add up the wait for data, and count the operations of the first pass."""
        self.waited += time.perf_counter() - self.ended
        if not self.flops:
            self.counter = FlopCounterMode(display=False)
            self.counter.__enter__()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Log the learning rate and the norm of all gradients."""
        if (trainer.global_step + 1) % cast(Any, trainer).log_every_n_steps == 0:
            grads = [p.grad for g in optimizer.param_groups for p in g["params"]]
            norm: Any = get_total_norm([grad for grad in grads if grad is not None])
            whole = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of pieces
            pl_module.log("train/gradient_norm", whole, batch_size=1)
            pl_module.log("train/lr", optimizer.param_groups[0]["lr"], batch_size=1)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the clips, and log after the steps that Lightning logs."""
        self._stop_counting()
        clips = len(batch.index) * trainer.world_size
        self.clips, self.since = self.clips + clips, self.since + clips
        self.passes += 1
        stepped, self.step = trainer.global_step != self.step, trainer.global_step
        if stepped:
            self.used = self.clips
        if stepped and self.step % cast(Any, trainer).log_every_n_steps == 0:
            pl_module.log_dict(self._measured(pl_module.device), batch_size=1)
            self._begin()
        self.ended = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clocks."""
        self.paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the clocks run again."""
        if not trainer.sanity_checking:
            pause = time.perf_counter() - self.paused
            self.begun, self.ended = self.begun + pause, self.ended + pause

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave nothing switched on that what follows would run under."""
        self._stop_counting()

    def _stop_counting(self) -> None:
        if self.counter is not None:
            self.counter.__exit__(None, None, None)
            self.flops, self.counter = float(self.counter.get_total_flops()), None

    def _begin(self) -> None:
        self.begun, self.waited, self.since, self.passes = time.perf_counter(), 0.0, 0, 0

    def _measured(self, device: torch.device) -> dict[str, float]:
        elapsed = time.perf_counter() - self.begun
        tflops = self.flops * self.passes / elapsed / 1e12
        measured = {
            "speed/clips_per_s": self.since / elapsed,
            "speed/clips": float(self.clips),
            "speed/data_wait": self.waited / elapsed,
            "speed/tflops": tflops,
            "speed/memory_gb": _peak_memory(device) / 1e9,
        }
        return measured | ({"speed/utilisation": tflops / p} if (p := self.peak_tflops) else {})


class ProgressLines(Callback):
    """Print a line every ``log_every_n_steps`` steps of training, where no bar could be drawn.

    It tells the step, what the stage shows in a progress bar, steps a second and the time left.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.start, self.begun = trainer.global_step, time.monotonic()
        self.step = self.start

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print a line after the steps that are logged, and after the last one."""
        stepped, self.step = trainer.global_step != self.step, trainer.global_step
        total = trainer.estimated_stepping_batches  # may be inf
        due = self.step % cast(Any, trainer).log_every_n_steps == 0 or self.step == total
        if not (stepped and due and trainer.is_global_zero):
            return
        speed = (self.step - self.start) / (time.monotonic() - self.begun)
        values = (f"{k} {v:.4g}" for k, v in trainer.progress_bar_metrics.items() if k != "v_num")
        place, rest = f"step {self.step}", ""
        if total != float("inf"):
            place += f"/{total}"
            rest = f", {timedelta(seconds=round((total - self.step) / speed))} left"
        print(f"{', '.join([place, *values])}, {speed:.3g} steps/s{rest}", flush=True)


def _peak_memory(device: torch.device) -> float:
    """Bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
