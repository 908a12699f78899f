"""`cmdvid encode`: clips to cached latents, so that stages two and three never decode a video."""

from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer

from cmdvid.data.datamodule import to_float
from cmdvid.data.latents import LatentWriter, write_manifest
from cmdvid.stages.networks import FrozenAutoencoder
from cmdvid.types import ClipBatch, LatentBatch


class EncodingStage(LightningModule):
    """Turn batches of clips into batches of unit-variance latents; trains nothing.

    Args:
        frozen: The trained autoencoder.
    """

    def __init__(self, frozen: FrozenAutoencoder):
        super().__init__()
        self.frozen = frozen

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """As the data module does, which plain loaders bypass."""
        return to_float(batch)

    def predict_step(self, batch: ClipBatch) -> LatentBatch:
        """Encode a batch."""
        return LatentBatch(self.frozen.encode(batch.clip), cast(Any, batch.condition), batch.index)


def encode(trainer: Trainer, datamodule: Any, *, ckpt: str | None, out: str) -> None:
    """Write the latents of the train and the val clips to ``out/train`` and ``out/val``.

    Raises:
        ValueError: If no checkpoint is given, or its latents were not measured.
    """
    if ckpt is None:
        raise ValueError("encode needs the autoencoder's checkpoint: add --ckpt RUN/last.ckpt")
    frozen = FrozenAutoencoder(ckpt)
    stage = EncodingStage(frozen)
    callbacks: list[Any] = cast(Any, trainer).callbacks
    for split in ("train", "val"):
        writer = LatentWriter(str(Path(out) / split))
        callbacks.append(writer)
        with torch.inference_mode():
            trainer.predict(stage, datamodule.encode_dataloader(split), return_predictions=False)
        callbacks.remove(writer)
    if trainer.is_global_zero:
        write_manifest(Path(out), {"autoencoder": frozen.fingerprint, "autoencoder_ckpt": ckpt})
