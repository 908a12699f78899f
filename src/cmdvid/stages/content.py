"""Stage two: diffusion of the content frame (CMD section 3.2, Eq. 7)."""

from typing import cast

import torch
from torch import Tensor

from cmdvid.models.stable_diffusion import check_pretrained
from cmdvid.stages.diffusion import DiffusionStage
from cmdvid.types import ClipBatch, GeneratedBatch, LatentBatch


class ContentStage(DiffusionStage):
    """Learn p(content frame | condition); its settings are those of DiffusionStage."""

    part = "content"

    def setup(self, stage: str) -> None:
        """Also refuse frames of another scale, or a prediction, than a pretrained U-Net knows."""
        super().setup(stage)
        diffusion, codec = self.diffusion, self.latents.frozen.codec
        check_pretrained(diffusion.denoiser, codec, diffusion.prediction_type)

    def predict_step(self, batch: ClipBatch | LatentBatch) -> GeneratedBatch:
        """Content frames generated for the batch's conditions."""
        latent, condition = self.latents(batch)
        return GeneratedBatch(
            clip=None,
            content=self.latents.frozen.decode_content(self.generate(latent, condition)),
            condition=condition,
            index=cast(Tensor, batch.index),
            real=batch.clip if isinstance(batch, ClipBatch) else None,
        )

    @torch.no_grad()
    def preview(self, batch: ClipBatch | LatentBatch) -> dict[str, Tensor]:
        """Clips to look at: real, its content frame, and generated content, both held still."""
        latent, condition = self.latents(batch)
        frozen = self.latents.frozen
        real = batch.clip if isinstance(batch, ClipBatch) else frozen.decode(latent)
        stills = {"content": latent, "generated content": self.generate(latent, condition)}
        return {"real": real} | {
            name: frozen.decode_content(still)[:, :, None].expand_as(real)
            for name, still in stills.items()
        }
