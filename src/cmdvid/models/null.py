"""The null condition: what guidance starts from, and what a share of the training samples gets."""

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from cmdvid.types import Condition


def null_conditions(conditioner: Any, num: int) -> Condition:
    """``num`` null conditions of the kind that a conditioner takes."""
    if isinstance(conditioner.null, str):
        return [conditioner.null] * num
    return torch.full((num,), conditioner.null, device=conditioner.device)


def nullify(condition: Condition, where: Bool[Tensor, " b"], *, conditioner: Any) -> Condition:
    """Replace the chosen conditions by the conditioner's null condition."""
    null = conditioner.null
    if isinstance(condition, Tensor):
        return condition.masked_fill(where.to(condition.device), null)
    return [null if w else caption for caption, w in zip(condition, where.tolist(), strict=True)]
