"""From a condition to a clip: all three stages as one diffusers pipeline (CMD Algorithm 1)."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, cast

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from cmdvid.models.autoencoder import Autoencoder
from cmdvid.models.codecs import PixelCodec, decode_content, decode_latent, encode_clip
from cmdvid.models.conditioning import LabelConditioner, TextConditioner
from cmdvid.models.content_dit import ContentDiT
from cmdvid.models.content_unet import ContentUNet
from cmdvid.models.diffusion import guided_sample, seeded_noise, started
from cmdvid.models.frozen import same_network
from cmdvid.models.motion_dit import MotionDiT
from cmdvid.models.sd_codec import StableDiffusionCodec, with_vae
from cmdvid.models.sd_lora import LoraLoader
from cmdvid.models.sd_text import StableDiffusionText
from cmdvid.models.stable_diffusion import StableDiffusionUNet
from cmdvid.request import CMDOutput, Request, make_output, make_request, step_end
from cmdvid.types import Condition, VideoLatent


class CMDPipeline(DiffusionPipeline, LoraLoader):
    """Generate clips: the content frame first, then motion given it, then decode both.

    With Stable Diffusion as content model, its LoRA files, schedulers and tiling work as well.

    Args:
        autoencoder: Decodes a content frame and a motion latent.
        codec: Turns frames into pixels.
        content_denoiser: Denoises content frames.
        content_conditioner: Embeds conditions for it.
        content_scheduler: Any diffusers scheduler; ``pipe.scheduler`` is a name of it too.
        motion_denoiser: Denoises motion latents.
        motion_conditioner: Likewise; if both are the same network, they become one object, which
            reads each caption once.
        motion_scheduler: As for content, and swapped by its own name alone.
        content_shape: Channels, height and width of the content frame.
        motion_shape: Channels, frames, and rows + columns of the motion latent.

    The arguments are the parts, as diffusers wants them: one name each.
    """

    model_cpu_offload_seq = (
        "content_conditioner->content_denoiser->motion_conditioner->motion_denoiser"
        "->autoencoder->codec"
    )

    def __init__(
        self,
        autoencoder: Autoencoder,
        codec: PixelCodec | StableDiffusionCodec,
        content_denoiser: ContentDiT | ContentUNet | StableDiffusionUNet,
        content_conditioner: LabelConditioner | TextConditioner | StableDiffusionText,
        content_scheduler: SchedulerMixin,
        motion_denoiser: MotionDiT,
        motion_conditioner: LabelConditioner | TextConditioner | StableDiffusionText,
        motion_scheduler: SchedulerMixin,
        # defaults tell diffusers: not a module
        content_shape: list[int] | tuple[int, ...] = (3, 64, 64),
        motion_shape: list[int] | tuple[int, ...] = (8, 16, 64),
    ):
        super().__init__()
        shared = same_network(content_conditioner, motion_conditioner)
        self.register_modules(
            autoencoder=autoencoder,
            codec=codec,
            content_denoiser=content_denoiser,
            content_conditioner=content_conditioner,
            content_scheduler=content_scheduler,
            motion_denoiser=motion_denoiser,
            motion_conditioner=content_conditioner if shared else motion_conditioner,
            motion_scheduler=motion_scheduler,
        )
        self.register_to_config(content_shape=list(content_shape), motion_shape=list(motion_shape))

    @torch.no_grad()
    def __call__(
        self,
        condition: str | int | Condition | Sequence[int],
        *,
        num_inference_steps: int = 50,
        motion_inference_steps: int | None = None,
        guidance_scale: float = 4.0,
        motion_guidance_scale: float | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        content: Tensor | None = None,
        output_type: str = "pt",
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> CMDOutput:
        """Generate clips for each condition (CMD Algorithm 1).

        Args:
            condition: A caption or a class index, or several of them.
            num_inference_steps: Content steps (paper: 50).
            motion_inference_steps: Motion steps (paper: 100); as many as content steps if None.
            guidance_scale: s = 1 + w of the paper; 1 turns guidance off.
            motion_guidance_scale: That of the motion model; the content model's if None.
            negative_prompt: What to guide away from, not the empty caption; or one for each.
            num_videos_per_prompt: Clips for each condition; those of one follow each other.
            generator: One for all clips, seeded by torch's own if None; or one for each: then a
                clip does not depend on the others in its batch.
            content: Content frames of unit variance to animate, in place of generated ones; of any
                type, on any device.
            output_type: "pt", "np", "pil" or "latent"; see CMDOutput.
            callback_on_step_end: Called as ``f(pipe, step, t, kwargs)`` after each content step,
                and then after each motion step, counted anew; returns the kwargs to go on with.
            callback_on_step_end_tensor_inputs: What is in kwargs: "latents" or nothing.

        Raises:
            ValueError: If numbers do not match, or a setting has no such value.
        """
        request = make_request(
            condition,
            negative=negative_prompt,
            generator=generator,
            num_each=num_videos_per_prompt,
            output_type=output_type,
        )
        noise, motion_noise = (self._noise(part, request) for part in ("content", "motion"))
        steps = num_inference_steps if motion_inference_steps is None else motion_inference_steps
        calls = len(started(self.motion_scheduler, steps).timesteps)
        if content is None:
            calls += len(started(self.content_scheduler, num_inference_steps).timesteps)
        with cast(Any, self).progress_bar(total=calls) as bar:
            on_step = step_end(self, callback_on_step_end, callback_on_step_end_tensor_inputs, bar)
            sample = self._sampler(request, on_step=on_step)
            if content is None:
                content = sample("content", noise, num_inference_steps, guidance_scale)
            elif len(content) != len(request):
                raise ValueError(f"got {len(content)} content frames for {len(request)} conditions")
            content = content.to(motion_noise)
            scale = guidance_scale if motion_guidance_scale is None else motion_guidance_scale
            motion = sample("motion", motion_noise, steps, scale, content=content)
        output = make_output(self, VideoLatent(content, motion), output_type)
        self.maybe_free_model_hooks()
        return output

    def encode(self, clip: Tensor) -> VideoLatent:
        """A clip in [-1, 1] to a latent of unit variance."""
        return encode_clip(
            clip.to(self._execution_device), codec=self.codec, autoencoder=self.autoencoder
        )

    def decode(self, latent: VideoLatent) -> Tensor:
        """A latent of unit variance to a clip in [-1, 1]."""
        return decode_latent(latent, codec=self.codec, autoencoder=self.autoencoder)

    def decode_content(self, latent: VideoLatent) -> Tensor:
        """The content frame of a unit-variance latent as a picture in [-1, 1]."""
        return decode_content(latent, codec=self.codec, autoencoder=self.autoencoder)

    @property
    def scheduler(self) -> Any:
        """The content model's scheduler, under the name that it has in image pipelines."""
        return self.content_scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Any) -> None:
        self.content_scheduler = scheduler

    @property
    def unet(self) -> Any:
        """Stable Diffusion's U-Net inside the content denoiser, or None; LoRA goes into it."""
        denoiser = self.content_denoiser
        return denoiser.unet if isinstance(denoiser, StableDiffusionUNet) else None

    @property
    def text_encoder(self) -> Any:
        """Stable Diffusion's text encoder inside the content conditioner, or None."""
        conditioner = self.content_conditioner
        return conditioner.text_encoder if isinstance(conditioner, StableDiffusionText) else None

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Write all parts to a folder, as every pipeline does.

        Raises:
            ValueError: If a loaded LoRA would be lost.
        """
        trained = self.unet is not None and self.content_denoiser.config.lora_rank is not None
        modules = (self.text_encoder, None if trained else self.unet)
        if any(getattr(module, "peft_config", None) for module in modules):
            raise ValueError("a loaded LoRA is not saved: fuse_lora(), then unload_lora_weights()")
        super().save_pretrained(save_directory, *args, **kwargs)

    def enable_vae_tiling(self) -> None:
        """Decode in overlapping tiles: less memory for large pictures."""
        with_vae(self.codec).tiling = True

    def disable_vae_tiling(self) -> None:
        """Decode whole frames again."""
        with_vae(self.codec).tiling = False

    def enable_vae_slicing(self) -> None:
        """Encode and decode one frame at a time."""
        with_vae(self.codec).chunk_size = 1

    def disable_vae_slicing(self) -> None:
        """Encode and decode as many frames at a time as the codec was made for."""
        codec: Any = with_vae(self.codec)
        codec.chunk_size = codec.config.chunk_size

    def _sampler(self, request: Request, **options: Any) -> Callable[..., Tensor]:
        embed = cache(request.embed)  # one network may be the conditioner of both models

        def sample(
            part: str, noise: Tensor, num_steps: int, scale: float, **context: Any
        ) -> Tensor:
            condition, negative = embed(getattr(self, f"{part}_conditioner"))
            return guided_sample(
                getattr(self, f"{part}_denoiser"),
                getattr(self, f"{part}_scheduler"),
                noise,
                condition=condition,
                negative=negative,
                num_inference_steps=num_steps,
                guidance_scale=scale,
                generators=request.generators,
                **options,
                **context,
            )

        return sample

    def _noise(self, part: str, request: Request) -> Tensor:
        noise = seeded_noise(getattr(self.config, f"{part}_shape"), request.generators)
        return noise.to(self._execution_device, self.autoencoder.dtype)
