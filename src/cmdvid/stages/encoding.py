"""`cmdvid encode`: clips to cached latents, so that stages two and three never decode a video."""

from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer

from cmdvid.data.datamodule import VideoDataModule
from cmdvid.data.latents import LatentWriter, write_manifest
from cmdvid.stages.networks import FrozenAutoencoder
from cmdvid.stages.sizes import check_sides
from cmdvid.types import ClipBatch, LatentBatch

SPLITS = ("train", "val")


class EncodingStage(LightningModule):
    """Turn batches of clips into batches of unit-variance latents; trains nothing.

    Args:
        frozen: The trained autoencoder.
    """

    def __init__(self, frozen: FrozenAutoencoder):
        super().__init__()
        self.frozen = frozen

    def setup(self, stage: str) -> None:
        """Refuse clips that cannot be encoded, before older latents are removed."""
        spec = cast(Any, self.trainer).datamodule.spec
        check_sides(spec, codec=self.frozen.codec, autoencoder=self.frozen.autoencoder)

    def predict_step(self, batch: ClipBatch) -> LatentBatch:
        """Encode a batch."""
        return LatentBatch(self.frozen.encode(batch.clip), cast(Any, batch.condition), batch.index)


def encode(trainer: Trainer, datamodule: VideoDataModule, *, ckpt: str | None, out: str) -> None:
    """Write the latents of the train and the val clips to ``out/train`` and ``out/val``.

    Raises:
        ValueError: If no checkpoint is given, its latents were not measured, or a split is missing.
    """
    if ckpt is None:
        raise ValueError("encode needs the autoencoder's checkpoint: add --ckpt RUN/last.ckpt")
    for split in SPLITS:
        datamodule.check_split(split)
    frozen = FrozenAutoencoder(ckpt)
    stage = EncodingStage(frozen)
    callbacks: list[Any] = cast(Any, trainer).callbacks
    for split in SPLITS:
        datamodule.split = split
        writer = LatentWriter(str(Path(out) / split))
        callbacks.append(writer)
        with torch.inference_mode():
            trainer.predict(stage, datamodule=datamodule, return_predictions=False)
        callbacks.remove(writer)
    datamodule.split = None
    trainer.strategy.barrier("all shards are written")
    if trainer.is_global_zero:
        write_manifest(Path(out), {"autoencoder": frozen.fingerprint, "autoencoder_ckpt": ckpt})
