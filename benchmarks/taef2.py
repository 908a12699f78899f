"""A small real image autoencoder behind AutoencoderKL's interface: TAEF2, the tiny one of FLUX.2.

Weights: https://github.com/madebyollin/taesd (MIT), taef2_encoder.pth and taef2_decoder.pth.
"""

from pathlib import Path
from types import SimpleNamespace

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKLOutput
from diffusers.models.autoencoders.vae import DecoderOutput, IdentityDistribution
from torch import Tensor, nn

CHANNELS, WIDTH = 32, 64


class TAEF2(nn.Module):
    """Pixels in [-1, 1] to 32 channels at an eighth of the size, and back.

    Args:
        folder: Where its two files are.
    """

    config = SimpleNamespace(latent_channels=CHANNELS, block_out_channels=(WIDTH,) * 4)
    config.scaling_factor, config.shift_factor = 1.0, None

    def __init__(self, folder: str | Path):
        super().__init__()
        self.encoder, self.decoder = encoder(), decoder()
        for name in ("encoder", "decoder"):
            weights = torch.load(Path(folder) / f"taef2_{name}.pth", weights_only=True)
            getattr(self, name).load_state_dict(weights)

    @property
    def device(self) -> torch.device:
        return self.encoder[0].weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.encoder[0].weight.dtype

    def encode(self, image: Tensor) -> AutoencoderKLOutput:
        z = self.encoder(image / 2 + 0.5)
        return AutoencoderKLOutput(latent_dist=IdentityDistribution(z))  # pyright: ignore

    def decode(self, z: Tensor) -> DecoderOutput:
        return DecoderOutput(sample=self.decoder(z) * 2 - 1)


class Block(nn.Module):
    """Three convolutions around a skip; with ``pool``, statistics of the whole image join in."""

    def __init__(self, *, pool: bool = False):
        super().__init__()
        self.conv = nn.Sequential(conv(), nn.ReLU(), conv(), nn.ReLU(), conv())
        wide = 4 * WIDTH
        self.pool = None
        if pool:
            self.pool = nn.Sequential(
                nn.Conv2d(WIDTH, wide, 1, bias=False),
                nn.GroupNorm(4, wide),
                nn.ReLU(),
                nn.Conv2d(wide, WIDTH, 1, bias=False),
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return (self.conv(x) + x).relu()


class Bound(nn.Module):
    """Keeps latents within three."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * (x / 3).tanh()


def conv(n_in: int = WIDTH, n_out: int = WIDTH, **options: int) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, padding=1, bias=not options.pop("bare", 0), **options)


def blocks(num: int, *, pool: bool = False) -> list[nn.Module]:
    return [Block(pool=pool) for _ in range(num)]


def encoder() -> nn.Sequential:
    layers = [conv(3), *blocks(1)]
    for level in range(3):
        layers += [conv(stride=2, bare=1), *blocks(3, pool=level == 2)]
    return nn.Sequential(*layers, conv(n_out=CHANNELS))


def decoder() -> nn.Sequential:
    layers = [Bound(), conv(CHANNELS), nn.ReLU(), *blocks(3, pool=True)]
    for level in range(3):
        layers += [nn.Upsample(scale_factor=2), conv(bare=1), *blocks(1 if level == 2 else 3)]
    return nn.Sequential(*layers, conv(n_out=3))
