"""Codecs turn clips into the frames that the autoencoder works on, and back."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor


class PixelCodec(ModelMixin, ConfigMixin):
    """Frames are the clip's own pixels, RGB in [-1, 1] (the paper's UCF-101 setting)."""

    channels = 3
    stride = 1

    @register_to_config
    def __init__(self):
        super().__init__()
        # diffusers asks every part of a pipeline where it is, so there must be a tensor to ask.
        self.register_buffer("scale", torch.ones(()))

    def encode(self, clip: Float[Tensor, "b 3 l h w"]) -> Float[Tensor, "b 3 l h w"]:
        """The clip itself."""
        return clip

    def decode(self, frames: Float[Tensor, "b 3 l h w"]) -> Float[Tensor, "b 3 l h w"]:
        """The frames, kept inside the range of a picture."""
        return frames.clamp(-1, 1)
