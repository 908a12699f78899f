"""A callback for runs of several processes: what each drew first and what it learned."""

from pathlib import Path

import torch
from lightning.pytorch import Callback


class DumpRanks(Callback):
    def __init__(self, folder: str):
        self.folder, self.first = Path(folder), {}

    def on_train_start(self, trainer, stage):
        def record(_, inputs):
            noisy, t, *_ = inputs
            self.first = self.first or {"noise": noisy.clone(), "steps": t.clone()}

        stage.diffusion.denoiser.register_forward_pre_hook(record)

    def on_train_end(self, trainer, stage):
        file = self.folder / f"{trainer.global_rank}.pt"
        torch.save({"weights": dict(stage.state_dict()), **self.first}, file)
