"""Pretrained networks that never change: used by a module, and yet no part of what it saves."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


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


def in_dtype(network: Network, told: Mapping[str, Any]) -> Network:
    """A loaded network in the type that ``from_pretrained`` was told; float32 by default.

    Not by the network's own ``to``: that of diffusers warns of every cast.
    """
    nn.Module.to(network, told.get("dtype") or told.get("torch_dtype") or torch.float32)
    return network
