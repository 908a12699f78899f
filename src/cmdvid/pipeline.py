"""From a condition to a clip: all three stages as one diffusers pipeline (CMD Algorithm 1)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.outputs import BaseOutput
from einops import rearrange
from torch import Tensor

from cmdvid.models.autoencoder import Autoencoder
from cmdvid.models.codecs import PixelCodec, decode_content, decode_latent, encode_clip
from cmdvid.models.conditioning import LabelConditioner, TextConditioner, null_condition
from cmdvid.models.content_dit import ContentDiT
from cmdvid.models.content_unet import ContentUNet
from cmdvid.models.diffusion import guided_sample, seeded_noise
from cmdvid.models.motion_dit import MotionDiT
from cmdvid.types import Condition, VideoLatent

Conditioner = LabelConditioner | TextConditioner


@dataclass
class CMDOutput(BaseOutput):
    """Generated clips ``b 3 l h w`` and their content frames ``b 3 h w``, in [-1, 1].

    With ``output_type="np"`` frames are ``b l h w 3`` in [0, 1], diffusers' convention.
    """

    frames: Any
    content: Tensor


class CMDPipeline(DiffusionPipeline):
    """Generate clips: the content frame first, then motion given it, then decode both.

    Args:
        autoencoder: Decodes a content frame and a motion latent.
        codec: Turns frames into pixels.
        content_denoiser: Denoises content frames.
        content_conditioner: Embeds conditions for it.
        content_scheduler: Any diffusers scheduler; swap it as in every pipeline.
        motion_denoiser: Denoises motion latents.
        motion_conditioner: Embeds conditions for it.
        motion_scheduler: Likewise.
        content_shape: Channels, height and width of the content frame.
        motion_shape: Channels, frames, and rows + columns of the motion latent.

    The arguments are the pipeline's parts, as diffusers wants them: one name each.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        codec: PixelCodec,
        content_denoiser: ContentDiT | ContentUNet,
        content_conditioner: Conditioner,
        content_scheduler: SchedulerMixin,
        motion_denoiser: MotionDiT,
        motion_conditioner: Conditioner,
        motion_scheduler: SchedulerMixin,
        content_shape: list[int] | tuple[int, ...] = (
            3,
            64,
            64,
        ),  # defaults tell diffusers: not a module
        motion_shape: list[int] | tuple[int, ...] = (8, 16, 64),
    ):
        super().__init__()
        self.register_modules(
            autoencoder=autoencoder,
            codec=codec,
            content_denoiser=content_denoiser,
            content_conditioner=content_conditioner,
            content_scheduler=content_scheduler,
            motion_denoiser=motion_denoiser,
            motion_conditioner=motion_conditioner,
            motion_scheduler=motion_scheduler,
        )
        self.register_to_config(content_shape=list(content_shape), motion_shape=list(motion_shape))

    @torch.no_grad()
    def __call__(
        self,
        condition: str | Condition,
        *,
        num_inference_steps: int = 50,
        motion_inference_steps: int | None = None,
        guidance_scale: float = 4.0,
        negative_prompt: str | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        content: Tensor | None = None,
        output_type: str = "pt",
    ) -> CMDOutput:
        """Generate one clip for each condition (CMD Algorithm 1).

        Args:
            condition: A caption, captions, or class indices.
            num_inference_steps: Content steps (paper: 50).
            motion_inference_steps: Motion steps (paper: 100); as many as content steps if None.
            guidance_scale: s = 1 + w of the paper, for both models; 1 turns guidance off.
            negative_prompt: Caption to guide away from, in place of the empty one.
            generator: One for all samples, or one for each: then a sample does not depend on
                the others in its batch.
            content: Content frames of unit variance to animate, in place of generated ones.
            output_type: "pt" or "np".

        Raises:
            ValueError: If there are not as many generators or content frames as conditions.
        """
        condition = [condition] if isinstance(condition, str) else condition
        generators = self._generators(generator, len(condition))
        noise = self._noise("content", generators)
        motion_noise = self._noise("motion", generators)
        steps = motion_inference_steps or num_inference_steps
        total = steps + (num_inference_steps if content is None else 0)
        with cast(Any, self).progress_bar(total=total) as bar:
            sample = self._sampler(condition, negative_prompt, guidance_scale, bar.update)
            if content is None:
                content = sample("content", noise, num_inference_steps)
            elif len(content) != len(condition):
                raise ValueError(
                    f"got {len(content)} content frames for {len(condition)} conditions"
                )
            latent = VideoLatent(content, sample("motion", motion_noise, steps, content=content))
        frames: Any = self.decode(latent)
        if output_type == "np":
            frames = rearrange(frames / 2 + 0.5, "b c l h w -> b l h w c").cpu().numpy()
        return CMDOutput(frames=frames, content=self.decode_content(latent))

    def encode(self, clip: Tensor) -> VideoLatent:
        """A clip in [-1, 1] to a latent of unit variance."""
        return encode_clip(clip, codec=self.codec, autoencoder=self.autoencoder)

    def decode(self, latent: VideoLatent) -> Tensor:
        """A latent of unit variance to a clip in [-1, 1]."""
        return decode_latent(latent, codec=self.codec, autoencoder=self.autoencoder)

    def decode_content(self, latent: VideoLatent) -> Tensor:
        """The content frame of a unit-variance latent as a picture in [-1, 1]."""
        return decode_content(latent, codec=self.codec, autoencoder=self.autoencoder)

    def _sampler(
        self,
        condition: Any,
        negative: str | None,
        guidance_scale: float,
        on_step: Callable[[], Any],
    ) -> Callable[..., Tensor]:
        def sample(part: str, noise: Tensor, num_steps: int, **context: Tensor) -> Tensor:
            conditioner = getattr(self, f"{part}_conditioner")
            nothing = (
                [negative] * len(noise) if negative else null_condition(conditioner, len(noise))
            )
            return guided_sample(
                getattr(self, f"{part}_denoiser"),
                getattr(self, f"{part}_scheduler"),
                noise,
                condition=conditioner(condition),
                negative=conditioner(nothing),
                num_inference_steps=num_steps,
                guidance_scale=guidance_scale,
                on_step=on_step,
                **context,
            )

        return sample

    def _noise(self, part: str, generators: Sequence[torch.Generator]) -> Tensor:
        shape = getattr(self.config, f"{part}_shape")
        return seeded_noise(shape, generators).to(self.device, self.autoencoder.dtype)

    def _generators(self, generator: Any, num: int) -> Sequence[torch.Generator]:
        if generator is None or isinstance(generator, torch.Generator):
            return [generator or torch.Generator()] * num
        if len(generator) != num:
            raise ValueError(f"got {len(generator)} generators for {num} conditions")
        return generator


