"""Stage three: diffusion of the motion latent, given the content frame (CMD section 3.3, Eq. 8)."""

from typing import cast

import torch
from torch import Tensor

from cmdvid.stages.diffusion import DiffusionStage
from cmdvid.types import ClipBatch, GeneratedBatch, LatentBatch, PromptBatch, VideoLatent


class MotionStage(DiffusionStage):
    """Learn p(motion | content frame, condition); its settings are those of DiffusionStage."""

    part = "motion"

    def context(self, latent: VideoLatent) -> dict[str, Tensor]:
        """The content frame, which Eq. 8 conditions on."""
        return {"content": latent.content}

    def predict_step(self, batch: ClipBatch | LatentBatch | PromptBatch) -> GeneratedBatch:
        """Clips whose content frames are real and whose motion is generated.

        Raises:
            ValueError: If the batch holds prompts: they bring no content frames.
        """
        latent, condition = self.latents(batch)
        made = self.generate(latent, condition, batch.index)
        return GeneratedBatch(
            clip=self.latents.frozen.decode(made),
            content=self.latents.frozen.decode_content(latent),
            condition=condition,
            index=cast(Tensor, batch.index),
            real=batch.clip if isinstance(batch, ClipBatch) else None,
        )

    @torch.no_grad()
    def preview(self, batch: ClipBatch | LatentBatch) -> dict[str, Tensor]:
        """Clips to look at: real, reconstruction, content frame, and generated motion."""
        latent, condition = self.latents(batch)
        frozen = self.latents.frozen
        rebuilt = frozen.decode(latent)
        return {
            "real": batch.clip if isinstance(batch, ClipBatch) else rebuilt,
            "reconstruction": rebuilt,
            "content": frozen.decode_content(latent)[:, :, None].expand_as(rebuilt),
            "generated motion": frozen.decode(self.generate(latent, condition, batch.index)),
        }
