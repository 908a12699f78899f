"""CLIPSIM: how well clips show what their captions say, by CLIP (Wu et al. 2021, GODIVA)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import center_crop, normalize, resize

from cmdvid.metrics.weights import fill, is_script, read_weights

MODEL = "ViT-B-32-quickgelu"  # OpenAI's weights were trained with this activation
SIZES = ("input_resolution", "context_length", "vocab_size")  # in OpenAI's state dicts
CHUNK = 64  # frames that are encoded at once: bounds the memory


class ClipTextSimilarity(nn.Module):
    """Cosine of each caption with the frames of its clip, averaged over the frames.

    Frames are scaled bicubically with antialiasing until their short side fits, cut at the centre,
    and normalised by CLIP's mean and deviation, as open_clip prepares images. Captions are cut to
    77 tokens.

    Args:
        network: A model of open_clip, in eval mode.
        tokenizer: Its tokenizer.
    """

    def __init__(self, network: Any, tokenizer: Any):
        super().__init__()
        self.network, self.tokenizer = network.eval().requires_grad_(False), tokenizer
        self.mean, self.std = list(network.visual.image_mean), list(network.visual.image_std)
        size = network.visual.image_size
        self.size: list[int] = list(size) if isinstance(size, Sequence) else [size, size]
        self.preprocessing = f"bicubic, centre crop {self.size[0]}x{self.size[1]}"

    def forward(
        self, clip: UInt8[Tensor, "b 3 l h w"], captions: Sequence[str]
    ) -> Float[Tensor, " b"]:
        """Mean cosine of each clip, on its raw scale in [-1, 1] (some papers print 100 times it).

        Raises:
            ValueError: If there is not one caption for each clip, or one is empty.
        """
        if len(captions) != len(clip):
            raise ValueError(f"each clip needs its caption, got {len(captions)} for {len(clip)}")
        if empty := [i for i, caption in enumerate(captions) if not caption.strip()]:
            raise ValueError(f"caption {empty[0]} of the batch is empty: nothing to compare with")
        tokens = self.tokenizer(list(captions)).to(clip.device)
        text = F.normalize(self.network.encode_text(tokens).float(), dim=-1)
        frames = rearrange(clip, "b c l h w -> (b l) c h w")
        image = torch.cat([self._encode(chunk) for chunk in frames.split(CHUNK)])
        image = rearrange(image, "(b l) d -> b l d", b=len(clip))
        return torch.einsum("bld,bd->bl", image, text).mean(dim=1)

    def _encode(self, frames: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        frames = resize(frames, [min(self.size)], InterpolationMode.BICUBIC, antialias=True)
        frames = center_crop(frames, self.size).float() / 255
        image = normalize(frames, self.mean, self.std)
        return F.normalize(self.network.encode_image(image).float(), dim=-1)


def load_clip(pretrained: str | Path = "openai", model_name: str = MODEL) -> ClipTextSimilarity:
    """The network of CLIPSIM.

    Args:
        pretrained: open_clip's tag of weights, downloaded once; or a file of them: a state dict of
            torch or safetensors, or the TorchScript program that OpenAI published.
        model_name: An open_clip model; papers use ViT-B/32.

    Raises:
        ValueError: If open_clip knows no such model, or the weights cannot be had or are not its.
    """
    import open_clip

    if open_clip.get_model_config(model_name) is None:
        raise ValueError(
            f"open_clip knows no model {model_name!r}; see open_clip.list_models() for its names"
        )
    try:
        if (path := Path(pretrained)).is_file() and is_script(path):
            network = open_clip.create_model(model_name)
            program: Any = read_weights(path)
            weights = {k: v.float() for k, v in program.state_dict().items() if k not in SIZES}
            fill(network, weights, source=path)
        else:
            network = open_clip.create_model(model_name, pretrained=str(pretrained))
    except Exception as error:  # each of open_clip's readers has its own
        what = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"{pretrained}: no weights of {model_name}; needed is a file of them, or a tag such as "
            f"'openai' and once the network ({what})"
        ) from error
    return ClipTextSimilarity(network, open_clip.get_tokenizer(model_name))


class CLIPSim(Metric):
    """Mean similarity of clips and captions, each clip counting alike, over all processes.

    ``compute()`` gives ``clipsim``, its standard error ``clipsim_error`` (infinite for one clip),
    and the ``count`` of clips.

    Args:
        network: From ``load_clip``; metrics may share one.
        metric_options: Those of ``torchmetrics.Metric``.
    """

    full_state_update = False
    higher_is_better = True

    def __init__(self, network: ClipTextSimilarity, **metric_options) -> None:
        super().__init__(**metric_options)
        self.network = network
        for name in ("count", "sum", "squares"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, clip: UInt8[Tensor, "b 3 l h w"], captions: Sequence[str]) -> None:
        """Add a batch of clips and what each should show."""
        scores = self.network(clip, captions).double()
        self.count += len(scores)
        self.sum += scores.sum()
        self.squares += scores.square().sum()

    def compute(self) -> dict[str, float]:
        """Mean over all clips.

        Raises:
            ValueError: If no clip was added.
        """
        count = int(self.count)
        if not count:
            raise ValueError("no clips were compared, so there is no CLIPSIM: call update first")
        mean = float(self.sum) / count
        spread = max(float(self.squares) / count - mean**2, 0.0)  # variance of these clips
        error = (spread / (count - 1)) ** 0.5 if count > 1 else float("inf")
        return {"clipsim": mean, "clipsim_error": error, "count": count}
