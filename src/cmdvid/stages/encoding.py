"""`cmdvid encode`: clips to cached latents or frames, so that training never decodes a video."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from einops import rearrange
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from cmdvid.data.cache import CacheShards
from cmdvid.data.datamodule import VideoDataModule
from cmdvid.data.latents import pack_captions
from cmdvid.data.manifest import MANIFEST, Manifest, begin, finish, refuse_other_settings
from cmdvid.models.captions import distinct
from cmdvid.stages.encoders import (
    CacheOptions,
    ClipEncoder,
    check_texts,
    frame_encoder,
    latent_encoder,
)
from cmdvid.stages.networks import identify
from cmdvid.stages.noise import mix
from cmdvid.types import ClipBatch

SPLITS = ("train", "val")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LIBRARIES = ("cmdvid", "torch", "diffusers", "transformers", "open_clip_torch", "safetensors", "av")


class EncodingStage(LightningModule):
    """Encode batches of clips and write each shard when it is complete; trains nothing.

    Args:
        encoder: Turns clips in [-1, 1] into what is stored of them, by name.
        manifest: What is made.
        out: Folder of the cache.
        conditioners: Frozen text encoders, by the model that reads their embeddings.
        overwrite: Remove what is in the folder.
    """

    def __init__(
        self,
        encoder: Callable[[Tensor], Mapping[str, Tensor]],
        *,
        manifest: Manifest,
        out: Path,
        conditioners: Mapping[str, nn.Module],
        overwrite: bool,
    ):
        super().__init__()
        self.encoder, self.manifest, self.out = encoder, manifest, out
        self.conditioners, self.overwrite = dict(conditioners), overwrite
        self.dtype_stored = DTYPES[manifest.dtype]
        self.at = (-1, -1)  # split and number of the shard that is being collected
        self.parts: list[dict[str, Tensor]] = []
        self.conditions: list[int | str] = []

    def setup(self, stage: str) -> None:
        """Make the folder ready, before any process looks which shards are missing."""
        cast(Any, self.trainer).datamodule.report_in(self.out)
        if self.trainer.is_global_zero:
            begin(self.out, self.manifest, overwrite=self.overwrite)

    def predict_step(self, batch: ClipBatch, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Encode a batch, which is of one shard."""
        shards = cast(Any, self.trainer).datamodule.encoding[dataloader_idx]
        index = torch.as_tensor(batch.index)
        number = int(index[0]) // shards.split.rows_per_shard
        if self.at != (dataloader_idx, number):
            self.at, self.parts, self.conditions = (dataloader_idx, number), [], []
        torch.manual_seed(mix(self.manifest.seed, number, len(self.conditions)))  # of a posterior
        clips = (batch.clip, batch.clip.flip(-1)) if shards.split.flips else (batch.clip,)
        encoded = [self.encoder(clip) for clip in clips]
        self.parts.append(
            {
                name: rearrange([e[name] for e in encoded], "f b ... -> (b f) ...")
                .to(self.dtype_stored)
                .cpu()
                for name in encoded[0]
            }
        )
        labels: Any = batch.condition
        self.conditions += labels.tolist() if isinstance(labels, Tensor) else list(labels)
        rows = shards.split.rows(number)
        if len(self.conditions) == len(rows) * shards.split.clips_per_video:
            self._write(shards, number)
        return index

    def _write(self, shards: CacheShards, number: int) -> None:
        tensors = {name: torch.cat([p[name] for p in self.parts]) for name in self.parts[0]}
        if isinstance(self.conditions[0], str):
            captions, places = distinct(cast(list[str], self.conditions))
            tensors |= {"condition": torch.tensor(places), **pack_captions(captions)}
            for part, conditioner in self.conditioners.items():
                tensors[f"{part}_text"] = self._embed(conditioner, captions)
        else:
            tensors["condition"] = torch.tensor(self.conditions)
        shards.write(number, tensors)
        self.parts, self.conditions = [], []

    def _embed(self, conditioner: nn.Module, captions: list[str]) -> Tensor:
        conditioner.to(self.device)  # no trainer knows of it
        size = cast(Any, self.trainer).datamodule.batch_size
        chunks = (captions[i : i + size] for i in range(0, len(captions), size))
        return torch.cat([conditioner(chunk).to(self.dtype_stored).cpu() for chunk in chunks])


def encode(
    trainer: Trainer,
    model: LightningModule,
    datamodule: VideoDataModule,
    *,
    ckpt: str | None,
    out: Path,
    options: CacheOptions,
    conditioners: Mapping[str, nn.Module | None],
) -> None:
    """Write the train and the val clips of a data set as a cache; go on with one that was begun.

    Args:
        trainer: Runs it, on any number of processes.
        model: The autoencoder stage, whose codec makes frames if there is no checkpoint.
        datamodule: Where the clips come from.
        ckpt: Checkpoint of the autoencoder stage; frames need none.
        out: Folder of the cache.
        options: How it is made.
        conditioners: Text encoders whose embeddings are stored, of "content" and "motion".

    Raises:
        ValueError: If no checkpoint is given, its latents were not measured, a split is missing,
            a text encoder is not frozen, or the folder holds what other settings made.
    """
    for split in SPLITS:
        datamodule.check_split(split)
    texts = {part: network for part, network in conditioners.items() if network is not None}
    check_texts(texts, datamodule, frames_only=options.frames_only)
    encoder = (
        frame_encoder(model, ckpt) if options.frames_only else latent_encoder(ckpt, datamodule.spec)
    )
    manifest = _manifest(encoder, texts, datamodule, options, precision=str(trainer.precision))
    if not options.overwrite:
        refuse_other_settings(out, manifest)
    shards = [CacheShards(out / name, getattr(manifest, name)) for name in SPLITS]
    complete = (out / MANIFEST).is_file() and not any(each.missing() for each in shards)
    if complete and not options.overwrite:
        rank_zero_info(f"{out}: finished already")
        return
    datamodule.flip = False  # mirrored clips are made of the others
    datamodule.encoding = shards
    # a process may have nothing to do where little is missing
    datamodule.allow_zero_length_dataloader_with_multiple_devices = True
    stage = EncodingStage(
        encoder.encode, manifest=manifest, out=out, conditioners=texts, overwrite=options.overwrite
    )
    trainer.predict(stage, datamodule=datamodule, return_predictions=False)
    datamodule.encoding = []
    trainer.strategy.barrier("all shards are written")
    if trainer.is_global_zero:
        finish(out, manifest)


def _manifest(
    encoder: ClipEncoder,
    texts: Mapping[str, nn.Module],
    datamodule: VideoDataModule,
    options: CacheOptions,
    *,
    precision: str,
) -> Manifest:
    splits: dict[str, Any] = {
        name: options.split(name, getattr(datamodule, name), datamodule.batch_size)
        for name in SPLITS
    }
    identities = {part: identify(network) for part, network in texts.items()}
    return Manifest(
        **encoder.source,
        content_text=identities.get("content"),
        motion_text=identities.get("motion"),
        spec=asdict(datamodule.spec),
        seed=datamodule.seed,
        dtype=options.dtype,
        precision=precision,
        versions={name: version(name) for name in LIBRARIES},
        **splits,
    )
