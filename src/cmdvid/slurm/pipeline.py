"""All stages as jobs that wait for each other, from the autoencoder to videos."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cmdvid.data.manifest import MANIFEST
from cmdvid.settings import option
from cmdvid.slurm.job import Job
from cmdvid.slurm.plan import count_devices, last_checkpoint, plan, read, spread
from cmdvid.slurm.submit import Queued

TRAININGS = ("autoencoder", "content", "motion")


@dataclass(frozen=True)
class Configs:
    """YAML files of each stage, later ones on top of earlier ones; those of encode are options."""

    autoencoder: Sequence[str]
    content: Sequence[str]
    motion: Sequence[str]
    generate: Sequence[str]
    encode: Sequence[str] = ()


def plan_pipeline(
    configs: Configs,
    *,
    words: Sequence[str] = (),
    prompts: str | None = None,
    seeds: str | None = None,
    parts: int | None = None,
    auto: int | None = None,
    resume: bool = False,
) -> list[Queued]:
    """Plan the jobs; everything is checked before one is submitted.

    Args:
        configs: Of the four stages.
        words: Options of the three trainings.
        prompts: File of captions to make videos of in the end.
        seeds: As in `spread`, of these videos.
        parts: As in `spread`, of these videos.
        auto: As in `plan`; for generation the trainings' devices.
        resume: Go on with what is there: finished latents and a finished autoencoder are taken as
            they are, other trainings go on from their checkpoints, which ends at once if they are
            finished.

    Raises:
        ValueError: If a config is wrong, or a stage does not read what the earlier ones write, or
            something is there already and is not to be gone on with.
    """
    if ckpt := option(words, "--ckpt", "--ckpt_path"):
        raise ValueError(
            f"--ckpt {ckpt}: pipeline would give it to all three trainings; give --resume to go on "
            "with what an earlier pipeline has left"
        )
    trained = [*_options(configs.autoencoder), *words]
    lines, settings = {}, {}
    for part in TRAININGS:
        line = [*_options(getattr(configs, part)), *words]
        lines[part], settings[part] = _read_training(part, line, resume=resume)

    def training(part: str, made: Collection[str] = ()) -> Job:
        return plan("fit", lines[part], settings[part], name=f"fit-{part}", auto=auto, made=made)

    first = training("autoencoder")
    latents = _shared(settings, str(first.last), resume=resume)
    queued: list[Queued] = []
    before: tuple[Job, ...] = ()
    if finished := _finished(str(first.last), settings["autoencoder"]["trainer"]):
        print(f"# autoencoder: {first.last} is finished and taken as it is")
    else:
        queued, before = [Queued(first)], (first,)
    if latents is None and configs.encode:
        raise ValueError("--encode: neither content nor motion reads data.latents")
    if finished and latents is not None and Path(latents, MANIFEST).is_file():
        print(f"# encode: {latents} is finished and taken as it is")
    elif latents is not None:
        mirrored = any(settings[part]["data"]["flip"] for part in ("content", "motion"))
        encode = _encode(configs, trained, str(first.last), latents, mirrored=mirrored, auto=auto)
        queued.append(Queued(encode, after=before))
        before = (encode,)
    made = {str(first.last)} | ({latents} if latents else set())
    trainings = [training(part, made) for part in ("content", "motion")]
    queued += [Queued(job, after=before) for job in trainings]
    return queued + _generation(configs, trainings, prompts, seeds=seeds, parts=parts)


def _options(files: Sequence[str]) -> list[str]:
    return [word for file in files for word in ("--config", file)]


def _read_training(
    part: str, words: list[str], *, resume: bool
) -> tuple[list[str], dict[str, Any]]:
    """The options of a training, with its checkpoint if it has one, and what they mean."""
    settings = read("fit", words)
    last = last_checkpoint(settings)
    if not Path(last).exists():
        return words, settings
    if not resume:
        raise ValueError(
            f"{part}: {last} holds a training already; give --resume to go on with what is there, "
            "or another folder; nothing was submitted"
        )
    words = [*words, "--ckpt", last]
    return words, read("fit", words)


def _finished(last: str, trainer: dict[str, Any]) -> bool:
    """Whether an autoencoder needs no more training: its latents are measured at the end."""
    if not Path(last).exists():
        return False
    saved = torch.load(last, map_location="cpu", mmap=True)
    done = saved["global_step"] >= (trainer["max_steps"] or 0)
    return done and bool(saved["state_dict"].get("autoencoder.measured", False))


def _shared(settings: dict[str, dict[str, Any]], autoencoder: str, *, resume: bool) -> str | None:
    """The folder of latents, if there is to be one, that both diffusion stages read."""
    for part in ("content", "motion"):
        ckpt = settings[part]["model"]["init_args"]["autoencoder_ckpt"]
        if ckpt != autoencoder:
            raise ValueError(
                f"{part}: model.autoencoder_ckpt is {ckpt}, but the autoencoder's config writes "
                f"{autoencoder}"
            )
    folders = [settings[part]["data"]["latents"] for part in ("content", "motion")]
    if None not in folders and folders[0] != folders[1]:
        raise ValueError(f"data.latents: content reads {folders[0]}, but motion {folders[1]}")
    latents = folders[0] or folders[1]
    if latents is not None and Path(latents).exists() and not resume:
        raise ValueError(
            f"data.latents: {latents} exists already; give --resume to go on with what is there, "
            "or another folder; nothing was submitted"
        )
    return latents


def _encode(
    configs: Configs,
    trained: Sequence[str],
    ckpt: str,
    latents: str,
    *,
    mirrored: bool,
    auto: int | None,
) -> Job:
    """Read as if with the autoencoder's config, for its checkpoint is not there yet."""
    options = _options(configs.encode)
    how = read("encode", [*trained, *options])
    if mirrored and not how["flips"]:
        raise ValueError(
            "data.flip is true, but encode would store no mirrored clips; give --encode FILE, a "
            "YAML with `flips: true`, or set data.flip to false"
        )
    if how["overwrite"]:
        raise ValueError("--encode: overwrite: each start of the job would begin anew")
    trainer = how["trainer"]
    nodes, devices = int(trainer["num_nodes"]), count_devices(trainer, auto)
    size = {"num_nodes": nodes, "devices": devices}
    for name in ("accelerator", "precision"):
        if trainer[name] is not None:
            size[name] = trainer[name]
    run = ["encode", "--ckpt", ckpt, *options, "--out", latents]
    run += [word for name, value in size.items() for word in (f"--trainer.{name}", str(value))]
    return Job(
        name="encode",
        words=tuple(run),
        nodes=nodes,
        devices=devices,
        gpus=trainer["accelerator"] != "cpu",
        cache=latents,
    )


def _generation(
    configs: Configs,
    trainings: Sequence[Job],
    prompts: str | None,
    *,
    seeds: str | None,
    parts: int | None,
) -> list[Queued]:
    """The pipeline folder of both trainings, its scores, and videos of prompts."""
    options = _options(configs.generate)
    settings = read("test", options)
    folder = settings["model"]["init_args"]["pipeline"]
    content, motion = (str(job.last) for job in trainings)
    words = ("export", "--content", content, "--motion", motion, "--out", folder)
    export = Job(name="export", words=words, gpus=False)
    queued = [Queued(export, after=tuple(trainings))]
    auto = max(job.devices for job in trainings)
    scores = plan("test", options, settings, name="test", auto=auto, made={folder})
    queued.append(Queued(scores, after=(export,)))
    if prompts is not None:
        out = str(Path(settings["trainer"]["default_root_dir"] or ".") / "videos")
        options = [*options, "--prompts", prompts, "--out", out]
        found = read("predict", options)
        videos = plan("predict", options, found, name="predict", auto=auto, made={folder})
        queued.append(Queued(spread(videos, seeds=seeds, parts=parts), after=(export,)))
    return queued
