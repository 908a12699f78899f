"""``cmdvid profile``: from configs to the networks they describe, on the meta device."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse import (
    ActionConfigFile,  # pyright: ignore[reportPrivateImportUsage]
    Namespace,
)
from lightning.pytorch import LightningModule

from cmdvid.cost_parts import (
    autoencoder_part,
    decoding_calls,
    diffusion_part,
    encoding_calls,
    preview_call,
    sampling_calls,
)
from cmdvid.cost_report import (
    CONVENTION,
    memory_table,
    paper_report,
    sampling_report,
    training_table,
)
from cmdvid.profiling import Call, Part
from cmdvid.settings import read_settings
from cmdvid.stages.sizes import check_sides
from cmdvid.video import ClipSpec


@dataclass(frozen=True)
class Frames:
    """What clips become before any stage but the codec sees them.

    Attributes:
        codec: Of the autoencoder's stage.
        autoencoder: The network.
        clip: Number, height and width of frames.
    """

    codec: Any
    autoencoder: Any
    clip: tuple[int, int, int]


def main(args: Sequence[str]) -> None:
    """Print the costs of the configs' stages; without one, those of the paper's setting.

    Args:
        args: ``--config FILE`` for each stage, in any order, and settings that replace theirs.

    Raises:
        ValueError: If a config is wrong, or says too little of the size of clips.
    """
    options = argparse.ArgumentParser(
        prog="cmdvid profile", allow_abbrev=False, exit_on_error=False
    )
    options.add_argument("--config", action="append", default=[], help="a stage's YAML; repeat")
    known, settings = options.parse_known_args(list(args))
    if settings and not known.config:
        raise ValueError(f"{settings[0]}: the paper's setting has no settings; give --config FILE")
    print(config_report(known.config, settings) if known.config else paper_report())
    print(f"\n{CONVENTION}")


def config_report(files: Sequence[str], overrides: Sequence[str] = ()) -> str:
    """Tables of training for each config, and of sampling if all three networks are there.

    Raises:
        ValueError: If none is of the autoencoder, nor names a checkpoint of it that is there.
    """
    settings = [read(file, overrides) for file in files]
    stages = [build(each) for each in settings]
    frames = _frames(stages, settings)
    if frames is None:
        raise ValueError(
            f"{', '.join(files)}: give the autoencoder's config too, for it says how large the "
            "content frame and the motion latent are; or train it first, then its checkpoint does"
        )
    found = [_part(s, frames, each) for s, each in zip(stages, settings, strict=True)]
    parts = [part for part in found if part is not None]
    text = f"Training, clips of {'x'.join(map(str, frames.clip))} (frames, height, width)\n\n"
    text += f"{training_table(parts)}\n\n{memory_table(parts)}"
    if {"content", "motion"} <= {part.name for part in parts}:
        text += "\n\n" + _sampling(stages, settings, parts, frames)
    return text


def read(file: str, overrides: Sequence[str] = ()) -> Namespace:
    """Parse a config as ``fit`` does, building nothing."""
    return _parser().parse_args(["--config", file, *overrides])


def _parser() -> Any:
    import cmdvid.stages  # noqa: F401  # so that short class names are found
    from cmdvid.cli import CMDTrainer, Parser
    from cmdvid.data.datamodule import VideoDataModule

    parser = Parser(prog="cmdvid profile", allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_lightning_class_args(CMDTrainer, "trainer")
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    parser.add_lightning_class_args(VideoDataModule, "data")
    return parser


def build(settings: Namespace) -> Any:
    """The stage of a config on the meta device; pretrained networks are frozen there, not read."""
    from cmdvid.cli import Parser

    parser = Parser()
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    with torch.device("meta"):
        built: Any = parser.instantiate_classes(Namespace(model=settings.model))
    return built.model


def _frames(stages: Sequence[Any], settings: Sequence[Namespace]) -> Frames | None:
    """By the autoencoder's config, or else by its checkpoint, if a stage names one that is there.

    Clips are of the size that the autoencoder has seen, unless a stage reads clips of its own.
    """
    for stage, each in zip(stages, settings, strict=True):
        if hasattr(stage, "autoencoder"):
            return _framed(stage, each.data.spec)
    for each in settings:
        ckpt = getattr(each.model.init_args, "autoencoder_ckpt", None)
        if ckpt and Path(ckpt).is_file() and (saved := read_settings(ckpt)):
            trained = _parser().parse_object(saved)
            own = each.data.latents is None
            return _framed(build(trained), (each if own else trained).data.spec)
    return None


def _framed(stage: Any, spec: Namespace) -> Frames:
    clip = ClipSpec(spec.num_frames, tuple(spec.image_size))
    check_sides(clip, codec=stage.codec, autoencoder=stage.autoencoder)
    height, width = (side // stage.codec.stride for side in clip.image_size)
    return Frames(stage.codec, stage.autoencoder, (clip.num_frames, height, width))


def _part(stage: Any, frames: Frames, settings: Namespace) -> Part | None:
    """What a stage trains; nothing in the stage that generates."""
    trainer, data = settings.trainer, settings.data
    alone = trainer.devices in (1, "1")
    how: dict[str, Any] = {
        "batch_size": data.batch_size,
        "accumulate": trainer.accumulate_grad_batches,
        "precision": str(trainer.precision or "32-true"),
        "buckets": "ddp" in str(trainer.strategy) and not alone,
    }
    calls = encoding_calls(frames.codec, frames.autoencoder, frames.clip, data.batch_size)
    if hasattr(stage, "autoencoder"):
        calls.pop("autoencoder")  # part of the pass
    cached, num = hasattr(stage, "diffusion") and data.latents is not None, _num_shown(trainer)
    if not cached:
        how["before"] = tuple(calls.values())
    if not cached or num:
        how["frozen"] = tuple(call.network for call in calls.values())
    if num:
        shown = preview_call(frames.codec, frames.autoencoder, frames.clip, num)
        how["previews"] = (shown,)
    if hasattr(stage, "autoencoder"):
        return autoencoder_part(stage.autoencoder, frames.clip, **how)
    if not hasattr(stage, "diffusion"):
        return None
    part = _diffusion_part(stage, frames, how)
    drawn = Call(part.network, lambda net: part.run(net, 2 * num))  # guided
    return replace(part, previews=(*part.previews, drawn)) if num else part


def _num_shown(trainer: Namespace) -> int:
    """Clips of a preview; none without a ClipPreview."""
    callbacks = trainer.callbacks if isinstance(trainer.callbacks, list) else []
    shown = [c.init_args.num_clips for c in callbacks if c.class_path.endswith(".ClipPreview")]
    return sum(shown)


def _diffusion_part(stage: Any, frames: Frames, how: dict[str, Any]) -> Part:
    autoencoder, (length, height, width) = frames.autoencoder, frames.clip
    places = height // autoencoder.patch + width // autoencoder.patch
    content = (autoencoder.channels, height, width)
    motion = (autoencoder.config["motion_channels"], length, places)
    shape, context = (content, {}) if stage.part == "content" else (motion, {"content": content})
    denoiser, conditioner = stage.diffusion.denoiser, stage.diffusion.conditioner
    return diffusion_part(stage.part, denoiser, conditioner, shape, context=context, **how)


def _sampling(
    stages: Sequence[Any], settings: Sequence[Namespace], parts: Sequence[Part], frames: Frames
) -> str:
    """A sample by the generation's settings if its config is given, else by the stages' own."""
    names = ("content", "motion")
    pair = [next(s for s in stages if getattr(s, "part", None) == name) for name in names]
    named = {part.name: part for part in parts}
    steps = [stage.num_inference_steps for stage in pair]
    scales = [stage.guidance_scale for stage in pair]
    precision = named["content"].precision
    for stage, each in zip(stages, settings, strict=True):
        if how := getattr(stage, "sampling", None):
            steps = [how["num_inference_steps"], how["motion_inference_steps"]]
            scales = [how["guidance_scale"], how["motion_guidance_scale"]]
            precision = str(each.trainer.precision or "32-true")
    calls = sampling_calls(
        [named[name] for name in names],
        [stage.diffusion.conditioner for stage in pair],
        steps=steps,
        scales=scales,
    )
    decoding = decoding_calls(frames.codec, frames.autoencoder, frames.clip)
    calls |= {f"{name}: decoding": call for name, call in decoding.items()}
    return sampling_report(calls, precision)
