"""The CMD autoencoder: clip -> content frame and motion latent -> clip (CMD Eqs. 3-6)."""

from typing import Any, cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn

from cmdvid.models.timesformer import TimeSformer
from cmdvid.types import VideoLatent


def content_frame(
    frames: Float[Tensor, "b c l h w"], importance: Float[Tensor, "b c l h w"]
) -> Float[Tensor, "b c h w"]:
    """Blend a clip into one image: every value is a weighted mean over time (CMD Eq. 3).

    Args:
        frames: RGB in [-1, 1] (c = 3) or scaled Stable Diffusion latents (c = 4).
        importance: Log-weights of any scale; a softmax over ``l`` makes them sum to one.

    Raises:
        ValueError: If the clip has one frame, which leaves no motion to separate.
    """
    if (length := frames.shape[2]) < 2:
        raise ValueError(f"a clip needs at least 2 frames to have motion, got {length}")
    return reduce(importance.softmax(dim=2) * frames, "b c l h w -> b c h w", "sum")


def project(u: Float[Tensor, "b l y x d"]) -> Float[Tensor, "b l s d"]:
    """Mean over the width gives rows, over the height columns; rows first (CMD Eq. 4)."""
    rows = reduce(u, "b l y x d -> b l y d", "mean")
    columns = reduce(u, "b l y x d -> b l x d", "mean")
    return torch.cat([rows, columns], dim=2)


def spread(
    image: Float[Tensor, "b y x d"], rows: Float[Tensor, "b l y d"], cols: Float[Tensor, "b l x d"]
) -> Float[Tensor, "b l y x d"]:
    """v[l, y, x] = content[y, x] + rows[l, y] + cols[l, x] (CMD Eq. 6)."""
    return (
        rearrange(image, "b y x d -> b 1 y x d")
        + rearrange(rows, "b l y d -> b l y 1 d")
        + rearrange(cols, "b l x d -> b l 1 x d")
    )


