"""The values that travel between data, models and stages, and the letters that name their axes.

Axes: ``b`` batch, ``c`` channels, ``l`` frames, ``h w`` height and width, ``y x`` patch grid,
``m`` motion channels, ``s = y + x`` rows then columns of the patch grid, ``n d`` tokens and width.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

Condition: TypeAlias = Int[Tensor, " b"] | Sequence[str]
"""Class indices, or captions; the empty caption is the null condition."""


class FilePart(NamedTuple):
    """Some bytes of a larger file: a video in a shard."""

    url: str  # a path, or a URL that fsspec opens
    offset: int
    size: int


class VideoEntry(NamedTuple):
    """One row of an index: a video file and what is known of it."""

    path: str  # of the file; of a part its name in messages
    condition: int | str  # class index, or caption
    part: FilePart | None = None  # where the video lies, unless it is a file of its own


class ClipBatch(NamedTuple):
    """Clips as the stages see them; one sample of a data set has no batch axis and uint8 pixels."""

    clip: Float[Tensor, "b 3 l h w"] | UInt8[Tensor, "*b 3 l h w"]  # RGB, float in [-1, 1]
    condition: Condition | int | str
    index: Int[Tensor, " b"] | int  # row of the index: names files, seeds samples


class PromptBatch(NamedTuple):
    """Conditions to generate from, with the row that names the file and seeds the noise."""

    condition: Condition | int | str
    index: Int[Tensor, " b"] | int


class VideoLatent(NamedTuple):
    """A clip as one image and a little motion; what both diffusion stages learn."""

    content: Float[Tensor, "b c h w"]  # weighted mean of the frames, so it looks like one (Eq. 3)
    motion: Float[Tensor, "b m l s"]  # rows then columns of the patch grid, s = y + x (Eq. 4)


class TextEmbedding(NamedTuple):
    """Captions as the frozen text encoders of both models read them; empty if not cached."""

    content: Float[Tensor, "*b n d"] | Float[Tensor, "*b 0"] = torch.empty(0)
    motion: Float[Tensor, "*b d"] | Float[Tensor, "*b 0"] = torch.empty(0)


class LatentBatch(NamedTuple):
    """Encoded clips of unit variance, as read from a latent cache."""

    latent: VideoLatent
    condition: Condition | int | str
    index: Int[Tensor, " b"] | int
    text: TextEmbedding = TextEmbedding()  # of the condition, if it is a caption


class FramesBatch(NamedTuple):
    """Clips as their codec encodes them, read from a cache of frames."""

    frames: Float[Tensor, "*b c l y x"]  # y, x are h, w / the codec's stride
    condition: Condition | int | str
    index: Int[Tensor, " b"] | int


class GeneratedBatch(NamedTuple):
    """What ``predict`` writes: clips with their content frames, beside the real clip if any."""

    clip: Float[Tensor, "b 3 l h w"] | None  # none from a content model, which draws one image
    content: Float[Tensor, "b 3 h w"]
    condition: Condition
    index: Int[Tensor, " b"]
    real: Float[Tensor, "b 3 l h w"] | None
