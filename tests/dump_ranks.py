"""A callback for runs of several processes: what each drew first and what it learned."""

from pathlib import Path

import torch
from lightning.pytorch import Callback


class DumpRanks(Callback):
    def __init__(self, folder: str):
        self.folder, self.first = Path(folder), {}

    def on_train_start(self, trainer, stage):
        scheduler = stage.diffusion.scheduler
        add_noise = scheduler.add_noise

        def record(x, noise, t):
            self.first = self.first or {"noise": noise.clone(), "steps": t.clone()}
            return add_noise(x, noise, t)

        scheduler.add_noise = record

    def on_train_end(self, trainer, stage):
        file = self.folder / f"{trainer.global_rank}.pt"
        torch.save({"weights": dict(stage.state_dict()), **self.first}, file)