def export_pipeline(*, content: str, motion: str, out: str, autoencoder: str | None = None) -> None:
    """Join the checkpoints of all stages into one pipeline folder, with averaged weights.

    Args:
        content: Checkpoint of the content stage.
        motion: Checkpoint of the motion stage.
        out: Folder to write; CMDPipeline.from_pretrained reads it.
        autoencoder: Checkpoint of the autoencoder stage, if it moved since the others trained.

    Raises:
        ValueError: If the stages were trained on different autoencoders, or another one is given.
    """
    from cmdvid.stages.networks import FrozenAutoencoder, load_network, read_checkpoint

    paths = {"content": content, "motion": motion}
    checkpoints = {part: read_checkpoint(path) for part, path in paths.items()}
    for part, checkpoint in checkpoints.items():
        if "autoencoder" not in checkpoint:
            raise ValueError(f"{paths[part]}: not a checkpoint of the {part} stage")
    ckpt = autoencoder or checkpoints["content"]["autoencoder"]["ckpt"]
    frozen = FrozenAutoencoder(ckpt)
    for part, checkpoint in checkpoints.items():
        origin = checkpoint["autoencoder"]
        if origin["fingerprint"] != frozen.fingerprint:
            raise ValueError(
                f"{paths[part]}: trained on the autoencoder {origin['fingerprint'][:12]} "
                f"({origin['ckpt']}), but {ckpt} holds "
                f"{frozen.fingerprint[:12]}; all stages must share one autoencoder"
            )
    parts = {
        f"{part}_{kind}": load_network(checkpoint, f"{part}_{kind}", source=paths[part])
        for part, checkpoint in checkpoints.items()
        for kind in ("denoiser", "conditioner", "scheduler")
    }
    shapes = checkpoints["motion"]["latent_shapes"]
    pipeline = CMDPipeline(
        autoencoder=frozen.autoencoder,
        codec=frozen.codec,
        content_shape=shapes["content"],
        motion_shape=shapes["motion"],
        **parts,
    )
    pipeline.save_pretrained(Path(out))
    print(f"wrote the pipeline to {out}")