class Autoencoder(ModelMixin, ConfigMixin):
    """Encode frames as a content frame and a motion latent, and decode them (CMD section 3.1).

    The grid comes from the input: any length, any height and width divisible by the patch.

    Args:
        channels: Channels of a frame: 3 for RGB, 4 for Stable Diffusion latents.
        width: Hidden channels C' (Table 5: 384).
        depth: Blocks of the encoder, and of the decoder (8 reproduces the paper's cost).
        num_heads: Attention heads (Table 5: 8).
        patch: Side of a square patch (Table 5: 2).
        motion_channels: Channels D of the motion latent (Table 5: 8).
        center_motion: Take each feature's mean over time away before Eq. 4, so that the motion
            latent holds change alone and that of a still clip is the same at every frame. What
            stands still is left to the content frame. Not in the paper.
        bound_motion: Bound the motion latent to [-1, 1] by tanh. Not in the paper.
        motion_noise: Standard deviation of the noise on the motion latent in training, so that
            the decoder forgives the motion model's small errors. Not in the paper.
        anchor: Where in the clip, from 0 (first frame) to 1 (last), the content frame starts.
        anchor_bias: Log-weight that a frame loses for each step away from the anchor before
            anything is learned; 0 starts from the plain mean, as the paper does. A positive
            value starts from a sharp frame, which a small content model draws better.
        residual: Let the decoder learn the change from the content frame. Not in the paper.
        gated_mlp: GEGLU in place of a plain MLP; the paper's cost comes out with it alone.

    More arguments than our limit of eight: they are the columns of Table 5 and its options.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        channels: int = 3,
        *,
        width: int = 384,
        depth: int = 8,
        num_heads: int = 8,
        patch: int = 2,
        motion_channels: int = 8,
        center_motion: bool = False,
        bound_motion: bool = False,
        motion_noise: float = 0.0,
        anchor: float = 0.5,
        anchor_bias: float = 0.0,
        residual: bool = False,
        gated_mlp: bool = False,
    ):
        super().__init__()
        self.channels, self.patch = channels, patch
        self.center_motion = center_motion
        self.bound_motion, self.motion_noise = bound_motion, motion_noise
        self.anchor, self.anchor_bias, self.residual = anchor, anchor_bias, residual
        pixels = channels * patch**2
        self.encoder_in = nn.Linear(pixels, width)
        size: Any = {"depth": depth, "num_heads": num_heads, "gated_mlp": gated_mlp}
        self.encoder = TimeSformer(width, **size)  # f_B
        self.importance = nn.Linear(width, pixels)  # f_I
        self.to_motion = nn.Linear(width, motion_channels)  # f_M, a shared 1x1 convolution
        self.from_content = nn.Linear(pixels, width)  # g_I
        self.from_motion = nn.Linear(motion_channels, width)  # g_M
        self.decoder = TimeSformer(width, **size)  # g_B
        self.decoder_out = nn.Linear(width, pixels)
        if residual:
            nn.init.zeros_(self.decoder_out.weight)
            nn.init.zeros_(cast(Tensor, self.decoder_out.bias))
        for name, size in (("content", channels), ("motion", motion_channels)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))
        self.register_buffer("measured", torch.tensor(False))

    @apply_forward_hook
    def encode(self, frames: Float[Tensor, "b c l h w"]) -> VideoLatent:
        """Separate frames into content (Eq. 3) and motion (Eq. 4).

        Raises:
            ValueError: If channels, height or width do not fit, or there is only one frame.
        """
        self._check(frames)
        u = self.encoder(self.encoder_in(self._patches(frames)))
        importance = self._frames(self.importance(u)) + self._anchored(frames)
        u = u - u.mean(dim=1, keepdim=True) if self.center_motion else u
        motion = self.to_motion(project(u))
        motion = motion.tanh() if self.bound_motion else motion
        return VideoLatent(
            content_frame(frames, importance), rearrange(motion, "b l s m -> b m l s")
        )

    @apply_forward_hook
    def decode(self, latent: VideoLatent) -> Float[Tensor, "b c l h w"]:
        """Rebuild the frames from content and motion (Eqs. 5 and 6).

        Raises:
            ValueError: If channels, height or width of the content frame do not fit, or the motion
                latent does not belong to a content frame of this size.
        """
        content, motion = latent
        self._check(content[:, :, None])
        height, width = (side // self.patch for side in content.shape[-2:])
        if motion.shape[-1] != height + width:
            raise ValueError(
                f"a content frame of {content.shape[-2]}x{content.shape[-1]} needs a motion latent "
                f"of {height}+{width} rows and columns, got {motion.shape[-1]}"
            )
        if self.training and self.motion_noise:
            motion = motion + self.motion_noise * torch.randn_like(motion)
        image = self.from_content(self._patches(content[:, :, None])[:, 0])  # v^t, Eq. 5
        planes = self.from_motion(rearrange(motion, "b m l s -> b l s m"))  # v^x and v^y, Eq. 5
        rows, columns = planes.split([height, width], dim=2)
        frames = self._frames(self.decoder_out(self.decoder(spread(image, rows, columns))))
        return frames + content[:, :, None] if self.residual else frames

    def forward(
        self, frames: Float[Tensor, "b c l h w"]
    ) -> tuple[Float[Tensor, "b c l h w"], VideoLatent]:
        """Reconstruct frames, and return the latent they were rebuilt from."""
        latent = self.encode(frames)
        return self.decode(latent), latent

    @torch.no_grad()
    def set_statistics(self, content: Float[Tensor, "2 c"], motion: Float[Tensor, "2 m"]) -> None:
        """Store mean and standard deviation of each channel, as measured after training."""
        for name, statistics in (("content", content), ("motion", motion)):
            self.get_buffer(f"{name}_mean").copy_(statistics[0])
            self.get_buffer(f"{name}_std").copy_(statistics[1])
        self.get_buffer("measured").fill_(True)

    @apply_forward_hook
    def normalize(self, latent: VideoLatent) -> VideoLatent:
        """Scale a latent to zero mean and unit variance per channel, as diffusion wants it."""
        return VideoLatent(
            (latent.content - self._stat("content_mean", 2)) / self._stat("content_std", 2),
            (latent.motion - self._stat("motion_mean", 2)) / self._stat("motion_std", 2),
        )

    @apply_forward_hook
    def denormalize(self, latent: VideoLatent) -> VideoLatent:
        """Undo :meth:`normalize`."""
        return VideoLatent(
            latent.content * self._stat("content_std", 2) + self._stat("content_mean", 2),
            latent.motion * self._stat("motion_std", 2) + self._stat("motion_mean", 2),
        )

    def _stat(self, name: str, num_axes: int) -> Tensor:
        return self.get_buffer(name).view(-1, *[1] * num_axes)

    def _check(self, frames: Tensor) -> None:
        channels, patch = self.channels, self.patch
        _, c, _, h, w = frames.shape
        if c != channels or h % patch or w % patch:
            raise ValueError(
                f"the autoencoder takes {channels} channels and sides divisible by {patch}, "
                f"got {c} channels of {h}x{w}"
            )

    def _anchored(self, frames: Tensor) -> Tensor:
        last = frames.shape[2] - 1
        distance = (torch.arange(last + 1, device=frames.device) - round(self.anchor * last)).abs()
        return -self.anchor_bias * distance.to(frames.dtype).view(1, 1, -1, 1, 1)

    def _patches(self, frames: Tensor) -> Tensor:
        p = self.patch
        return rearrange(frames, "b c l (y p) (x q) -> b l y x (c p q)", p=p, q=p)

    def _frames(self, patches: Tensor) -> Tensor:
        p = self.patch
        return rearrange(patches, "b l y x (c p q) -> b c l (y p) (x q)", p=p, q=p)
