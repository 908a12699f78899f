"""Lightning's Trainer with a verb of our own."""

from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from torch import nn


class CMDTrainer(Trainer):
    """Lightning's Trainer with one verb more."""

    def encode(
        self,
        model: LightningModule,
        datamodule: Any = None,
        ckpt_path: str | None = None,
        out: str = "latents",
        dtype: Literal["fp32", "fp16", "bf16"] = "fp32",
        clips_per_video: int = 1,
        flips: bool = False,
        shard_size: int = 512,
        content_conditioner: nn.Module | None = None,
        motion_conditioner: nn.Module | None = None,
        frames_only: bool = False,
        overwrite: bool = False,
    ) -> None:
        """Write the latents of a data set, for the content and motion stages to train on.

        Run again after a stop, it goes on with what is missing. Twelve arguments, though eight
        are the limit: most are options of the command.

        Args:
            model: The autoencoder stage.
            datamodule: Where the clips come from.
            ckpt_path: Weights of the autoencoder.
            out: Folder of the latents.
            dtype: Precision of what is stored.
            clips_per_video: Windows of each training video; an epoch of training reads one.
            flips: Store training clips mirrored too, for data.flip of the stages to choose from.
            shard_size: Clips in a file, brought up to whole batches.
            content_conditioner: Frozen text encoder of the content model, to store what it makes
                of the captions.
            motion_conditioner: The same of the motion model.
            frames_only: Store the codec's frames, for the autoencoder stage to train on; needs
                its config, but no checkpoint.
            overwrite: Begin anew where other settings were used before, instead of refusing.
        """
        from cmdvid.stages.encoding import CacheOptions, encode

        encode(
            self,
            model,
            datamodule,
            ckpt=ckpt_path,
            out=Path(out),
            options=CacheOptions(
                dtype=dtype,
                clips_per_video=clips_per_video,
                flips=flips,
                shard_size=shard_size,
                frames_only=frames_only,
                overwrite=overwrite,
            ),
            conditioners={"content": content_conditioner, "motion": motion_conditioner},
        )
