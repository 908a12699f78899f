"""Stage two: diffusion of the content frame (CMD section 3.2, Eq. 7)."""

from typing import cast

import torch
from torch import Tensor

from cmdvid.models.stable_diffusion import check_pretrained
from cmdvid.stages.diffusion import DiffusionStage
from cmdvid.types import ClipBatch, Condition, GeneratedBatch, LatentBatch, PromptBatch


class ContentStage(DiffusionStage):
    """Learn p(content frame | condition); its settings are those of DiffusionStage."""

    part = "content"

    def setup(self, stage: str) -> None:
        """Also refuse frames of another scale, or a prediction, than a pretrained U-Net knows."""
        super().setup(stage)
        diffusion, codec = self.diffusion, self.latents.frozen.codec
        check_pretrained(diffusion.denoiser, codec, diffusion.prediction_type)

    def predict_step(self, batch: ClipBatch | LatentBatch | PromptBatch) -> GeneratedBatch:
        """Content frames generated for the batch's conditions."""
        condition, index = cast(Condition, batch.condition), torch.as_tensor(batch.index)
        if isinstance(batch, PromptBatch):
            latent = self.latents.blank(len(index), self.device)
        else:
            latent, _ = self.latents(batch)
        made = self.generate(latent, condition, index)
        return GeneratedBatch(
            clip=None,
            content=self.latents.frozen.decode_content(made),
            condition=condition,
            index=index,
            real=batch.clip if isinstance(batch, ClipBatch) else None,
        )

    @torch.no_grad()
    def preview(self, batch: ClipBatch | LatentBatch) -> dict[str, Tensor]:
        """Clips to look at: real, its content frame, and generated content, both held still."""
        latent, condition = self.latents(batch)
        frozen = self.latents.frozen
        real = batch.clip if isinstance(batch, ClipBatch) else frozen.decode(latent)
        made = self.generate(latent, condition, batch.index)
        stills = {"content": latent, "generated content": made}
        return {"real": real} | {
            name: frozen.decode_content(still)[:, :, None].expand_as(real)
            for name, still in stills.items()
        }
