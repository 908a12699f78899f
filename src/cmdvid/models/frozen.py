"""Pretrained networks that never change: used by a module, and yet no part of what it saves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


class FrozenTower:
    """Hides a tower that never changes from state_dict, EMA and DDP; copies share it.

    The module that holds one moves it along in its own ``_apply``, and names its weights when
    its own ``parameters`` are asked for, for accelerate asks a module where it is in that way.
    Modules around it do not ask their children, and so never see them. There is no common base
    class for that: it is two lines.

    Args:
        tower: An ``nn.Module``; it is put into eval mode and gets no gradients.
    """

    def __init__(self, tower: Any):
        self.tower = tower.requires_grad_(False).eval()

    def __deepcopy__(self, memo: dict) -> "FrozenTower":
        return self


def in_dtype(network: Network, told: Mapping[str, Any]) -> Network:
    """A loaded network in the type that ``from_pretrained`` was told; float32 by default.

    Not by the network's own ``to``: that of diffusers warns of every cast.
    """
    nn.Module.to(network, told.get("dtype") or told.get("torch_dtype") or torch.float32)
    return network


def refuse_variant(told: Mapping[str, Any], where: str | Path) -> None:
    """Frozen networks have files of one name alone.

    Raises:
        ValueError: If ``save_pretrained`` or ``from_pretrained`` was told another.
    """
    if variant := told.get("variant"):
        raise ValueError(
            f"{where}: variant={variant!r} is not known of frozen networks, whose files have one "
            "name alone; leave it out, and give torch_dtype for another precision"
        )


def same_network(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks compute the same: one class, settings and weights, hidden ones too."""
    if type(one) is not type(other) or settings_of(one) != settings_of(other):
        return False
    ours, theirs = weights_of(one), weights_of(other)
    return ours.keys() == theirs.keys() and all(
        value.device == theirs[name].device != torch.device("meta")
        and value.dtype == theirs[name].dtype
        and torch.equal(value, theirs[name])
        for name, value in ours.items()
    )


def settings_of(network: Any) -> dict[str, Any]:
    """The settings that decide what a network computes; not where its weights were read."""
    places = ("model", "pretrained")
    config = network.config.items()
    return {k: v for k, v in config if k not in places and not k.startswith("_")}


def weights_of(network: nn.Module) -> dict[str, torch.Tensor]:
    """All weights by name, hidden ones too."""
    hidden = {k: v.tower for k, v in vars(network).items() if isinstance(v, FrozenTower)}
    towers = {f"{k}.{name}": w for k, v in hidden.items() for name, w in v.state_dict().items()}
    return network.state_dict() | towers
