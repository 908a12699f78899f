"""Content denoiser trained from scratch: a DiT on one image (CMD section 3.2, UCF-101)."""

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from jaxtyping import Float, Real
from torch import Tensor, nn

from cmdvid.models.layers import AdaLNBlock, AdaLNHead, Stack, axial_sincos


class ConditionEmbedding(nn.Module):
    """Timestep embedding plus a linear map of the condition: what adaLN reads (CMD section 3.3)."""

    def __init__(self, condition_dim: int, *, width: int):
        super().__init__()
        self.wave = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.timestep = TimestepEmbedding(256, width)
        self.condition = nn.Linear(condition_dim, width)

    def forward(
        self, t: Real[Tensor, " b"], condition: Float[Tensor, "b e"]
    ) -> Float[Tensor, "b d"]:
        """Activated sum of both embeddings.

        Raises:
            ValueError: If the conditioner has another width.
        """
        needed = self.condition.in_features
        if condition.shape[1:] != (needed,):
            raise ValueError(
                f"this DiT has condition_dim {needed}, but its conditioner gives "
                f"{' '.join(map(str, condition.shape))}; set condition_dim to the conditioner's dim"
            )
        return F.silu(self.timestep(self.wave(t).to(condition.dtype)) + self.condition(condition))


class ContentDiT(ModelMixin, ConfigMixin):
    """Diffusion transformer over the patches of a content frame (DiT-XL/2 by default).

    Sizes of CMD Table 6: S 12 x 384 (6 heads), B 12 x 768 (12), L 24 x 1024 (16),
    XL 28 x 1152 (16). The grid comes from the input.

    Args:
        channels: Channels of the content frame.
        condition_dim: Width of the condition's embedding.
        width: Width of a token.
        depth: Number of blocks.
        num_heads: Attention heads.
        patch: Side of a square patch.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        channels: int = 3,
        *,
        condition_dim: int = 256,
        width: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        patch: int = 2,
    ):
        super().__init__()
        self.patch, self.width = patch, width
        pixels = channels * patch**2
        self.patches_in = nn.Linear(pixels, width)
        self.embedding = ConditionEmbedding(condition_dim, width=width)
        self.blocks = Stack(AdaLNBlock(width, num_heads=num_heads) for _ in range(depth))
        self.head = AdaLNHead(width, out_features=pixels)

    def sides_multiple(self, autoencoder_patch: int) -> int:
        """What height and width of content frames must be divisible by."""
        return self.patch

    def forward(
        self,
        noisy: Float[Tensor, "b c h w"],
        t: Real[Tensor, " b"],
        condition: Float[Tensor, "b e"],
    ) -> Float[Tensor, "b c h w"]:
        """Predict the noise (or velocity) in a content frame (CMD Eq. 7).

        Raises:
            ValueError: If height or width is not divisible by the patch.
        """
        p = self.patch
        if noisy.shape[-2] % p or noisy.shape[-1] % p:
            raise ValueError(
                f"this ContentDiT takes sides divisible by its patch of {p}, "
                f"got {noisy.shape[-2]}x{noisy.shape[-1]}"
            )
        patches = rearrange(noisy, "b c (y p) (x q) -> b y x (c p q)", p=p, q=p)
        _, height, width, _ = patches.shape
        x = self.patches_in(rearrange(patches, "b y x d -> b (y x) d"))
        x = x + image_positions(height, width, p, self.width).to(x)
        embedding = self.embedding(t, condition)
        x = self.blocks(x, embedding)
        return rearrange(
            self.head(x, embedding), "b (y x) (c p q) -> b c (y p) (x q)", y=height, p=p, q=p
        )


def image_positions(height: int, width: int, patch: int, dim: int) -> Float[Tensor, "n d"]:
    """Sin-cos embedding of patch centres, in units of the frame's own pixels, in row order."""
    rows, columns = ((torch.arange(n) + 0.5) * patch for n in (height, width))
    y, x = torch.cartesian_prod(rows, columns).unbind(1)
    return axial_sincos(torch.zeros_like(y), y, x, dim)
