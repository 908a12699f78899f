"""Caption accuracy on the procedural data set, judged by its oracle."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torchmetrics import Metric

from cmdvid.data.captions import parse_caption
from cmdvid.data.oracle import Reading, measure, read_batch
from cmdvid.data.scene import DEMO_SHAPES, ShapeAttributes

SCORES = ("shape", "colour", "motion", "background", "all", "valid", "strict")


class ShapesAccuracy(Metric):
    """How many clips show what their captions say.

    ``compute()`` gives fractions for ``shape``, ``colour``, ``motion``, ``background``, ``all``
    (shape, colour and motion), ``valid`` (one clean moving shape, whatever it is) and ``strict``
    (valid, and right in everything the caption mentions), and the ``count`` of clips. What a
    caption does not mention counts as right.
    """

    successes: Tensor  # for each of SCORES
    count: Tensor
    full_state_update = False
    higher_is_better = True

    def __init__(self, shapes: Sequence[str] = DEMO_SHAPES, **metric_options) -> None:
        """Set the choice.

        Args:
            shapes: The shapes of the data set, for the oracle to choose from.
            metric_options: Those of ``torchmetrics.Metric``.
        """
        super().__init__(**metric_options)
        self.shapes = tuple(shapes)
        zero = torch.zeros(len(SCORES), dtype=torch.long)
        self.add_state("successes", zero, dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(
        self,
        clip: Float[Tensor, "b 3 l h w"] | UInt8[Tensor, "b 3 l h w"],
        captions: Sequence[str],
    ) -> None:
        """Judge a batch.

        Args:
            clip: RGB, float in [-1, 1] or uint8.
            captions: One for each clip.

        Raises:
            ValueError: If a caption is not of the data set's language or shapes, or if there is
                not one for each clip.
        """
        if len(captions) != len(clip):
            raise ValueError(f"each clip needs its caption, got {len(captions)} for {len(clip)}")
        wanted = [parse_caption(caption) for caption in captions]
        if unknown := {want.shape for want in wanted} - set(self.shapes):
            raise ValueError(
                f"captions mention {', '.join(sorted(unknown))}, but the oracle chooses from "
                f"{', '.join(self.shapes)}: pass all shapes of the data set as `shapes`"
            )
        readings = read_batch(clip, self.shapes)
        marks = [_mark(reading, want) for reading, want in zip(readings, wanted, strict=True)]
        self.successes += torch.tensor(marks, device=self.device).sum(dim=0)
        self.count += len(marks)

    def compute(self) -> dict[str, float]:
        """Fractions by name, and the count of clips.

        Raises:
            ValueError: If no clip was judged.
        """
        if not self.count:
            raise ValueError("no clips were judged, so there is no accuracy: call update first")
        fractions = (self.successes.double() / self.count).tolist()
        return {**dict(zip(SCORES, fractions, strict=True)), "count": int(self.count)}


class ShapesFeatures(nn.Module):
    """What the oracle measures in a clip, as features for ``FrechetVideoDistance``.

    Their distance (``fvd_shapes``) needs no weights and no download, and tells how far the colours,
    shapes and motions of the procedural data set are met. It is no FVD, and comparable with none.

    Args:
        shapes: The shapes of the data set.
    """

    def __init__(self, shapes: Sequence[str] = DEMO_SHAPES) -> None:
        super().__init__()
        self.shapes = tuple(shapes)
        self.num_features = 2 * len(self.shapes) + 16

    def forward(self, clip: UInt8[Tensor, "b 3 l h w"]) -> Float[Tensor, "b d"]:
        """Measure clips of any length from 2 frames on."""
        return measure(clip, self.shapes)


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """The 95 % confidence interval of a proportion (Wilson 1927): honest near 0 and 1 too.

    Args:
        successes: Of ``n`` trials.
        n: At least 1.

    Raises:
        ValueError: If there are no trials, or more successes than trials.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"successes must lie in [0, n] with n >= 1, got {successes} of {n}")
    z = 1.959964  # 97.5 % quantile of the normal distribution
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def _mark(reading: Reading, want: ShapeAttributes) -> list[int]:
    """One mark for each of SCORES."""
    said = {name: getattr(want, name) for name in ("shape", "colour", "motion", "background")}
    right = {name: word in (None, getattr(reading.attributes, name)) for name, word in said.items()}
    marks = [
        *right.values(),
        right["shape"] and right["colour"] and right["motion"],
        reading.valid,
        reading.valid and all(right.values()),
    ]
    return [int(mark) for mark in marks]
