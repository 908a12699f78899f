"""Captions on their way to a text tower: each is read once, and none is cut unsaid."""

import logging
from collections.abc import Sequence

from torch import Tensor

from cmdvid.types import Condition

logger = logging.getLogger(__name__)


class CutNotice:
    """Warns of each caption that is longer than its context, once; copies share what was said."""

    def __init__(self):
        self._said: set[int] = set()

    def __call__(self, caption: str, *, num_tokens: int, length: int) -> None:
        """See whether a caption of ``num_tokens``, start and end included, fits ``length``."""
        if num_tokens > length and hash(caption) not in self._said:
            self._said.add(hash(caption))
            logger.warning(
                "a caption of %d tokens is cut to %d: %.60s...", num_tokens, length, caption
            )

    def __deepcopy__(self, memo: dict) -> "CutNotice":
        return self


def distinct(captions: Sequence[str]) -> tuple[list[str], list[int]]:
    """Each caption once, and where each of the given ones is: a frozen tower reads none twice."""
    places = {caption: place for place, caption in enumerate(dict.fromkeys(captions))}
    return list(places), [places[caption] for caption in captions]


def only_captions(condition: Condition, *, reader: str) -> Sequence[str]:
    """The condition itself.

    Args:
        condition: What a text conditioner was given.
        reader: Name of its class.

    Raises:
        ValueError: If these are class indices.
    """
    if isinstance(condition, Tensor):
        raise ValueError(
            f"a {reader} takes captions, got class indices; "
            "pick cmdvid.models.conditioning.LabelConditioner for labelled data"
        )
    return condition
