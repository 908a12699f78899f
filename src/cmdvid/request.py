"""What a call of the pipeline asks for, one entry for each clip, and what it returns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from diffusers.utils.outputs import BaseOutput
from einops import rearrange
from torch import Tensor

from cmdvid.models.null import null_conditions
from cmdvid.types import Condition, VideoLatent

OUTPUT_TYPES = ("pt", "np", "pil", "latent")
TENSOR_INPUTS = ("latents",)  # what a callback may see and change


@dataclass
class CMDOutput(BaseOutput):
    """Generated clips ``b 3 l h w`` and their content frames ``b 3 h w``, in [-1, 1].

    With ``output_type="np"`` frames are ``b l h w 3`` in [0, 1], diffusers' convention; with
    "pil" a list of pictures for each clip; with "latent" a VideoLatent, and content is its own.
    """

    frames: Any
    content: Tensor


@dataclass(frozen=True)
class Request:
    """Conditions, what to guide away from, and sources of noise: one of each for each clip."""

    condition: Condition
    negative: list[str] | None  # None is the null condition
    generators: list[torch.Generator]

    def __len__(self) -> int:
        return len(self.condition)

    def embed(self, conditioner: Any) -> tuple[Tensor, Tensor]:
        """The condition and what to guide away from, as a conditioner embeds them."""
        nothing = self.negative or null_conditions(conditioner, len(self))
        return conditioner(self.condition), conditioner(nothing)


def make_request(
    condition: str | int | Condition | Sequence[int],
    *,
    negative: str | Sequence[str] | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    num_each: int,
    output_type: str = "pt",
) -> Request:
    """Read the arguments of a call, before anything is computed; see CMDPipeline.

    Raises:
        ValueError: If there are not as many negative prompts as conditions, or generators as
            clips, or there is no such output.
    """
    if output_type not in OUTPUT_TYPES:
        raise ValueError(
            f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}"
        )
    if num_each < 1:
        raise ValueError(f"num_videos_per_prompt must be at least 1, got {num_each}")
    given = _conditions(condition)
    num = len(given) * num_each
    if generator is None:
        generator = torch.Generator().manual_seed(int(torch.randint(2**63 - 1, ())))
    if isinstance(generator, torch.Generator):
        generator = [generator] * num
    if len(generator) != num:
        raise ValueError(f"got {len(generator)} generators for {num} conditions")
    if isinstance(negative, str):
        negative = [negative] * len(given)
    if negative is not None and len(negative) != len(given):
        raise ValueError(f"got {len(negative)} negative prompts for {len(given)} conditions")
    away = None if negative is None or not any(negative) else _repeat(negative, num_each)
    return Request(_repeat(given, num_each), away, list(generator))


def _conditions(given: Any) -> Condition:
    """One condition or several: captions in a sequence, class indices in a tensor."""
    if isinstance(given, str):
        return [given]
    if isinstance(given, Integral):
        given = [given]
    labelled = len(given) > 0 and all(isinstance(each, Integral) for each in given)
    return torch.as_tensor(given) if labelled else given


def _repeat(values: Any, num: int) -> Any:
    if isinstance(values, Tensor):
        return values.repeat_interleave(num)
    return [value for value in values for _ in range(num)]


def step_end(
    pipe: Any, callback: Callable[..., dict[str, Any]] | None, names: Sequence[str], bar: Any
) -> Callable[[int, Tensor, Tensor], Tensor]:
    """What happens after each step: the bar moves, and a callback may change the latents.

    Args:
        pipe: What the callback gets first.
        callback: ``f(pipe, step, t, kwargs)``, as in diffusers; returns the kwargs to go on with.
        names: Which of TENSOR_INPUTS are in its kwargs.
        bar: A tqdm bar.

    Raises:
        ValueError: If a name is none of TENSOR_INPUTS.
    """
    if unknown := [name for name in names if name not in TENSOR_INPUTS]:
        raise ValueError(
            f"callback_on_step_end_tensor_inputs may hold {', '.join(TENSOR_INPUTS)}, "
            f"got {', '.join(unknown)}"
        )

    def on_step(step: int, t: Tensor, x: Tensor) -> Tensor:
        if callback is not None:
            kwargs = dict.fromkeys(names, x)
            x = (callback(pipe, step, t, kwargs) or {}).get("latents", x)
        bar.update()
        return x

    return on_step


def make_output(pipe: Any, latent: VideoLatent, output_type: str) -> CMDOutput:
    """Decode a latent, unless it is asked for itself, into frames of the wanted type."""
    if output_type == "latent":
        return CMDOutput(frames=latent, content=latent.content)
    frames = pipe.decode(latent)
    if output_type != "pt":
        frames = rearrange(frames / 2 + 0.5, "b c l h w -> b l h w c").float().cpu().numpy()
    if output_type == "pil":
        frames = [pipe.numpy_to_pil(clip) for clip in frames]
    return CMDOutput(frames=frames, content=pipe.decode_content(latent))
