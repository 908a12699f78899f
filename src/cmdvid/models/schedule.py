"""Noise schedules of diffusers' schedulers: what a model is trained with is not what samples it."""

from inspect import signature
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from jaxtyping import Float
from torch import Tensor

TRAINED = (  # settings of a scheduler that belong to the weights
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
    "prediction_type",
)
BOUNDS = ("clip_sample", "thresholding")  # settings that press samples into [-1, 1]


def signal_levels(scheduler: SchedulerMixin) -> Float[Tensor, " t"]:
    """abar_t of CMD Eq. 2: the share of a sample's variance that is left at each training step.

    Raises:
        ValueError: If the scheduler has no such levels, as those of flow matching.
    """
    levels = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(levels, Tensor):
        raise ValueError(
            f"{type(scheduler).__name__} has no alphas_cumprod, so it is not of Eq. 2 (flow "
            "matching is not); give one that has, such as diffusers.DDIMScheduler"
        )
    return levels


def refuse_bounds(scheduler: Any) -> None:
    """See that a scheduler leaves samples as far from zero as they go.

    Raises:
        ValueError: If it clips or thresholds them, which diffusers' DDIM and DDPM do by default.
    """
    for name in BOUNDS:
        if scheduler.config.get(name):
            raise ValueError(
                f"scheduler.{name} of the {type(scheduler).__name__} is true, but latents have no "
                "bounds: set it to false"
            )


def own_settings(scheduler: Any) -> dict[str, Any]:
    """Settings of a scheduler that are not the defaults of its class.

    The command line names all settings to the class, so diffusers' own record of defaults is empty.
    """
    parameters, config = signature(type(scheduler)).parameters, dict(scheduler.config)
    return {k: config[k] for k, p in parameters.items() if k in config and config[k] != p.default}


def described(scheduler: Any) -> str:
    """Class and own settings of a scheduler, as Python would write them."""
    given = ", ".join(f"{name}={value!r}" for name, value in own_settings(scheduler).items())
    return f"{type(scheduler).__name__}({given})"


def follow(trained: Any, wanted: Any) -> SchedulerMixin:
    """A scheduler of the wanted class for a model trained with another one.

    Args:
        trained: Gives the noise schedule, the prediction type, and all that ``wanted`` leaves at
            the default of its class.
        wanted: Gives the class, and settings of sampling.

    Raises:
        ValueError: If ``wanted`` sets what belongs to the weights, or bounds samples, or its class
            has no such noise schedule.
    """
    given, name = own_settings(wanted), type(wanted).__name__
    if fixed := [key for key in TRAINED if key in given]:
        raise ValueError(
            f"{name} sets {', '.join(fixed)}, which the model was trained with; leave it out"
        )
    # named, for from_config would take defaults of the wanted class for those of the trained one
    kept = {key: trained.config[key] for key in TRAINED if key in trained.config}
    kept |= dict.fromkeys(BOUNDS, False)
    scheduler = type(wanted).from_config(trained.config, **{**kept, **given})
    refuse_bounds(scheduler)
    levels = signal_levels(trained), signal_levels(scheduler)
    if levels[0].shape != levels[1].shape or not torch.allclose(*levels, atol=1e-6):
        raise ValueError(
            f"{name} cannot follow the noise schedule of {type(trained).__name__} that the model "
            "was trained with (its rescale_betas_zero_snr, perhaps); give another class"
        )
    return scheduler
