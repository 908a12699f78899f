"""Stage three: diffusion of the motion latent, given the content frame (CMD section 3.3, Eq. 8)."""

from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from cmdvid.models.diffusion import Diffusion
from cmdvid.stages.latents import LatentSource, describe_diffusion
from cmdvid.stages.optimization import clip, configure
from cmdvid.types import ClipBatch, GeneratedBatch, LatentBatch, VideoLatent


class MotionStage(LightningModule):
    """Learn p(motion latent | content frame, condition).

    Args:
        diffusion: Denoiser, conditioner and noise schedule.
        autoencoder_ckpt: Checkpoint of the autoencoder stage.
        optimizer: Paper: Adam, lr 1e-4, betas (0.9, 0.999), no weight decay.
        lr_scheduler: Steps once per optimizer step; none in the paper.
        num_inference_steps: Of previews and ``predict``.
        guidance_scale: Of previews and ``predict``.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        *,
        autoencoder_ckpt: str,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        num_inference_steps: int = 100,
        guidance_scale: float = 4.0,
    ):
        super().__init__()
        self.save_hyperparameters(ignore=["diffusion", "optimizer", "lr_scheduler"])
        self.diffusion = diffusion
        self.latents = LatentSource(autoencoder_ckpt)
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.num_inference_steps, self.guidance_scale = num_inference_steps, guidance_scale

    def setup(self, stage: str) -> None:
        """Refuse cached latents of another autoencoder; ``predict`` reads none."""
        if stage != "predict":
            self.latents.check(getattr(cast(Any, self.trainer).datamodule, "latents", None))

    def training_step(self, batch: ClipBatch | LatentBatch) -> Tensor:
        """Denoise motion latents (Eq. 8)."""
        latent, condition = self.latents(batch)
        loss = self.diffusion.loss(latent.motion, condition, content=latent.content)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(latent.motion))
        return loss

    def validation_step(self, batch: ClipBatch | LatentBatch) -> None:
        """The same loss with averaged weights."""
        latent, condition = self.latents(batch)
        loss = self.diffusion.ema_loss(latent.motion, condition, content=latent.content)
        size = len(latent.motion)
        self.log("val/loss", loss, prog_bar=True, batch_size=size, sync_dist=True)

    def predict_step(self, batch: ClipBatch | LatentBatch) -> GeneratedBatch:
        """Clips whose content frames are real and whose motion is generated."""
        latent, condition = self.latents(batch)
        generated = latent._replace(motion=self._generate(latent, condition))
        return GeneratedBatch(
            clip=self.latents.frozen.decode(generated),
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
        generated = latent._replace(motion=self._generate(latent, condition))
        return {
            "real": batch.clip if isinstance(batch, ClipBatch) else rebuilt,
            "reconstruction": rebuilt,
            "content": frozen.decode_content(latent)[:, :, None].expand_as(rebuilt),
            "generated motion": frozen.decode(generated),
        }

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then move the averaged weights."""
        super().optimizer_step(*args, **kwargs)
        self.diffusion.update_ema()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Describe networks and autoencoder, so that the pipeline can be built from this."""
        describe_diffusion(checkpoint, "motion", self.diffusion, self.latents)

    def configure_optimizers(self) -> Any:
        return configure(self.diffusion, self.optimizer, self.lr_scheduler)

    def configure_gradient_clipping(
        self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None
    ) -> None:
        clip(self.diffusion.parameters(), gradient_clip_val)

    def _generate(self, latent: VideoLatent, condition: Any) -> Tensor:
        return self.diffusion.sample(
            torch.randn_like(latent.motion),
            condition,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            content=latent.content,
        )
