"""One process of two that train: the command line again and again, so that it is imported once."""

import json
import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback

from cmdvid.__main__ import main


class DumpStep(Callback):
    """Keeps what the first step saw and made."""

    def __init__(self, folder: str):
        self.file, self.seen = folder + "/{}.pt", {}

    def on_train_start(self, trainer, stage):
        self.seen["weights"] = {k: whole(p) for k, p in stage.named_parameters()}

    def on_train_batch_start(self, trainer, stage, batch, batch_idx):
        if batch_idx == 0:
            self.seen["batch"] = tuple(batch)

    def on_before_optimizer_step(self, trainer, stage, optimizer):
        named = stage.named_parameters()
        gradients = {k: whole(p.grad) for k, p in named if p.grad is not None}
        self.seen.setdefault("gradients", gradients)

    def on_train_batch_end(self, trainer, stage, outputs, batch, batch_idx):
        self.seen.setdefault("loss", outputs["loss"].detach())
        Path(self.file).parent.mkdir(exist_ok=True)
        torch.save(self.seen, self.file.format(trainer.global_rank))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return tensor.detach().clone()


if __name__ == "__main__":
    for args in json.loads(sys.argv[1]):
        try:
            main(args)
        except SystemExit:  # what was wrong has been said
            continue
