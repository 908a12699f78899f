"""Stage one: train the autoencoder by plain reconstruction (CMD section 3.1)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.utils.data.distributed import DistributedSampler
from tqdm import tqdm

from cmdvid.data.datamodule import VideoDataModule
from cmdvid.data.manifest import clips_wanted, refuse_other_fields
from cmdvid.data.precision import to_float
from cmdvid.losses import LatentMoments, psnr
from cmdvid.models.autoencoder import Autoencoder, content_frame
from cmdvid.models.codecs import PixelCodec
from cmdvid.stages.networks import describe, identify_codec, refuse_other_codec
from cmdvid.stages.noise import seed_batch
from cmdvid.stages.optimization import clip, configure, refuse_precision
from cmdvid.stages.sharding import refuse_sharding
from cmdvid.stages.sizes import check_sides
from cmdvid.types import (
    ClipBatch,
    FramesBatch,
    GeneratedBatch,
    LatentBatch,
    PromptBatch,
    VideoLatent,
)

STATISTICS_EPOCH = 2**31 - 1  # training never comes so far


class AutoencoderStage(LightningModule):
    """Learn to rebuild clips from a content frame and a motion latent.

    Args:
        autoencoder: The network.
        codec: Turns clips into the frames it works on; pixels by default.
        optimizer: Paper: Adam, lr 1e-5, betas (0.5, 0.9), no weight decay.
        lr_scheduler: Steps once per optimizer step; none in the paper.
        statistics_clips: Training clips over which latents are measured when training ends.
        gradient_checkpointing: Compute activations twice instead of keeping them.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        *,
        codec: nn.Module | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        statistics_clips: int = 1024,
        gradient_checkpointing: bool = False,
    ):
        super().__init__()
        self.save_hyperparameters(ignore=["autoencoder", "codec", "optimizer", "lr_scheduler"])
        self.autoencoder = autoencoder
        if gradient_checkpointing:
            autoencoder.enable_gradient_checkpointing()
        self.codec: Any = (codec or PixelCodec()).requires_grad_(False)
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.statistics_clips = statistics_clips

    def setup(self, stage: str) -> None:
        """Remember the run's seed; refuse other frames and sizes before anything is read."""
        self.run_seed = torch.initial_seed()  # batches will seed their own
        data = cast(Any, self.trainer).datamodule
        if not isinstance(data, VideoDataModule):
            return
        if spec := data.spec_for(stage):
            check_sides(spec, codec=self.codec, autoencoder=self.autoencoder)
        if folder := data.latents_for(stage):
            wanted: dict[str, Any] = {"holds": "frames", "codec": identify_codec(self.codec)}
            wanted |= clips_wanted(data.spec, train=data.train, val=data.val)
            refuse_other_fields(folder, wanted)

    def configure_model(self) -> None:
        """Refuse a strategy that would cut the autoencoder up, and weights in half precision."""
        refuse_precision(self)
        refuse_sharding(self)

    def training_step(self, batch: ClipBatch | FramesBatch) -> Tensor:
        """Mean squared error between frames and their reconstruction."""
        frames = self._frames(batch)
        rebuilt, latent = self.autoencoder(frames)
        loss = (rebuilt - frames).square().mean()
        self.log("train/loss", loss, prog_bar=True)
        self._log_content(latent, frames)
        return loss

    def validation_step(self, batch: ClipBatch | FramesBatch) -> None:
        """PSNR of the reconstruction, beside that of repeating the mean frame.

        With cached frames there is no clip to compare with but what the codec makes of them.
        """
        frames = self._frames(batch)
        rebuilt, _ = self.autoencoder(frames)
        mean = frames.mean(dim=2, keepdim=True).expand_as(frames)
        size = len(frames)
        self.log("val/loss", (rebuilt - frames).square().mean(), batch_size=size, sync_dist=True)
        real = self._real(batch)
        score, trivial = (psnr(self.codec.decode(f), real).mean() for f in (rebuilt, mean))
        self.log("val/psnr", score, batch_size=size, sync_dist=True, prog_bar=True)
        self.log("val/psnr_mean_frame", trivial, batch_size=size, sync_dist=True)

    def predict_step(
        self, batch: ClipBatch | FramesBatch | LatentBatch | PromptBatch
    ) -> GeneratedBatch:
        """Reconstructions, with the content frames they came from.

        Raises:
            ValueError: If the batch holds no clips.
        """
        if not isinstance(batch, ClipBatch | FramesBatch):
            raise ValueError(
                "an autoencoder rebuilds clips: give data.val or data.predict, an index of videos; "
                "to generate from prompts give --ckpt a pipeline folder, which `cmdvid export` "
                "makes"
            )
        rebuilt, latent = self.autoencoder(self._frames(batch))
        return GeneratedBatch(
            clip=self.codec.decode(rebuilt),
            content=self.codec.decode(latent.content[:, :, None])[:, :, 0],
            condition=cast(Any, batch.condition),
            index=cast(Tensor, batch.index),
            real=self._real(batch),
        )

    @torch.no_grad()
    def preview(self, batch: ClipBatch | FramesBatch) -> dict[str, Tensor]:
        """Clips to look at: real, reconstruction, and the content frame held still."""
        shown = self.predict_step(batch)
        real = cast(Tensor, shown.real)
        still = shown.content[:, :, None].expand_as(real)
        return {"real": real, "reconstruction": cast(Tensor, shown.clip), "content": still}

    def on_train_start(self) -> None:
        """Forget statistics that these steps will outdate."""
        self.autoencoder.get_buffer("measured").fill_(False)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Draw other noise on each process, and after a stop what would have come without it."""
        seed_batch(self, self.run_seed, self.global_step, batch_idx)

    def on_validation_batch_start(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Draw the same noise at each validation, so that losses compare."""
        seed_batch(self, self.run_seed, batch_idx)

    def on_train_end(self) -> None:
        """Measure latents, so that the other stages see unit variance; keep that in last.ckpt."""
        self._measure_latents()
        self._save_last()

    def on_fit_end(self) -> None:
        """Measure also in a run whose training ended before, interrupted while it measured."""
        if self.autoencoder.get_buffer("measured") or self.trainer.train_dataloader is None:
            return
        self.to(self.trainer.strategy.root_device)  # Lightning took it away already
        self._measure_latents()
        self.cpu()
        self._save_last()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Describe the networks, so that they can be loaded without this stage."""
        checkpoint["networks"] = {
            name: describe(prefix=f"{name}.", network=getattr(self, name))
            for name in ("autoencoder", "codec")
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the frames of another codec than those that the checkpoint was trained on.

        Raises:
            ValueError: If the codecs differ; names both.
        """
        refuse_other_codec(self.codec, checkpoint["networks"]["codec"])

    def configure_optimizers(self) -> Any:
        return configure(
            self.autoencoder,
            self.optimizer,
            self.lr_scheduler,
            max_steps=self.trainer.max_steps,
        )

    def configure_gradient_clipping(
        self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None
    ) -> None:
        clip(self.autoencoder.parameters(), gradient_clip_val, gradient_clip_algorithm)

    def _frames(self, batch: ClipBatch | FramesBatch) -> Tensor:
        if isinstance(batch, FramesBatch):
            return batch.frames
        with torch.no_grad():
            return self.codec.encode(batch.clip)

    def _real(self, batch: ClipBatch | FramesBatch) -> Tensor:
        return batch.clip if isinstance(batch, ClipBatch) else self.codec.decode(batch.frames)

    @torch.no_grad()
    def _log_content(self, latent: VideoLatent, frames: Tensor) -> None:
        """How far the content frame is from the plain mean, and from where Eq. 3 started.

        That is the frame which the anchor's bias alone gives; near it, little has been learned.
        """
        anchored = self.autoencoder._anchored(frames).expand_as(frames)
        for name, frame in (
            ("mean", frames.mean(dim=2)),
            ("anchor", content_frame(frames, anchored)),
        ):
            distance = (latent.content - frame).square().mean().sqrt()
            self.log(f"train/content_from_{name}_rms", distance)
        self.log("train/motion_rms", latent.motion.square().mean().sqrt())

    def _save_last(self) -> None:
        """Write the last checkpoint again, or for the first time in a folder new to the run."""
        if cast(Any, self.trainer).fast_dev_run:
            return
        for callback in self.trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.save_last:
                name = callback.CHECKPOINT_NAME_LAST
                path = callback.last_model_path or callback.format_checkpoint_name({}, name)
                self.trainer.save_checkpoint(path, weights_only=False)

    @torch.no_grad()
    def _measure_latents(self) -> None:
        moments = LatentMoments().to(self.device)
        loader = cast(Any, self.trainer.train_dataloader)
        share = -(-self.statistics_clips // self.trainer.world_size)
        self.autoencoder.eval()
        # in the precision of training, in which `encode` encodes too
        precision = self.trainer.precision_plugin.val_step_context
        bar = tqdm(total=share, desc="measuring latents", disable=self.global_rank > 0)
        with bar, _epoch_of_its_own(loader):
            for number, batch in enumerate(loader):
                seed_batch(self, self.run_seed, number)  # a codec may draw
                moved = to_float(self.transfer_batch_to_device(batch, self.device, 0))
                with precision():
                    frames = self._frames(moved)
                    latent = self.autoencoder.encode(frames)
                moments.update(latent)
                bar.update(len(frames))
                if bar.n >= share:
                    break
        self.autoencoder.train()
        content, motion = moments.compute()
        if self.codec.fixed_scale:  # content frames stay as the pretrained model knows them
            content = torch.stack([torch.zeros_like(content[0]), torch.ones_like(content[1])])
        self.autoencoder.set_statistics(content, motion)


@contextmanager
def _epoch_of_its_own(loader: Any) -> Iterator[None]:
    """Let a loader read a whole epoch apart, the same whenever and however often a run stopped."""
    sampler = getattr(loader, "sampler", None)
    if not isinstance(sampler, DistributedSampler):
        yield
        return
    trained, sampler.epoch = sampler.epoch, STATISTICS_EPOCH
    yield
    sampler.epoch = trained  # for the checkpoint says which epoch was trained on
