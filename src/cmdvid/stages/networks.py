"""Networks inside Lightning checkpoints: described, found again and loaded without the stage."""

import hashlib
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.configuration_utils import ConfigMixin
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from cmdvid.models.autoencoder import Autoencoder
from cmdvid.models.codecs import decode_content, decode_latent, encode_clip
from cmdvid.models.frozen import settings_of, weights_of
from cmdvid.models.sd_codec import StableDiffusionCodec, check_codec
from cmdvid.types import VideoLatent


def describe(*, prefix: str, network: Any) -> dict[str, Any]:
    """What a checkpoint must hold to rebuild a diffusers-style network from its state dict.

    Raises:
        ValueError: If it is a codec of a VAE that no file is known of.
    """
    if isinstance(network, StableDiffusionCodec) and network.config["model"] is None:
        raise ValueError(
            "the codec was made of a VAE in memory (vae=...), but a checkpoint names its folder: "
            "save_pretrained it, and make the codec of that folder (model=...)"
        )
    return {
        "class_path": _class_path(network),
        "config": {k: v for k, v in network.config.items() if not k.startswith("_")},
        "prefix": prefix,
    }


def refuse_other_codec(codec: Any, entry: Mapping[str, Any]) -> None:
    """See that a codec makes the frames that a checkpoint's autoencoder has learned.

    Args:
        codec: The codec at hand.
        entry: What :func:`describe` said of the checkpoint's.

    Raises:
        ValueError: If it is another one; names both.
    """
    ours, theirs = (path.rpartition(".")[2] for path in (_class_path(codec), entry["class_path"]))
    if ours != theirs:
        raise ValueError(
            f"the checkpoint was trained on the frames of a {theirs}, but the codec is a {ours}: "
            "correct codec, or train the autoencoder anew"
        )
    if isinstance(codec, StableDiffusionCodec):
        here, there = codec.config["model"], entry["config"].get("model")
        source = f"codec {here} (the checkpoint names {there})"
        check_codec(codec, entry["config"].get("made_by"), source=source)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a stage's checkpoint, trusting nothing but tensors and plain values in it.

    Raises:
        ValueError: If there is no such file, or it was not written by a stage of cmdvid.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such checkpoint; train that stage first or correct the path")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as a checkpoint ({error})") from error
    if not isinstance(checkpoint, dict) or "networks" not in checkpoint:
        raise ValueError(f"{path}: this checkpoint was not written by a stage of cmdvid")
    return checkpoint


def load_network(checkpoint: Mapping[str, Any], name: str, *, source: str | Path) -> Any:
    """Rebuild one network of a checkpoint with its trained weights, frozen and in eval mode.

    Raises:
        ValueError: If the checkpoint, named by ``source`` in the message, has no such network, or
            what it needs is not there any more.
    """
    if name not in checkpoint["networks"]:
        raise ValueError(
            f"{source}: holds {', '.join(checkpoint['networks'])} but no {name}; "
            "is this the checkpoint of another stage?"
        )
    entry = checkpoint["networks"][name]
    module, _, name_of_class = entry["class_path"].rpartition(".")
    cls = getattr(import_module(module), name_of_class)
    if not (isinstance(cls, type) and issubclass(cls, ConfigMixin)):
        raise ValueError(
            f"{source}: its {name} is {entry['class_path']}, which is neither network nor scheduler"
        )
    try:
        network: Any = cls(**entry["config"])
    except ValueError as error:  # such as a VAE that is another one by now
        raise ValueError(f"{source}: its {name} cannot be rebuilt: {error}") from error
    weights = checkpoint["state_dict"].items()
    if hasattr(network, "load_state_dict"):  # schedulers have none
        prefix = entry["prefix"]
        network.load_state_dict({k[len(prefix) :]: v for k, v in weights if k.startswith(prefix)})
        network.requires_grad_(False).eval()
    return network


def _class_path(network: Any) -> str:
    """The class that a network was made of: those that are cut up get one of their own."""
    cls = next(c for c in type(network).__mro__ if not issubclass(c, FSDPModule))
    return f"{cls.__module__}.{cls.__qualname__}"


def fingerprint(network: nn.Module) -> str:
    """SHA-256 over names and values of all weights; equal exactly for equal networks."""
    digest = hashlib.sha256()
    for name, value in sorted(weights_of(network).items()):
        digest.update(name.encode())
        digest.update(
            value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def identify(network: nn.Module) -> dict[str, Any]:
    """What decides what a network computes: class, settings and the hash of its weights."""
    return {
        "class_path": _class_path(network),
        **settings_of(network),
        "weights": fingerprint(network),
    }


def identify_codec(codec: Any) -> dict[str, Any]:
    """What decides which frames a codec makes; another one may decode them."""
    decisive = {k: codec.config[k] for k in ("made_by", "sample_posterior") if k in codec.config}
    return {"class_path": _class_path(codec), **decisive}


class FrozenAutoencoder:
    """The first stage's result as the others use it: clips to unit-variance latents and back.

    A plain object, so no checkpoint, moving average or DDP wrapper ever holds these weights.

    Args:
        ckpt: Checkpoint of an AutoencoderStage.

    Raises:
        ValueError: If it is none, or its training stopped before latents were measured.
    """

    def __init__(self, ckpt: str | Path):
        checkpoint = read_checkpoint(ckpt)
        self.autoencoder = cast(Autoencoder, load_network(checkpoint, "autoencoder", source=ckpt))
        self.codec: Any = load_network(checkpoint, "codec", source=ckpt)
        if not self.autoencoder.get_buffer("measured"):
            raise ValueError(
                f"{ckpt}: its latents were never measured, which `fit` does when training ends; "
                f"finish it with `cmdvid fit --config ... --ckpt {ckpt}`"
            )
        self.ckpt, self.fingerprint = ckpt, fingerprint(self.autoencoder)

    def refuse_other(self, digest: str, ckpt: str, *, subject: str, advice: str) -> None:
        """See that something was made by this autoencoder.

        Args:
            digest: Fingerprint of the one that made it.
            ckpt: Where that one was read.
            subject: Begins the message: what was made by "the autoencoder ...".
            advice: Ends it.

        Raises:
            ValueError: If another one made it; names both.
        """
        if digest != self.fingerprint:
            raise ValueError(
                f"{subject} the autoencoder {digest[:12]} ({ckpt}), "
                f"but {self.ckpt} holds {self.fingerprint[:12]}{advice}"
            )

    def encode(self, clip: Tensor) -> VideoLatent:
        """A clip in [-1, 1] to a latent of unit variance."""
        return encode_clip(clip, **self._networks(clip.device))

    def decode(self, latent: VideoLatent) -> Tensor:
        """A latent of unit variance to a clip in [-1, 1]."""
        return decode_latent(latent, **self._networks(latent.content.device))

    def decode_content(self, latent: VideoLatent) -> Tensor:
        """The content frame of a unit-variance latent as a picture in [-1, 1]."""
        return decode_content(latent, **self._networks(latent.content.device))

    def _networks(self, device: torch.device) -> dict[str, Any]:
        """The networks, where the input is: no trainer knows of them."""
        return {
            "codec": cast(nn.Module, self.codec).to(device),
            "autoencoder": cast(nn.Module, self.autoencoder).to(device),
        }
