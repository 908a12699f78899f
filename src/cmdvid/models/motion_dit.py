"""Motion denoiser: a DiT over motion patches that also reads the content frame (CMD Eq. 8)."""

from math import lcm
from typing import NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from jaxtyping import Float, Real
from torch import Tensor, nn

from cmdvid.models.content_dit import ConditionEmbedding, image_positions
from cmdvid.models.layers import AdaLNBlock, AdaLNHead, Stack, axial_sincos


class MotionGrid(NamedTuple):
    """Where the motion latent's entries lie: frames, then rows and columns of the patch grid."""

    frames: int
    rows: int
    columns: int
    stride: float  # pixels of the content frame per row or column


class MotionDiT(ModelMixin, ConfigMixin):
    """Diffusion transformer over motion tokens, with the content frame's tokens in context.

    Motion is cut into patches on its (frame, row-or-column) plane, content into its own
    patches; both go through the same blocks, only the motion tokens are read out (CMD
    section 3.3, Table 7: motion patch 2, content patch 4 or 8).

    Args:
        motion_channels: Channels D of the motion latent.
        channels: Channels of the content frame.
        condition_dim: Width of the condition's embedding.
        width: Width of a token.
        depth: Number of blocks.
        num_heads: Attention heads.
        patch: Side of a motion patch.
        content_patch: Side of a content patch (Table 4c: smaller is better).
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        motion_channels: int = 8,
        *,
        channels: int = 3,
        condition_dim: int = 256,
        width: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        patch: int = 2,
        content_patch: int = 4,
    ):
        super().__init__()
        self.patch, self.content_patch, self.width = patch, content_patch, width
        self.motion_in = nn.Linear(motion_channels * patch**2, width)
        self.content_in = nn.Linear(channels * content_patch**2, width)
        self.embedding = ConditionEmbedding(condition_dim, width=width)
        kinds = 0.02 * torch.randn(3, width)  # rows, columns, content
        self.kind = nn.Embedding.from_pretrained(kinds, freeze=False)
        self.blocks = Stack(AdaLNBlock(width, num_heads=num_heads) for _ in range(depth))
        self.head = AdaLNHead(width, out_features=motion_channels * patch**2)

    def sides_multiple(self, autoencoder_patch: int) -> int:
        """What height and width of content frames must be divisible by."""
        return lcm(self.content_patch, self.patch * autoencoder_patch)

    def forward(
        self,
        noisy: Float[Tensor, "b m l s"],
        t: Real[Tensor, " b"],
        condition: Float[Tensor, "b e"],
        *,
        content: Float[Tensor, "b c h w"],
    ) -> Float[Tensor, "b m l s"]:
        """Predict the noise (or velocity) in a motion latent, given the content frame (Eq. 8).

        Raises:
            ValueError: If motion and content sizes do not belong together or are not divisible
                by their patches.
        """
        p = self.patch
        grid = self._grid(noisy, content)
        motion = rearrange(noisy, "b m (l p) (s q) -> b (l s) (m p q)", p=p, q=p)
        x = torch.cat([self.motion_in(motion), self._content_tokens(content)], dim=1)
        x = torch.cat(
            [x[:, : motion.shape[1]] + self._positions(grid).to(x), x[:, motion.shape[1] :]], 1
        )
        embedding = self.embedding(t, condition)
        x = self.blocks(x, embedding)[:, : motion.shape[1]]
        return rearrange(
            self.head(x, embedding),
            "b (l s) (m p q) -> b m (l p) (s q)",
            l=grid.frames // p,
            p=p,
            q=p,
        )

    def _content_tokens(self, content: Tensor) -> Tensor:
        q = self.content_patch
        patches = rearrange(content, "b c (y p) (x q) -> b y x (c p q)", p=q, q=q)
        _, height, width, _ = patches.shape
        positions = image_positions(height, width, q, self.width).to(content)
        tokens = self.content_in(rearrange(patches, "b y x d -> b (y x) d"))
        return tokens + positions + self.kind.weight[2]

    def _positions(self, grid: MotionGrid) -> Float[Tensor, "n d"]:
        """What each motion token is: its frame, its plane, and its place on that plane's axis."""
        p = self.patch
        frames = (torch.arange(grid.frames // p) + 0.5) * p
        rows, columns = ((torch.arange(n // p) + 0.5) * p * grid.stride for n in grid[1:3])
        y = torch.cat([rows, torch.zeros_like(columns)])
        x = torch.cat([torch.zeros_like(rows), columns])
        row, column, _ = self.kind.weight.split(1)
        kind = torch.cat([row.expand(len(rows), -1), column.expand(len(columns), -1)])
        f, s = torch.cartesian_prod(torch.arange(len(frames)), torch.arange(len(y))).unbind(1)
        place = axial_sincos(frames[f], y[s], x[s], self.width)
        return place.to(kind) + kind[s]

    def _grid(self, motion: Tensor, content: Tensor) -> MotionGrid:
        frames, places = motion.shape[-2:]
        height, width = content.shape[-2:]
        stride = (height + width) / places
        rows, columns = round(height / stride), round(width / stride)
        p, q = self.patch, self.content_patch
        if (
            rows + columns != places
            or frames % p
            or rows % p
            or columns % p
            or height % q
            or width % q
        ):
            raise ValueError(
                f"a motion latent of {frames} frames and {places} rows and columns does not fit a "
                f"content frame of {height}x{width} with motion patch {p} and content patch {q}"
            )
        return MotionGrid(frames, rows, columns, stride)
