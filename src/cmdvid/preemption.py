"""A run that a scheduler ends: saved between two batches, exit with the code that asks for more."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from cmdvid.signals import LISTENER, Notice


class Preemption(Callback):
    """Save and exit once any process has noted a signal; see `cmdvid.signals`.

    Lightning's own requeueing saves inside the signal handler, which hangs when the processes are
    not at the same place, and may save in the middle of a step.
    """

    def __init__(self) -> None:
        self.step, self.whole = 0, True

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take SIGTERM back: Lightning puts a handler before ours that runs a collective."""
        LISTENER.listen()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take SIGTERM back here too, for runs without a sanity check."""
        LISTENER.listen()
        self.step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look after each step of the optimizer; accumulated gradients are in no checkpoint."""
        self.whole = trainer.global_step != self.step
        self.step = trainer.global_step
        if trainer.global_step != trainer.max_steps:  # else the run is over and ends by itself
            self._look(trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Look during validation too; the rest of it is left out when the run goes on."""
        self._look(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take SIGTERM back here too, for `encode`, which predicts."""
        LISTENER.listen()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Leave `encode`, each process for itself, for they have different numbers of batches.

        Nothing is saved: shards are written whole, and the next run goes on with what is missing.

        Raises:
            SystemExit: If this process has noted a signal.
        """
        if (notice := LISTENER.noted) != Notice.NONE:
            LISTENER.ignore()
            print(f"stopped by a signal on process {trainer.global_rank}", flush=True)
            raise SystemExit(notice.exit_code)

    def _look(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Agree, save, leave.

        Raises:
            SystemExit: On all processes, if one of them has noted a signal.
        """
        if not self.whole:
            return
        # Lightning itself broadcasts and waits in each step of DDP, so this costs little more
        noted = torch.tensor(int(LISTENER.noted), device=pl_module.device)
        notice = Notice(int(trainer.strategy.reduce(noted, reduce_op="max")))
        if notice == Notice.NONE:
            return
        # before the save, which ends in a barrier: srun ends the others once the first has left
        LISTENER.ignore()
        if not trainer.sanity_checking:
            save_last(trainer)
        if trainer.is_global_zero:
            print(f"stopped by a signal at step {trainer.global_step}", flush=True)
        raise SystemExit(notice.exit_code)


def save_last(trainer: Trainer) -> None:
    """Write last.ckpt, by the callback that keeps it.

    Through a private method: it remembers path and step, so that the callback neither counts up the
    name nor saves once more when it sees the exit.
    """
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.save_last:
            callback._save_last_checkpoint(trainer, callback._monitor_candidates(trainer))
