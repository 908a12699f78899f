"""Where both diffusion stages get their latents from: a cache, or the frozen autoencoder."""

from functools import cached_property
from typing import cast

import torch

from cmdvid.data.latents import read_manifest
from cmdvid.stages.networks import FrozenAutoencoder
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

    def check(self, folder: str | None) -> None:
        """See that cached latents are this autoencoder's.

        Args:
            folder: The cache; none if clips are encoded as they come.

        Raises:
            ValueError: If another autoencoder made the cache, or it is not finished.
        """
        if folder is None:
            return
        manifest = read_manifest(folder)
        self.frozen.refuse_other(
            manifest["autoencoder"],
            manifest["autoencoder_ckpt"],
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
