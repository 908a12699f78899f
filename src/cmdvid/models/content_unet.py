"""Content denoiser for small budgets: diffusers' U-Net on one image, conditioned like the DiT."""

from collections.abc import Sequence

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DModel
from einops import rearrange
from jaxtyping import Float, Real
from torch import Tensor, nn


class ContentUNet(ModelMixin, ConfigMixin):
    """A U-Net over the patches of a content frame, attending at its lowest resolution.

    The paper's text-to-video content model is a U-Net too, if a pretrained one. Convolutions know
    that neighbours belong together, which a small ContentDiT has to learn first: at the demo's
    budget it draws clean outlines several times sooner.

    Args:
        channels: Channels of the content frame.
        condition_dim: Width of the condition's embedding.
        widths: Channels at each resolution, multiples of 24; each resolution is half the last.
        num_layers: Residual blocks at each resolution.
        patch: Side of a square patch; the U-Net works on the patch grid.
    """

    @register_to_config
    def __init__(
        self,
        channels: int = 3,
        *,
        condition_dim: int = 256,
        widths: Sequence[int] = (48, 96),
        num_layers: int = 1,
        patch: int = 2,
    ):
        super().__init__()
        pixels, convolutions = channels * patch**2, len(widths) - 1
        self.patch = patch
        self.condition = nn.Linear(condition_dim, 4 * widths[0])
        self.unet = UNet2DModel(
            in_channels=pixels,
            out_channels=pixels,
            block_out_channels=tuple(widths),
            layers_per_block=num_layers,
            down_block_types=("DownBlock2D",) * convolutions + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * convolutions,
            norm_num_groups=1,  # small groups hide from each other how strong the signal is
            attention_head_dim=24,
            class_embed_type="identity",  # adds our embedding of the condition to that of t
            resnet_time_scale_shift="scale_shift",
        )

    def sides_multiple(self, autoencoder_patch: int) -> int:
        """What height and width of content frames must be divisible by."""
        return self.patch * 2 ** (len(self.config["widths"]) - 1)

    def forward(
        self,
        noisy: Float[Tensor, "b c h w"],
        t: Real[Tensor, " b"],
        condition: Float[Tensor, "b e"],
    ) -> Float[Tensor, "b c h w"]:
        """Predict the noise (or velocity, or sample) in a content frame (CMD Eq. 7).

        Raises:
            ValueError: If height or width does not survive all halvings.
        """
        multiple = self.sides_multiple(1)
        if noisy.shape[-2] % multiple or noisy.shape[-1] % multiple:
            raise ValueError(
                f"this ContentUNet takes sides divisible by {multiple}, "
                f"got {noisy.shape[-2]}x{noisy.shape[-1]}"
            )
        p = self.patch
        patches = rearrange(noisy, "b c (y p) (x q) -> b (c p q) y x", p=p, q=p)
        prediction = self.unet(patches, t, class_labels=self.condition(condition)).sample
        return rearrange(prediction, "b (c p q) y x -> b c (y p) (x q)", p=p, q=p)
