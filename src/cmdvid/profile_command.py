"""``cmdvid profile``: from configs to the networks they describe, on the meta device."""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from jsonargparse import (
    ActionConfigFile,  # pyright: ignore[reportPrivateImportUsage]
    Namespace,
)
from lightning.pytorch import LightningModule

from cmdvid.cost_report import CONVENTION, paper_report, sampling_cost, training_table
from cmdvid.profiling import Part, autoencoder_part, coding_cost, diffusion_part

T = 1e12


def main(args: Sequence[str]) -> None:
    """Print the costs of the configs' stages; without one, those of the paper's setting.

    Args:
        args: ``--config FILE`` for each stage, in any order.

    Raises:
        ValueError: If a config is wrong, or says too little of the size of clips.
    """
    options = argparse.ArgumentParser(
        prog="cmdvid profile", allow_abbrev=False, exit_on_error=False
    )
    options.add_argument("--config", action="append", default=[], help="a stage's YAML; repeat")
    files = options.parse_args(list(args)).config
    print(config_report(files) if files else paper_report())
    print(f"\n{CONVENTION}")


def config_report(files: Sequence[str]) -> str:
    """Tables of training for each config, and of sampling if all three networks are there."""
    settings = [read(file) for file in files]
    stages = {file: build(each) for file, each in zip(files, settings, strict=True)}
    frames = [s.autoencoder for s in stages.values() if hasattr(s, "autoencoder")]
    sized = [each.data for each in settings if each.data.latents is None]
    if not frames or not sized:
        raise ValueError(
            f"{', '.join(files)}: give the autoencoder's config too, for it says how large the "
            "content frame and the motion latent are"
        )
    spec, autoencoder = sized[0].spec, frames[0]
    codec = next(s.codec for s in stages.values() if hasattr(s, "codec"))
    clip = (spec.num_frames, *(side // codec.stride for side in spec.image_size))
    parts: dict[str, Part] = {}
    for stage, each in zip(stages.values(), settings, strict=True):
        if part := _part(stage, autoencoder, clip, each.data.batch_size):
            parts[part.name] = part
    text = f"Training, clips of {'x'.join(map(str, clip))} (frames, height, width)\n\n"
    text += training_table(list(parts.values()))
    encode, decode = coding_cost(autoencoder, clip)
    text += f"\n\nEncoding a clip: {encode.flops / T:.4g} TFLOPs; decoding: {decode.flops / T:.4g}"
    if {"content", "motion"} <= parts.keys():
        text += "\n\n" + _sampling(stages.values(), parts, decode)
    return text


def read(file: str) -> Namespace:
    """Parse a config as ``fit`` does, building nothing."""
    import cmdvid.stages  # noqa: F401  # so that short class names are found
    from cmdvid.cli import CMDTrainer, Parser
    from cmdvid.data.datamodule import VideoDataModule

    parser = Parser(prog="cmdvid profile", allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_lightning_class_args(CMDTrainer, "trainer")
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    parser.add_lightning_class_args(VideoDataModule, "data")
    return parser.parse_args(["--config", file])


def build(settings: Namespace) -> Any:
    """The stage of a config on the meta device; a pretrained text tower is frozen, not read."""
    from cmdvid.cli import Parser

    parser = Parser()
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    frozen = False
    for key in list(settings.model.keys()):
        if key.endswith(".pretrained") and settings.model[key]:
            settings.model[key], frozen = None, True
    with torch.device("meta"):
        built: Any = parser.instantiate_classes(Namespace(model=settings.model))
    if frozen:
        built.model.diffusion.conditioner.requires_grad_(False)
    return built.model


def _part(stage: Any, autoencoder: Any, clip: tuple[int, ...], batch_size: int) -> Part | None:
    """What a stage trains; nothing in the stage that generates."""
    if hasattr(stage, "autoencoder"):
        return autoencoder_part(stage.autoencoder, clip, batch_size)
    if not hasattr(stage, "diffusion"):
        return None
    length, height, width = clip
    content = (autoencoder.channels, height, width)
    places = height // autoencoder.patch + width // autoencoder.patch
    motion = (autoencoder.config["motion_channels"], length, places)
    denoiser, conditioner = stage.diffusion.denoiser, stage.diffusion.conditioner
    if stage.part == "content":
        return diffusion_part("content", denoiser, conditioner, content, batch_size=batch_size)
    return diffusion_part(
        "motion", denoiser, conditioner, motion, batch_size=batch_size, content=content
    )


def _sampling(stages: Any, parts: dict[str, Part], decode: Any) -> str:
    """One line, by the generation's settings if its config is given, else by the stages' own."""
    by_part = {stage.part: stage for stage in stages if hasattr(stage, "part")}
    pair = [by_part["content"], by_part["motion"]]
    steps = [stage.num_inference_steps for stage in pair]
    scales = [stage.guidance_scale for stage in pair]
    for stage in stages:
        if hasattr(stage, "sampling"):
            how = stage.sampling
            steps = [how["num_inference_steps"], how["motion_inference_steps"]]
            scales = [how["guidance_scale"]] * 2
    guided = (scales[0] != 1, scales[1] != 1)
    cost = sampling_cost(parts, decode, steps=(steps[0], steps[1]), guided=guided)
    return (
        f"A sample: {steps[0]} content and {steps[1]} motion steps, guidance {scales[0]:g} and "
        f"{scales[1]:g}, decoding without codec: {cost.flops / T:.4g} TFLOPs"
    )
