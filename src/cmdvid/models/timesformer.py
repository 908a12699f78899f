"""Video transformer with divided attention: over time, then over space, then an MLP.

TimeSformer (Bertasius et al. 2021) as CMD's autoencoder uses it, encoder and decoder alike
(CMD section 3.1). Rotary positions are applied on the time axis and on both space axes.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from cmdvid.models.layers import MLP, Attention, GatedMLP, Stack, rotary_angles


class TimeSformerBlock(nn.Module):
    """One block: attention along time, attention within each frame, MLP; all residual."""

    def __init__(self, dim: int, *, num_heads: int, gated_mlp: bool = False):
        super().__init__()
        self.time_norm, self.space_norm, self.mlp_norm = (nn.LayerNorm(dim) for _ in range(3))
        self.time = Attention(dim, num_heads=num_heads)
        self.space = Attention(dim, num_heads=num_heads)
        self.mlp = GatedMLP(dim) if gated_mlp else MLP(dim)

    def forward(
        self,
        u: Float[Tensor, "b l y x d"],
        time_angles: Float[Tensor, "l e"],
        space_angles: Float[Tensor, "s e"],
    ) -> Float[Tensor, "b l y x d"]:
        """Angles are those of :func:`rotary_angles` for frames and for patches in row order."""
        b, _, height, width, _ = u.shape
        v = rearrange(u, "b l y x d -> (b y x) l d")
        v = v + self.time(self.time_norm(v), time_angles)
        v = rearrange(v, "(b y x) l d -> (b l) (y x) d", b=b, y=height, x=width)
        v = v + self.space(self.space_norm(v), space_angles)
        v = v + self.mlp(self.mlp_norm(v))
        return rearrange(v, "(b l) (y x) d -> b l y x d", b=b, y=height, x=width)


class TimeSformer(nn.Module):
    """A stack of blocks over patch features of any number of frames and any grid."""

    def __init__(self, dim: int, *, depth: int, num_heads: int, gated_mlp: bool = False):
        super().__init__()
        self.blocks = Stack(
            TimeSformerBlock(dim, num_heads=num_heads, gated_mlp=gated_mlp) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.head_dim = dim // num_heads

    def forward(self, u: Float[Tensor, "b l y x d"]) -> Float[Tensor, "b l y x d"]:
        """Mix features over time and space; the shape stays."""
        return self.norm(self.blocks(u, *self._angles(u)))

    def _angles(self, u: Tensor) -> tuple[Tensor, Tensor]:
        _, length, height, width, _ = u.shape
        time, rows, columns = (
            torch.arange(n, device=u.device, dtype=torch.float32) for n in (length, height, width)
        )
        space = torch.cartesian_prod(rows, columns)
        return rotary_angles(time[:, None], self.head_dim), rotary_angles(space, self.head_dim)
