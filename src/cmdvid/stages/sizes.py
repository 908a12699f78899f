"""Which sizes of clips the networks can take: said before any video is read."""

from math import lcm
from typing import Any

from cmdvid.video import ClipSpec


def check_sides(
    spec: ClipSpec, *, codec: Any, autoencoder: Any, denoiser: Any | None = None
) -> None:
    """See that height and width of clips can be cut into the patches of all networks.

    Args:
        spec: The clips.
        codec: Makes frames of them.
        autoencoder: Makes content frames and motion latents of frames.
        denoiser: Of either; one without ``sides_multiple`` takes all sizes that the others take.

    Raises:
        ValueError: If they cannot; names the nearest size that would do.
    """
    multiple, patch = codec.stride * autoencoder.patch, autoencoder.patch
    why = f"{codec.stride} of the {type(codec).__name__}, {patch} of the autoencoder"
    if (sides_multiple := getattr(denoiser, "sides_multiple", None)) is not None:
        sides: int = sides_multiple(patch)
        multiple = codec.stride * lcm(patch, sides)
        why += f", {sides} of the {type(denoiser).__name__}"
    if all(side % multiple == 0 for side in spec.image_size):
        return
    given, near = (
        "x".join(map(str, size))
        for size in (
            spec.image_size,
            [max(1, round(side / multiple)) * multiple for side in spec.image_size],
        )
    )
    raise ValueError(
        f"data.spec.image_size {given}: height and width must be divisible by {multiple} ({why}); "
        f"the nearest such size is {near}"
    )
