"""From networks on the meta device to the calls of them that are counted."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel
from einops import rearrange
from torch import Tensor, nn

from cmdvid.models.autoencoder import Autoencoder
from cmdvid.models.conditioning import LabelConditioner
from cmdvid.models.motion_dit import MotionDiT
from cmdvid.models.sd_architectures import ARCHITECTURES, SD21_BASE
from cmdvid.models.sd_codec import StableDiffusionCodec
from cmdvid.models.sd_text import StableDiffusionText
from cmdvid.profiling import Call, Part
from cmdvid.types import VideoLatent


def autoencoder_part(network: Autoencoder, clip: Sequence[int], **settings: Any) -> Part:
    """The autoencoder on frames of (l, h, w); stage one keeps no moving average.

    Args:
        network: On the meta device.
        clip: Number, height and width of frames.
        settings: Further fields of the part.
    """

    def run(net: Any, num: int) -> Tensor:
        return net(torch.empty(num, network.channels, *clip))[0]

    return Part("autoencoder", network, run, ema=False, **settings)


def diffusion_part(
    name: str,
    denoiser: nn.Module,
    conditioner: nn.Module,
    shape: Sequence[int],
    *,
    context: Mapping[str, Sequence[int]],
    **settings: Any,
) -> Part:
    """A denoiser on one part of a latent, and its conditioner, which is trained too or frozen.

    Args:
        name: Of the part.
        denoiser: On the meta device, as the conditioner is.
        conditioner: Of labels or captions.
        shape: Of one sample.
        context: Shape of each further input of the denoiser.
        settings: Further fields of the part.
    """
    frozen = text_call(conditioner)

    def run(net: Any, num: int) -> Tensor:
        inputs = {key: torch.empty(num, *size) for key, size in context.items()}
        t = torch.zeros(num, dtype=torch.long)
        embedding = _embed(net[-1], num) if frozen is None else _embedded(conditioner, num)
        return net[0](torch.empty(num, *shape), t, embedding, **inputs)

    if frozen is None:
        return Part(name, nn.ModuleList([denoiser, conditioner]), run, **settings)
    settings["frozen"] = (*settings.get("frozen", ()), frozen.network)
    settings["before"] = (*settings.get("before", ()), frozen)
    return Part(name, nn.ModuleList([denoiser]), run, **settings)


def text_call(conditioner: Any) -> Call | None:
    """A frozen text tower on one caption; None if there is none."""
    if getattr(conditioner, "_frozen", None) is None:
        return None
    length = _context_length(conditioner)
    return Call(
        conditioner._frozen.tower, lambda tower: tower(torch.zeros(1, length, dtype=torch.long))
    )


def encoding_calls(
    codec: Any, autoencoder: Autoencoder, clip: Sequence[int], batch_size: int = 1
) -> dict[str, Call]:
    """What turns a clip of (l, h, w) frames into a latent; ``batch_size`` clips at a time."""
    length, height, width = clip
    calls = {}
    if isinstance(codec, StableDiffusionCodec):
        image = (codec.chunk_size, 3, height * codec.stride, width * codec.stride)
        calls["codec"] = Call(
            codec.vae,
            lambda vae: vae.encode(torch.empty(image)).latent_dist.mode(),
            length / codec.chunk_size,
        )
    frames = (batch_size, autoencoder.channels, *clip)
    calls["autoencoder"] = Call(
        autoencoder, lambda net: net.encode(torch.empty(frames)), 1 / batch_size
    )
    return calls


def decoding_calls(codec: Any, autoencoder: Autoencoder, clip: Sequence[int]) -> dict[str, Call]:
    """What turns a latent into a clip of (l, h, w) frames."""
    length, height, width = clip

    def decode(net: Any) -> Tensor:
        places = height // net.patch + width // net.patch
        content = torch.empty(1, net.channels, height, width)
        return net.decode(
            VideoLatent(content, torch.empty(1, net.config["motion_channels"], length, places))
        )

    calls = {"autoencoder": Call(autoencoder, decode)}
    if isinstance(codec, StableDiffusionCodec):
        z = (codec.chunk_size, codec.channels, height, width)
        calls["codec"] = Call(
            codec.tiny or codec.vae,
            lambda net: net.decode(torch.empty(z)).sample,
            length / codec.chunk_size,
        )
    return calls


def preview_call(codec: Any, autoencoder: Autoencoder, clip: Sequence[int], num: int) -> Call:
    """What shows ``num`` clips of (l, h, w) frames and their generated twins: all are decoded."""
    length, height, width = clip
    places = height // autoencoder.patch + width // autoencoder.patch

    def decode(net: Any) -> Tensor:
        content = torch.empty(num, autoencoder.channels, height, width)
        motion = torch.empty(num, autoencoder.config["motion_channels"], length, places)
        frames = net[0].decode(VideoLatent(content, motion))
        if len(net) == 1:
            return frames
        images = rearrange(frames, "b c l h w -> (b l) c h w").split(codec.chunk_size)
        return torch.cat([net[1].decode(chunk).sample for chunk in images])

    def show(net: Any) -> list[Tensor]:
        return [decode(net) for _ in range(2)]

    networks = [call.network for call in decoding_calls(codec, autoencoder, clip).values()]
    return Call(nn.ModuleList(networks), show)


def sampling_calls(
    parts: Sequence[Part],
    conditioners: Sequence[nn.Module],
    *,
    steps: Sequence[int],
    scales: Sequence[float],
) -> dict[str, Call]:
    """Content and motion steps of one sample, of two passes each if guided; and their captions."""
    calls = {}
    for part, conditioner, num, scale in zip(parts, conditioners, steps, scales, strict=True):
        copies = 1 if scale == 1 else 2
        if text := text_call(conditioner):
            calls[f"{part.name}: captions"] = replace(text, times=copies)
        calls[f"{part.name}: guidance {scale:g}"] = Call(part.network, _passes(part, copies), num)
    return calls


def paper_parts(height: int = 512, width: int = 512) -> dict[str, Part]:
    """The paper's networks for Stable Diffusion 2.1-base at this size in pixels, and ModelScope."""
    h, w = height // 8, width // 8
    sizes: Any = ARCHITECTURES[SD21_BASE]["unet"]
    widths = sizes["block_out_channels"]
    with torch.device("meta"):
        autoencoder = Autoencoder(4, gated_mlp=True)  # Table 5
        unet = UNet2DConditionModel(**sizes)
        motion = MotionDiT(
            **{"channels": 4, "condition_dim": 1024, "width": 1152, "depth": 28},
            content_patch=8,  # Table 7
        )
        modelscope = UNet3DConditionModel(
            block_out_channels=widths, cross_attention_dim=1024, attention_head_dim=64
        )

    def denoise(net: Any, num: int, *shape: int) -> Tensor:
        text, t = torch.empty(num, 77, 1024), torch.zeros(num, dtype=torch.long)
        return net(torch.empty(num, *shape), t, text).sample

    def move(net: Any, num: int) -> Tensor:
        noisy, t = torch.empty(num, 8, 16, (h + w) // 2), torch.zeros(num, dtype=torch.long)
        return net(noisy, t, torch.empty(num, 1024), content=torch.empty(num, 4, h, w))

    mixed: Any = {"precision": "16-mixed"}  # Table 8
    return {
        "autoencoder": autoencoder_part(autoencoder, (16, h, w), **mixed),
        "content": Part("content", unet, lambda net, n: denoise(net, n, 4, h, w), **mixed),
        "motion": Part("motion", motion, move, **mixed),
        "ModelScope": Part(
            "ModelScope", modelscope, lambda net, n: denoise(net, n, 4, 16, h, w), **mixed
        ),
    }


def _passes(part: Part, num: int) -> Callable[[Any], Tensor]:
    return lambda network: part.run(network, num)


def _embed(conditioner: Any, num: int) -> Tensor:
    """The embedding without its checks, which read values that the meta device does not have."""
    if isinstance(conditioner, LabelConditioner):
        return conditioner.embedding(torch.zeros(num, dtype=torch.long))
    embedding = conditioner.tower(torch.zeros(num, conditioner.context_length, dtype=torch.long))
    return embedding if embedding.ndim == 2 else embedding.mean(dim=1)


def _embedded(conditioner: Any, num: int) -> Tensor:
    """An embedding that is no part of the pass: a sequence, or one vector."""
    sequence = isinstance(conditioner, StableDiffusionText)
    shape = (_context_length(conditioner), conditioner.dim) if sequence else (conditioner.dim,)
    return torch.empty(num, *shape)


def _context_length(conditioner: Any) -> int:
    if isinstance(conditioner, StableDiffusionText):
        return conditioner.text_encoder.config.max_position_embeddings
    return conditioner.context_length
