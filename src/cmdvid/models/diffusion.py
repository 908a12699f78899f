"""Diffusion of anything: training loss, guidance, sampling, and the moving average of weights.

It owns a denoiser, a conditioner and a diffusers scheduler and knows nothing of video: the
content and the motion model differ only in the tensor they denoise and the context they get.
"""

import copy
from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any, cast

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from einops import reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cmdvid.models.null import null_conditions, nullify
from cmdvid.models.schedule import refuse_bounds, signal_levels
from cmdvid.types import Condition


def guide(conditional: Tensor, unconditional: Tensor, guidance_scale: float) -> Tensor:
    """Classifier-free guidance (CMD Algorithm 1): u + s (c - u).

    The paper writes (1 + w) c - w u; that is the same for s = 1 + w. Acts on every channel.
    """
    return unconditional + guidance_scale * (conditional - unconditional)


def seeded_noise(shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    """Noise of ``shape`` for each generator: a sample's noise never depends on its neighbours."""
    return torch.stack([torch.randn(*shape, generator=g, device=g.device) for g in generators])


def started(
    scheduler: SchedulerMixin, num_inference_steps: int, *, device: torch.device | None = None
) -> Any:
    """A copy of a scheduler at the start of a sample; its ``timesteps`` are the denoiser's calls.

    Schedulers of second order call it about twice in a step.

    Raises:
        ValueError: If there is not at least one step, or the scheduler clips samples.
    """
    refuse_bounds(scheduler)
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps must be at least 1, got {num_inference_steps}")
    sampler: Any = copy.deepcopy(scheduler)  # its state belongs to one sample alone
    sampler.set_timesteps(num_inference_steps, device=device)
    return sampler


@torch.no_grad()
def guided_sample(
    denoiser: nn.Module,
    scheduler: SchedulerMixin,
    noise: Float[Tensor, "b ..."],
    *,
    condition: Float[Tensor, "b ..."],
    negative: Float[Tensor, "b ..."],
    num_inference_steps: int,
    guidance_scale: float,
    generators: Sequence[torch.Generator] = (),
    on_step: Callable[[int, Tensor, Tensor], Tensor] = lambda step, t, x: x,
    **context: Tensor,
) -> Float[Tensor, "b ..."]:
    """Walk from noise to a sample with any diffusers scheduler (CMD Algorithm 1).

    Args:
        noise: Standard normal noise.
        condition: Embedded condition.
        negative: Embedding to guide away from, usually of the null condition.
        guidance_scale: s = 1 + w of the paper; 1 turns guidance off and halves the cost.
        generators: One for each sample, for schedulers that draw noise at every step.
        on_step: Called after each call of the denoiser with its number, t and x; returns the x to
            go on with.
        context: Further inputs of the denoiser, such as the content frame.
    """
    sampler = started(scheduler, num_inference_steps, device=noise.device)
    guided = guidance_scale != 1.0
    copies = 2 if guided else 1
    embedding = torch.cat([condition, negative]) if guided else condition
    context = {k: torch.cat([v] * copies) for k, v in context.items()}
    draws = generators and "generator" in signature(sampler.step).parameters
    extra = {"generator": list(generators)} if draws else {}
    x = noise * sampler.init_noise_sigma
    for step, t in enumerate(sampler.timesteps):
        inputs = sampler.scale_model_input(torch.cat([x] * copies), t)
        prediction = denoiser(inputs, t.expand(len(inputs)), embedding, **context)
        if guided:
            prediction = guide(*prediction.chunk(2), guidance_scale)
        x = sampler.step(prediction, t, x, return_dict=False, **extra)[0]
        x = on_step(step, t, x)
    return x


class Diffusion(nn.Module):
    """A denoiser in training: its loss, its moving average and its sampler.

    Args:
        denoiser: Network ``(noisy, t, condition, **context) -> prediction``.
        conditioner: Network that embeds labels or captions.
        scheduler: Noise schedule and prediction type: "epsilon", "v_prediction" or "sample"; by
            default DDIM over the linear schedule of 1000 steps. It must not clip samples, which
            have unit variance and no bounds. Its class matters for sampling alone.
        condition_dropout: Share of samples trained without condition, for guidance.
        ema_decay: Decay of the moving average of all trained weights (Tables 6, 7: 0.999).
        min_snr_gamma: Gamma of min-SNR loss weights (Hang et al. 2023); none as in the paper.

    Raises:
        ValueError: If the scheduler clips samples, has no noise schedule of Eq. 2, or predicts
            anything else.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        *,
        conditioner: nn.Module,
        scheduler: SchedulerMixin | None = None,
        condition_dropout: float = 0.1,
        ema_decay: float = 0.999,
        min_snr_gamma: float | None = None,
    ):
        super().__init__()
        self.scheduler: Any = scheduler or DDIMScheduler(clip_sample=False)
        refuse_bounds(self.scheduler)
        self._levels = signal_levels(self.scheduler)  # no buffer, which would be cast with weights
        self.prediction_type = self.scheduler.config.prediction_type
        if self.prediction_type not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(
                "scheduler.prediction_type must be 'epsilon', 'v_prediction' or 'sample', "
                f"got {self.prediction_type!r}"
            )
        self.denoiser, self.conditioner = denoiser, conditioner
        self.condition_dropout, self.min_snr_gamma = condition_dropout, min_snr_gamma
        self.ema = AveragedModel(
            nn.ModuleList([denoiser, conditioner]), multi_avg_fn=_warm_ema(ema_decay)
        ).requires_grad_(False)

    def loss(
        self,
        x: Float[Tensor, "b ..."],
        condition: Condition | Float[Tensor, "b ..."],
        **context: Tensor,
    ) -> Tensor:
        """Mean squared error of the predicted noise or velocity at random steps (CMD Eq. 2).

        Args:
            x: Samples.
            condition: Their conditions, or what a frozen conditioner has made of them.
            context: Further inputs of the denoiser.
        """
        return self._loss(self.denoiser, self.conditioner, x, condition, **context)

    @torch.no_grad()
    def ema_loss(
        self,
        x: Float[Tensor, "b ..."],
        condition: Condition | Float[Tensor, "b ..."],
        **context: Tensor,
    ) -> Tensor:
        """:meth:`loss` of the averaged weights, for validation."""
        return self._loss(*self.averaged, x, condition, **context)

    def update_ema(self) -> None:
        """Move the averaged weights; call it after each optimizer step."""
        self.ema.update_parameters(nn.ModuleList([self.denoiser, self.conditioner]))

    @property
    def averaged(self) -> tuple[nn.Module, nn.Module]:
        """Denoiser and conditioner with averaged weights; sampling uses these."""
        denoiser, conditioner = cast(nn.ModuleList, self.ema.module)
        return denoiser, conditioner

    @torch.no_grad()
    def sample(
        self,
        noise: Float[Tensor, "b ..."],
        condition: Condition,
        *,
        num_inference_steps: int,
        guidance_scale: float,
        **context: Any,
    ) -> Float[Tensor, "b ..."]:
        """Sample with the averaged weights and the training scheduler; see guided_sample."""
        denoiser, conditioner = self.averaged
        return guided_sample(
            denoiser,
            self.scheduler,
            noise,
            condition=conditioner(condition),
            negative=conditioner(null_conditions(conditioner, len(noise))),
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            **context,
        )

    def _loss(
        self,
        denoiser: nn.Module,
        conditioner: Any,
        x: Tensor,
        condition: Condition | Tensor,
        **context: Tensor,
    ) -> Tensor:
        # the same noise for x in any layout: a cached latent's is not that of one just encoded
        noise = torch.randn_like(x, memory_format=torch.contiguous_format)
        t = self._random_steps(x)
        level = self._levels_at(t)
        each = level.view(-1, *[1] * (x.ndim - 1))
        a, s = each.sqrt().to(x.dtype), (1 - each).sqrt().to(x.dtype)
        noisy = a * x + s * noise  # sqrt(abar) x_0 + sqrt(1 - abar) eps, CMD Eq. 2
        drop = torch.rand(len(x), device=x.device) < self.condition_dropout
        embedding = _embed(conditioner, condition, drop)
        prediction = denoiser(noisy, t, embedding, **context)
        targets = {"epsilon": noise, "sample": x, "v_prediction": a * noise - s * x}
        target = targets[self.prediction_type]
        error = reduce((prediction.float() - target.float()) ** 2, "b ... -> b", "mean")
        return (error * self._weights(level)).mean()

    def _levels_at(self, t: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """abar_t in full precision, kept where the steps are."""
        self._levels = self._levels.to(t.device)
        return self._levels[t]

    def _random_steps(self, x: Tensor) -> Int[Tensor, " b"]:
        """Uniform steps, one from each of b equal slices of time: the same mean, less variance."""
        place = torch.arange(len(x), device=x.device) + torch.rand(len(x), device=x.device)
        num = self.scheduler.config.num_train_timesteps
        return (place / len(x) * num).long().clamp(max=num - 1)  # float32 may round up to num

    def _weights(self, level: Float[Tensor, " b"]) -> Float[Tensor, " b"] | float:
        """Loss weights: 1 as in the paper, or those of min-SNR for the quantity predicted.

        A predicted sample is weighted as its velocity would be, by SNR + 1, at most 10.
        """
        if self.prediction_type != "sample" and self.min_snr_gamma is None:
            return 1.0
        snr = level / (1 - level)
        if self.min_snr_gamma is None:
            return (snr + 1).clamp(max=10)
        if self.prediction_type == "epsilon":
            return (self.min_snr_gamma / snr).clamp(max=1)  # 1 at zero terminal SNR too
        scale = snr + 1 if self.prediction_type == "v_prediction" else 1
        return snr.clamp(max=self.min_snr_gamma) / scale


def _embed(conditioner: Any, condition: Any, drop: Bool[Tensor, " b"]) -> Tensor:
    """Embed conditions, those to drop as the null condition."""
    if not (isinstance(condition, Tensor) and condition.is_floating_point()):
        return conditioner(nullify(condition, drop, conditioner=conditioner))
    if not drop.any():
        return condition
    null = conditioner(null_conditions(conditioner, 1))
    return torch.where(drop.view(-1, *[1] * (condition.ndim - 1)), null, condition)


def _warm_ema(decay: float) -> Callable[..., None]:
    """Exponential average whose decay grows to ``decay``, so early noise is soon forgotten."""

    def update(averaged: list[Tensor], current: list[Tensor], num_averaged: Tensor) -> None:
        n = int(num_averaged)
        step = get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))
        step(_shares(averaged), _shares(current), num_averaged)

    return update


def _shares(weights: list[Tensor]) -> list[Tensor]:
    """What this process has of weights, of which FSDP2 cuts up some and leaves others whole."""
    return [weight.to_local() if isinstance(weight, DTensor) else weight for weight in weights]
