"""Where both diffusion stages get their latents from: a cache, or the frozen autoencoder."""

from functools import cached_property
from typing import Any, cast

import torch
from torch import nn

from cmdvid.data.datamodule import VideoDataModule
from cmdvid.data.manifest import clips_wanted, read_manifest, refuse_other_fields
from cmdvid.stages.networks import FrozenAutoencoder, identify, identify_codec
from cmdvid.types import ClipBatch, Condition, LatentBatch, PromptBatch, VideoLatent


class LatentSource:
    """Latents of unit variance for a batch, whichever kind it is.

    Args:
        autoencoder_ckpt: Checkpoint of the autoencoder stage, read when first needed.
    """

    def __init__(self, autoencoder_ckpt: str):
        self.autoencoder_ckpt = autoencoder_ckpt
        self.shapes: dict[str, list[int]] = {}

    @cached_property
    def frozen(self) -> FrozenAutoencoder:
        """The autoencoder, outside of every state dict."""
        return FrozenAutoencoder(self.autoencoder_ckpt)

    def check(self, data: VideoDataModule, verb: str, *, part: str, conditioner: nn.Module) -> None:
        """See that cached latents are what the stage would make of the clips.

        Args:
            data: Names the cache, if there is one.
            verb: What is run, for not every verb reads it.
            part: The part of a latent that the stage learns.
            conditioner: Reads its captions, unless that is cached.

        Raises:
            ValueError: If another autoencoder, codec or text encoder made the cache, it is of
                other clips, or not finished.
        """
        if (folder := data.latents_for(verb)) is None:
            return
        manifest = read_manifest(folder)
        wanted: dict[str, Any] = {"holds": "latents", "codec": identify_codec(self.frozen.codec)}
        wanted |= clips_wanted(data.spec, train=data.train, val=data.val)
        if getattr(manifest, f"{part}_text") is not None:
            wanted[f"{part}_text"] = identify(conditioner)
        refuse_other_fields(folder, wanted)
        self.frozen.refuse_other(
            cast(str, manifest.autoencoder),
            cast(str, manifest.autoencoder_ckpt),
            subject=f"{folder}: latents of",
            advice=f": make them anew with `cmdvid encode --ckpt {self.autoencoder_ckpt} --out "
            "DIR`, or correct autoencoder_ckpt",
        )

    def blank(self, num: int, device: torch.device) -> VideoLatent:
        """Latents of zeros in the shapes of training, for prompts, which bring none.

        Raises:
            ValueError: If no checkpoint or batch told the shapes.
        """
        if not self.shapes:
            raise ValueError(
                "prompts need the shapes of latents that a trained checkpoint holds; "
                "add --ckpt RUN/last.ckpt"
            )
        return VideoLatent(
            *(torch.zeros(num, *self.shapes[k], device=device) for k in VideoLatent._fields)
        )

    def __call__(
        self, batch: ClipBatch | LatentBatch | PromptBatch
    ) -> tuple[VideoLatent, Condition]:
        """Latent and condition of a batch; cached ones as they are, clips by encoding them.

        Raises:
            ValueError: If the batch holds prompts, which have no latents.
        """
        if isinstance(batch, PromptBatch):
            raise ValueError(
                "this stage needs clips or cached latents, not prompts; to generate from prompts "
                "give --ckpt a pipeline folder, which `cmdvid export` makes"
            )
        latent = batch.latent if isinstance(batch, LatentBatch) else self.frozen.encode(batch.clip)
        self.shapes = {k: list(v.shape[1:]) for k, v in latent._asdict().items()}
        return latent, cast(Condition, batch.condition)
