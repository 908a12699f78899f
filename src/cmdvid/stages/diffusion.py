"""What training the two diffusion models has in common: they differ in tensor and context alone."""

from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from cmdvid.data.datamodule import VideoDataModule
from cmdvid.models.diffusion import Diffusion, seeded_noise
from cmdvid.stages.latents import LatentSource
from cmdvid.stages.networks import describe
from cmdvid.stages.noise import sample_generators, seed_batch
from cmdvid.stages.optimization import clip, configure, refuse_precision
from cmdvid.stages.sharding import refuse_optimizer, shard
from cmdvid.stages.sizes import check_sides
from cmdvid.types import ClipBatch, Condition, LatentBatch, VideoLatent


class DiffusionStage(LightningModule):
    """Learn one factor of p(motion | content, c) p(content | c), the field ``part`` of a latent.

    The one base class of our own: Lightning finds its hooks on a module itself, so two stages
    without a common base would hold the same thirty lines twice.

    Args:
        diffusion: Denoiser, conditioner and noise schedule.
        autoencoder_ckpt: Checkpoint of the autoencoder stage.
        optimizer: Paper: Adam, lr 1e-4, betas (0.9, 0.999), no weight decay.
        lr_scheduler: Steps once per optimizer step; none in the paper.
        num_inference_steps: Of previews and ``predict`` (paper: 50 content, 100 motion steps).
        guidance_scale: Of previews and ``predict``.
        gradient_checkpointing: Compute the denoiser's activations twice instead of keeping them.
        seed: With a sample's index it fixes the sample's noise in previews and ``predict``.
    """

    part: str  # of VideoLatent

    def __init__(
        self,
        diffusion: Diffusion,
        *,
        autoencoder_ckpt: str,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 4.0,
        gradient_checkpointing: bool = False,
        seed: int = 0,
    ):
        super().__init__()
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}")
        self.save_hyperparameters(ignore=["diffusion", "optimizer", "lr_scheduler"])
        self.diffusion = diffusion
        if gradient_checkpointing:
            cast(Any, diffusion.denoiser).enable_gradient_checkpointing()
        self.latents = LatentSource(autoencoder_ckpt)
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.num_inference_steps, self.guidance_scale = num_inference_steps, guidance_scale
        self.seed = seed

    def context(self, latent: VideoLatent) -> dict[str, Tensor]:
        """What the denoiser sees of a latent besides the part that it denoises."""
        return {}

    def generate(
        self, latent: VideoLatent, condition: Condition, index: Tensor | int
    ) -> VideoLatent:
        """The latent with its ``part`` sampled anew for the condition, from the index's noise."""
        generators = sample_generators(self.seed, torch.as_tensor(index))
        old = getattr(latent, self.part)
        noise = seeded_noise(old.shape[1:], generators).to(old)
        sample = self.diffusion.sample(
            noise,
            condition,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            generators=generators,
            **self.context(latent),
        )
        return latent._replace(**{self.part: sample})

    def setup(self, stage: str) -> None:
        """Remember the run's seed; refuse latents of other networks and sizes that do not fit."""
        self.run_seed = torch.initial_seed()  # batches will seed their own
        frozen = self.latents.frozen  # read it now: in the first step it would draw from its noise
        data = cast(Any, self.trainer).datamodule
        if isinstance(data, VideoDataModule):
            conditioner = self.diffusion.conditioner
            self.latents.check(data, stage, part=self.part, conditioner=conditioner)
            if spec := data.spec_for(stage):
                networks = {"autoencoder": frozen.autoencoder, "denoiser": self.diffusion.denoiser}
                check_sides(spec, codec=frozen.codec, **networks)

    def configure_model(self) -> None:
        """Cut the networks up before their optimizer is made, if the strategy says so."""
        refuse_precision(self)
        shard(self, self.diffusion)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Draw other noise on each process, and after a stop what would have come without it."""
        seed_batch(self, self.run_seed, self.global_step, batch_idx)

    def on_validation_batch_start(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Draw the same noise at each validation, so that losses compare."""
        seed_batch(self, self.run_seed, batch_idx)

    def training_step(self, batch: ClipBatch | LatentBatch) -> Tensor:
        """The loss of Eq. 2 on this stage's part of the latent."""
        latent, condition = self._embedded(batch)
        x = getattr(latent, self.part)
        loss = self.diffusion.loss(x, condition, **self.context(latent))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(x))
        return loss

    def validation_step(self, batch: ClipBatch | LatentBatch) -> None:
        """The same loss with averaged weights."""
        latent, condition = self._embedded(batch)
        x = getattr(latent, self.part)
        loss = self.diffusion.ema_loss(x, condition, **self.context(latent))
        self.log("val/loss", loss, prog_bar=True, batch_size=len(x), sync_dist=True)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then move the averaged weights."""
        super().optimizer_step(*args, **kwargs)
        self.diffusion.update_ema()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Describe averaged networks and autoencoder, so that the pipeline can be built of them."""
        denoiser, conditioner = self.diffusion.averaged
        prefix = "diffusion.ema.module"
        checkpoint["networks"] = {
            f"{self.part}_denoiser": describe(prefix=f"{prefix}.0.", network=denoiser),
            f"{self.part}_conditioner": describe(prefix=f"{prefix}.1.", network=conditioner),
            f"{self.part}_scheduler": describe(prefix="", network=self.diffusion.scheduler),
        }
        checkpoint["autoencoder"] = {
            "fingerprint": self.latents.frozen.fingerprint,
            "ckpt": self.latents.autoencoder_ckpt,
        }
        checkpoint["latent_shapes"] = self.latents.shapes

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Know the shapes before the first batch: it may be prompts, or never come.

        Raises:
            ValueError: If the checkpoint was trained on the latents of another autoencoder.
        """
        origin = checkpoint["autoencoder"]
        self.latents.frozen.refuse_other(
            origin["fingerprint"],
            origin["ckpt"],
            subject="the checkpoint was trained on",
            advice=": correct autoencoder_ckpt, or train this stage anew",
        )
        self.latents.shapes = checkpoint.get("latent_shapes", {})

    def configure_optimizers(self) -> Any:
        configured = configure(
            self.diffusion,
            self.optimizer,
            self.lr_scheduler,
            max_steps=self.trainer.max_steps,
        )
        refuse_optimizer(self, configured)
        return configured

    def configure_gradient_clipping(
        self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None
    ) -> None:
        clip(self.diffusion.parameters(), gradient_clip_val, gradient_clip_algorithm)

    def _embedded(self, batch: ClipBatch | LatentBatch) -> tuple[VideoLatent, Condition | Tensor]:
        """Latent and condition; instead of captions their embeddings, if those are cached."""
        latent, condition = self.latents(batch)
        text = getattr(batch.text, self.part) if isinstance(batch, LatentBatch) else None
        return latent, condition if text is None or not text.numel() else text
