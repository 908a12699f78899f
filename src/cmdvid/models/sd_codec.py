"""The codec of text to video: frames are latents of Stable Diffusion's VAE (CMD section 4.1)."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from cmdvid.models.frozen import FrozenTower, in_dtype, refuse_variant
from cmdvid.models.sd_folder import load_part

VAE, TINY = "vae", "tiny"  # sub-folders of a saved codec


class StableDiffusionCodec(ModelMixin, ConfigMixin):
    """Frames are the scaled latents ``(z - shift) * scale`` of a pretrained VAE, which is frozen.

    The VAE is no part of checkpoints: they name its folder and what it must be, and another one is
    refused. ``save_pretrained`` writes it below the codec's own folder, and is read back there.

    Args:
        model: Folder or hub id of a whole Stable Diffusion model, or of an AutoencoderKL.
        vae: One that is in memory already, in place of ``model``; no stage can save it.
        tiny: Folder or hub id of the AutoencoderTiny that belongs to the same latents; it decodes
            at a twentieth of the cost.
        chunk_size: Frames that are encoded, or decoded, at a time; 1 is diffusers' "slicing". Two
            frames of 512x1024 take about 5 GB in fp32 (estimated), so that a 24 GB card has room
            for what is trained beside it.
        sample_posterior: Draw frames from the VAE's posterior; else take its mode, so that a clip
            always has the same frames.
        tiling: Decode in overlapping tiles: less memory, and colours may drift between tiles.
        made_by: What a checkpoint knows of the VAE that it was trained with; see check_codec.
    """

    fixed_scale = True  # a pretrained content model knows frames in this scale and no other
    ignore_for_config: ClassVar[list[str]] = ["vae"]

    @register_to_config
    def __init__(
        self,
        model: str | None = None,
        *,
        vae: nn.Module | None = None,
        tiny: str | None = None,
        chunk_size: int = 2,
        sample_posterior: bool = False,
        tiling: bool = False,
        made_by: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        if (model is None) == (vae is None):
            raise ValueError(f"give either model or vae, got model={model!r} and vae={type(vae)}")
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1 frame, got {chunk_size}")
        network: Any = load_part(AutoencoderKL, model, VAE) if model else vae
        self._vae = FrozenTower(network)
        self._tiny = FrozenTower(load_part(AutoencoderTiny, tiny, TINY)) if tiny else None
        self.chunk_size, self.sample_posterior, self.tiling = chunk_size, sample_posterior, tiling
        config = network.config
        self.channels: int = config.latent_channels
        self.stride: int = 2 ** (len(config.block_out_channels) - 1)
        self.scale: float = config.scaling_factor
        self.shift: float = getattr(config, "shift_factor", None) or 0.0
        if tiny:
            _check_tiny(self, source=tiny)
        if network.device.type != "meta":
            self.register_to_config(made_by=check_codec(self, made_by, source=model or "vae"))

    @property
    def vae(self) -> Any:
        """The AutoencoderKL."""
        return self._vae.tower

    @property
    def tiny(self) -> Any:
        """The AutoencoderTiny that decodes, or None."""
        return None if self._tiny is None else self._tiny.tower

    @property
    def device(self) -> torch.device:
        return self.vae.device

    @property
    def dtype(self) -> torch.dtype:
        return self.vae.dtype

    @torch.no_grad()
    @apply_forward_hook  # lets accelerate bring an offloaded codec to the device
    def encode(self, clip: Float[Tensor, "b 3 l h w"]) -> Float[Tensor, "b c l y x"]:
        """Encode every frame alone, ``chunk_size`` at a time; y, x are h, w / stride.

        Raises:
            ValueError: If height or width is not divisible by the stride.
        """
        h, w = clip.shape[-2:]
        if h % self.stride or w % self.stride:
            raise ValueError(
                f"this VAE halves height and width {self.stride.bit_length() - 1} times: both "
                f"must be divisible by {self.stride}, got {h}x{w}"
            )
        self.vae.use_tiling = False  # tiles would change the frames that all stages learn
        return self._by_chunks(self._encode, clip)

    @apply_forward_hook
    def decode(self, frames: Float[Tensor, "b c l y x"]) -> Float[Tensor, "b 3 l h w"]:
        """Decode every frame alone, ``chunk_size`` at a time, to RGB in [-1, 1].

        Raises:
            ValueError: If the frames have another number of channels than the VAE's latents.
        """
        if frames.shape[1] != self.channels:
            raise ValueError(
                f"this VAE decodes latents of {self.channels} channels, got frames of "
                f"{frames.shape[1]}"
            )
        return self._by_chunks(self._decode, frames).clamp(-1, 1)

    def _encode(self, image: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c y x"]:
        posterior = self.vae.encode(image).latent_dist
        z = posterior.sample() if self.sample_posterior else posterior.mode()
        return (z - self.shift) * self.scale

    def _decode(self, z: Float[Tensor, "n c y x"]) -> Float[Tensor, "n 3 h w"]:
        if self.tiny is not None:  # made for scaled latents; its own factor is 1
            network = self.tiny
            z = z / network.config.scaling_factor
        else:
            network, z = self.vae, z / self.scale + self.shift
        network.use_tiling = self.tiling
        return network.decode(z).sample

    def _by_chunks(self, call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        images = rearrange(x, "b c l h w -> (b l) c h w").to(self.dtype)
        done = torch.cat([call(chunk) for chunk in images.split(self.chunk_size)])
        return rearrange(done, "(b l) c h w -> b c l h w", b=len(x)).to(x.dtype)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The hidden weights, for whoever asks this very module; it registers none."""
        return chain(*(f.tower.parameters() for f in (self._vae, self._tiny) if f is not None))

    def _apply(self, fn: Any, recurse: bool = True) -> "StableDiffusionCodec":
        for frozen in (self._vae, self._tiny):
            if frozen is not None:
                frozen.tower._apply(fn)
        return super()._apply(fn, recurse)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write the configuration, and the VAE below it."""
        refuse_variant(kwargs, save_directory)
        self.save_config(save_directory)
        self.vae.save_pretrained(Path(save_directory) / VAE, **kwargs)
        if self.tiny is not None:
            self.tiny.save_pretrained(Path(save_directory) / TINY, **kwargs)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> "StableDiffusionCodec":
        """Read what save_pretrained wrote, wherever the folder is now.

        Args:
            pretrained_model_name_or_path: That folder.
            kwargs: What diffusers tells all parts of a pipeline; ``torch_dtype`` counts.
        """
        refuse_variant(kwargs, pretrained_model_name_or_path)
        folder = str(pretrained_model_name_or_path)
        config: Any = cls.load_config(folder)
        here = {"model": folder, "tiny": folder if config.get("tiny") else None, "made_by": None}
        codec: Any = cls.from_config({**config, **here})
        return in_dtype(codec, kwargs)


def check_codec(
    codec: StableDiffusionCodec, made_by: Mapping[str, Any] | None, *, source: str
) -> dict[str, Any]:
    """See that a codec makes the same frames as the one that a checkpoint was trained with.

    What counts is scale, shift and the encoder: a VAE that decodes better is welcome.

    Args:
        codec: The codec at hand.
        made_by: What this function returned of the other one; None asks for nothing.
        source: Names the codec in the message.

    Returns:
        Scale, shift and the SHA-256 of the encoder's weights.

    Raises:
        ValueError: If they differ; names both sides.
    """
    ours = {"scale": codec.scale, "shift": codec.shift, "encoder": _digest(codec.vae)}
    differ = [key for key in ours if made_by is not None and made_by.get(key) != ours[key]]
    if made_by is not None and differ:
        theirs, found = (
            ", ".join(f"{key} {str(of.get(key))[:12]}" for key in differ) for of in (made_by, ours)
        )
        raise ValueError(
            f"{source}: not the VAE that the checkpoint was trained with; it had {theirs}, "
            f"but this one has {found}"
        )
    return ours


def with_vae(codec: nn.Module) -> StableDiffusionCodec:
    """The codec itself, if it has a VAE.

    Raises:
        ValueError: If it has none.
    """
    if not isinstance(codec, StableDiffusionCodec):
        raise ValueError(f"the codec is a {type(codec).__name__}, with no VAE to tile or slice")
    return codec


def _check_tiny(codec: StableDiffusionCodec, *, source: str) -> None:
    config = codec.tiny.config
    stride = 2 ** (len(config.decoder_block_out_channels) - 1)
    if (config.latent_channels, stride) != (codec.channels, codec.stride):
        raise ValueError(
            f"{source}: decodes {config.latent_channels} channels at 1/{stride} of the size, but "
            f"the VAE's latents have {codec.channels} channels at 1/{codec.stride}"
        )


def _digest(vae: Any) -> str:
    digest = hashlib.sha256()
    for network in (vae.encoder, getattr(vae, "quant_conv", None)):
        for name, value in sorted(network.state_dict().items()) if network is not None else ():
            digest.update(name.encode())
            digest.update(value.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
