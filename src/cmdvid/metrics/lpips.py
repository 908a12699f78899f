"""LPIPS: how different two images look, by AlexNet's features (Zhang et al. 2018, version 0.1)."""

from importlib.resources import files
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import alexnet

from cmdvid.metrics.weights import Published, fetch, fill, read_weights

OFFERS = (
    Published(
        what="AlexNet of torchvision (its SHA-256 begins with 7be5be79)",
        url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    ),
)
LAYERS = (1, 4, 7, 9, 11)  # the five ReLUs
MIN_SIDE = 31  # pixels; smaller images do not reach the last layer


class LPIPS(nn.Module):
    """Distance of images, 0 for equal ones, with the published weights of the five layers.

    Those lie in torchmetrics; AlexNet is the user's to give.

    Args:
        features: The convolutional part of torchvision's AlexNet.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, features: nn.Sequential):
        super().__init__()
        self.features = features[: LAYERS[-1] + 1]
        heads = files("torchmetrics") / "functional/image/lpips_models/alex.pth"
        weights = torch.load(str(heads), map_location="cpu", weights_only=True)
        for i in range(len(LAYERS)):
            self.register_buffer(f"head{i}", weights[f"lin{i}.model.1.weight"])
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])
        self.eval().requires_grad_(False)

    def forward(
        self, image: Float[Tensor, "n 3 h w"], reference: Float[Tensor, "n 3 h w"]
    ) -> Float[Tensor, " n"]:
        """Compare images in [-1, 1] in pairs.

        Raises:
            ValueError: If they are too small for AlexNet.
        """
        if min(image.shape[-2:]) < MIN_SIDE:
            raise ValueError(
                f"LPIPS needs frames of at least {MIN_SIDE}x{MIN_SIDE} pixels, "
                f"got {image.shape[-2]}x{image.shape[-1]}"
            )
        ours, theirs = ((x - self.shift) / self.scale for x in (image, reference))
        distance, layer = torch.zeros(len(image), device=image.device), 0
        for i, module in enumerate(self.features):
            ours, theirs = module(ours), module(theirs)
            if i in LAYERS:
                difference = (_unit(ours) - _unit(theirs)).square()
                head = self.get_buffer(f"head{layer}")
                distance = distance + F.conv2d(difference, head).mean(dim=(1, 2, 3))
                layer += 1
        return distance


def load_lpips(source: str | Path, sha256: str | None = None) -> LPIPS:
    """LPIPS with AlexNet's weights from a file or URL.

    Args:
        source: torchvision's state dict of AlexNet.
        sha256: What the file must be; needed for a URL.

    Raises:
        ValueError: If the file is missing (tells what to download), or of another kind.
    """
    path = fetch(source, sha256, OFFERS)
    weights = read_weights(path)
    if not isinstance(weights, dict):
        raise ValueError(f"{path}: a TorchScript program, but AlexNet's state dict is needed")
    with torch.device("meta"):  # 59 of its 61 million weights classify, and are not needed
        features = alexnet().features
    features.to_empty(device="cpu")
    part = "features."
    given = {k.removeprefix(part): v for k, v in weights.items() if k.startswith(part)}
    fill(features, given, source=path)
    return LPIPS(features)


def _unit(features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Of length 1 at each place."""
    return features / (features.square().sum(dim=1, keepdim=True) + 1e-8).sqrt()
