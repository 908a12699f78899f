"""Pretrained networks that never change: used by a module, and yet no part of what it saves."""

from collections.abc import Sequence
from typing import Any


class FrozenTower:
    """Hides a tower that never changes from state_dict, EMA and DDP; copies share it.

    The module that holds one moves it along in its own ``_apply``. There is no common base class
    for that: it is one line.

    Args:
        tower: An ``nn.Module``; it is put into eval mode and gets no gradients.
    """

    def __init__(self, tower: Any):
        self.tower = tower.requires_grad_(False).eval()

    def __deepcopy__(self, memo: dict) -> "FrozenTower":
        return self


def distinct(captions: Sequence[str]) -> tuple[list[str], list[int]]:
    """Each caption once, and where each of the given ones is: a frozen tower reads none twice."""
    places = {caption: place for place, caption in enumerate(dict.fromkeys(captions))}
    return list(places), [places[caption] for caption in captions]
