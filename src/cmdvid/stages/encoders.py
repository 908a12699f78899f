"""What `encode` stores of a clip, how much of it, and which networks make it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

from lightning.pytorch import LightningModule
from torch import Tensor, nn

from cmdvid.data.cache import CacheSplit
from cmdvid.data.datamodule import VideoDataModule
from cmdvid.data.manifest import index_hash
from cmdvid.stages.networks import (
    FrozenAutoencoder,
    identify_codec,
    load_network,
    read_checkpoint,
)
from cmdvid.stages.sizes import check_sides
from cmdvid.video import ClipSpec


@dataclass(frozen=True)
class CacheOptions:
    """How a cache is made.

    Attributes:
        dtype: Of the stored tensors.
        clips_per_video: Windows of each training video.
        flips: Store each training clip mirrored as well.
        shard_size: Clips in a shard, brought up to whole batches.
        frames_only: Store frames for the autoencoder stage, not latents.
        overwrite: Remove what was made with other settings, instead of refusing.
    """

    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    clips_per_video: int = 1
    flips: bool = False
    shard_size: int = 512
    frames_only: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.clips_per_video < 1 or self.shard_size < 1:
            raise ValueError(
                f"clips_per_video and shard_size must be at least 1, got {self.clips_per_video} "
                f"and {self.shard_size}"
            )

    def split(self, name: str, index: Any, batch_size: int) -> CacheSplit:
        """What shards of an index hold; of validation videos that is the middle window."""
        train = name == "train"
        clips, flips = (self.clips_per_video, self.flips) if train else (1, False)
        num_batches = -(-self.shard_size // (batch_size * clips * (1 + flips)))
        return CacheSplit(
            num_rows=len(index),
            rows_per_shard=num_batches * batch_size,  # or rounding would depend on the order
            index=index_hash(index, name),
            clips_per_video=clips,
            flips=flips,
        )


class ClipEncoder(NamedTuple):
    """Turns clips in [-1, 1] into what is stored of them, by name."""

    encode: Callable[[Tensor], Mapping[str, Tensor]]
    source: dict[str, Any]  # fields of the manifest that tell which networks do it


def latent_encoder(ckpt: str | None, spec: ClipSpec) -> ClipEncoder:
    """Clips to latents of unit variance.

    Raises:
        ValueError: If no checkpoint of an autoencoder is given, its latents were not measured, or
            it cannot take clips of this size.
    """
    if ckpt is None:
        raise ValueError("encode needs the autoencoder's checkpoint: add --ckpt RUN/last.ckpt")
    frozen = FrozenAutoencoder(ckpt)
    check_sides(spec, codec=frozen.codec, autoencoder=frozen.autoencoder)
    source: dict[str, Any] = {
        "holds": "latents",
        "autoencoder": frozen.fingerprint,
        "autoencoder_ckpt": ckpt,
    }
    source["codec"] = identify_codec(frozen.codec)
    return ClipEncoder(lambda clip: frozen.encode(clip)._asdict(), source)


def frame_encoder(model: LightningModule, ckpt: str | None) -> ClipEncoder:
    """Clips to the frames of a codec: the checkpoint's, or the stage's own if there is none.

    Raises:
        ValueError: If neither has a codec.
    """
    codec: Any = getattr(model, "codec", None)
    if ckpt is not None:
        codec = load_network(read_checkpoint(ckpt), "codec", source=ckpt)
    if codec is None:
        raise ValueError(
            f"frames_only needs the autoencoder stage, whose codec makes frames; got a "
            f"{type(model).__name__}: give its --config or --ckpt"
        )
    source: dict[str, Any] = {"holds": "frames", "autoencoder": None, "autoencoder_ckpt": ckpt}
    source["codec"] = identify_codec(codec)
    return ClipEncoder(lambda clip: {"frames": codec.to(clip.device).encode(clip)}, source)


def check_texts(
    texts: Mapping[str, nn.Module], datamodule: VideoDataModule, *, frames_only: bool
) -> None:
    """See that what text encoders make of the captions can be stored.

    Raises:
        ValueError: If one is trained with its model, or there are no captions to read.
    """
    for part, network in texts.items():
        name = f"--{part}_conditioner {type(network).__name__}"
        if network.state_dict():
            raise ValueError(
                f"{name}: is trained with the {part} model, so what it makes of a caption cannot "
                "be stored; leave it out, or give a pretrained text encoder"
            )
        if frames_only:
            raise ValueError(f"{name}: the autoencoder reads no captions; leave it out")
        if not isinstance(cast(Any, datamodule.train)[0].condition, str):
            raise ValueError(f"{name}: the data have class labels, not captions; leave it out")
