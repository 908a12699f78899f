"""A callback for jobs: who this process is, what it trained on, and what it learned."""

import json
import os
import socket
import time
from pathlib import Path

import torch
from lightning.pytorch import Callback


class Journal(Callback):
    """Writes `<rank>.jsonl`, a line for each step, and `<rank>.pt`, the weights in the end.

    Args:
        folder: Where to.
        seconds: That rank 0 sleeps after each step; the others a tenth of it, so that the ranks are
            never at the same place.
    """

    def __init__(self, folder: str, seconds: float = 0.0):
        self.folder, self.seconds = Path(folder), seconds

    def on_after_backward(self, trainer, stage):
        gradients = [p.grad.flatten() for p in stage.parameters() if p.grad is not None]
        self.gradient = torch.cat(gradients).double().norm().item()

    def on_train_batch_end(self, trainer, stage, outputs, batch, batch_idx):
        self.folder.mkdir(parents=True, exist_ok=True)
        environment = type(getattr(trainer.strategy, "cluster_environment", None)).__name__
        line = {
            "step": trainer.global_step,
            "rows": batch.index.tolist(),
            "gradient": self.gradient,
            "host": socket.gethostname(),
            "world": trainer.world_size,
            "environment": environment,
            "main": os.environ.get("MASTER_ADDR"),
            "start": int(os.environ.get("SLURM_RESTART_COUNT", 0)),
        }
        with (self.folder / f"{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._sleep(trainer)

    def on_predict_batch_end(self, trainer, stage, outputs, batch, batch_idx, dataloader_idx=0):
        self._sleep(trainer)

    def _sleep(self, trainer):
        time.sleep(self.seconds if trainer.global_rank == 0 else self.seconds / 10)

    def on_train_end(self, trainer, stage):
        weights = dict(stage.autoencoder.named_parameters())
        torch.save(weights, self.folder / f"{trainer.global_rank}.pt")
