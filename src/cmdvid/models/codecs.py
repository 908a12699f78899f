"""Codecs turn clips into the frames that the autoencoder works on, and back; and the whole way."""

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn

from cmdvid.models.autoencoder import Autoencoder
from cmdvid.types import VideoLatent


class PixelCodec(ModelMixin, ConfigMixin):
    """Frames are the clip's own pixels, RGB in [-1, 1] (the paper's UCF-101 setting)."""

    channels = 3
    stride = 1
    fixed_scale = False  # latents may be brought to zero mean and unit variance

    @register_to_config
    def __init__(self):
        super().__init__()
        # diffusers asks every part of a pipeline where it is, so there must be a tensor to ask.
        # accelerate, which moves parts to a device and back, asks their parameters.
        self.scale = nn.Parameter(torch.ones(()), requires_grad=False)

    def encode(self, clip: Float[Tensor, "b 3 l h w"]) -> Float[Tensor, "b 3 l h w"]:
        """The clip itself."""
        return clip

    def decode(self, frames: Float[Tensor, "b 3 l h w"]) -> Float[Tensor, "b 3 l h w"]:
        """The frames, kept inside the range of a picture."""
        return frames.clamp(-1, 1)


@torch.no_grad()
def encode_clip(
    clip: Float[Tensor, "b 3 l h w"], *, codec: Any, autoencoder: Autoencoder
) -> VideoLatent:
    """A clip in [-1, 1] to a latent of unit variance: codec, Eqs. 3 and 4, scaling."""
    frames = codec.encode(clip).to(autoencoder.dtype)
    return autoencoder.normalize(autoencoder.encode(frames))


@torch.no_grad()
def decode_latent(
    latent: VideoLatent, *, codec: Any, autoencoder: Autoencoder
) -> Float[Tensor, "b 3 l h w"]:
    """A latent of unit variance to a clip in [-1, 1]: the way back, by Eqs. 5 and 6."""
    return codec.decode(autoencoder.decode(autoencoder.denormalize(latent)))


@torch.no_grad()
def decode_content(
    latent: VideoLatent, *, codec: Any, autoencoder: Autoencoder
) -> Float[Tensor, "b 3 h w"]:
    """The content frame of a unit-variance latent as a picture in [-1, 1]."""
    return codec.decode(autoencoder.denormalize(latent).content[:, :, None])[:, :, 0]
