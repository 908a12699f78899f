"""All stages as jobs that wait for each other, from the autoencoder to videos."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmdvid.slurm.job import Job
from cmdvid.slurm.plan import plan, read, spread
from cmdvid.slurm.submit import Queued


@dataclass(frozen=True)
class Configs:
    """YAML files of each stage, later ones on top of earlier ones."""

    autoencoder: Sequence[str]
    content: Sequence[str]
    motion: Sequence[str]
    generate: Sequence[str]


def plan_pipeline(
    configs: Configs,
    *,
    words: Sequence[str] = (),
    prompts: str | None = None,
    seeds: str | None = None,
    parts: int | None = None,
) -> list[Queued]:
    """Plan the jobs; everything is checked before one is submitted.

    Args:
        configs: Of the four stages.
        words: Options of the three trainings.
        prompts: File of captions to make videos of in the end.
        seeds: As in `spread`, of these videos.
        parts: As in `spread`, of these videos.

    Raises:
        ValueError: If a config is wrong, or a stage does not read what the earlier ones write.
    """
    given = {
        part: _options(getattr(configs, part)) for part in ("autoencoder", "content", "motion")
    }
    given = {part: [*options, *words] for part, options in given.items()}
    settings = {part: read("fit", options) for part, options in given.items()}
    first = plan("fit", given["autoencoder"], settings["autoencoder"])
    latents = _shared(settings, str(first.last))
    queued, before, made = [Queued(first)], [first], {str(first.last)}
    if latents is not None:
        before = [_encode(first, latents, settings["autoencoder"]["trainer"])]
        queued.append(Queued(before[0], after=(first,)))
        made.add(latents)
    trainings = [plan("fit", given[p], settings[p], made=made) for p in ("content", "motion")]
    queued += [Queued(job, after=tuple(before)) for job in trainings]
    return queued + _generation(configs, trainings, prompts, seeds=seeds, parts=parts)


def _options(files: Sequence[str]) -> list[str]:
    return [word for file in files for word in ("--config", file)]


def _shared(settings: dict[str, dict[str, Any]], autoencoder: str) -> str | None:
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
    if latents is not None and Path(latents).exists():
        raise ValueError(f"data.latents: {latents} exists already, and would be written again")
    return latents


def _encode(autoencoder: Job, latents: str, trainer: dict[str, Any]) -> Job:
    """Not planned as the others are: its settings come from a checkpoint that is not there yet."""
    words = ["encode", "--ckpt", str(autoencoder.last), "--out", latents]
    size = {"num_nodes": autoencoder.nodes, "devices": autoencoder.devices}
    for name in ("accelerator", "precision"):
        if trainer[name] is not None:
            size[name] = trainer[name]
    words += [word for name, value in size.items() for word in (f"--trainer.{name}", str(value))]
    return Job(
        name="encode",
        words=tuple(words),
        nodes=autoencoder.nodes,
        devices=autoencoder.devices,
        gpus=autoencoder.gpus,
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
    scores = plan("test", options, settings, made={folder})
    queued.append(Queued(scores, after=(export,)))
    if prompts is not None:
        out = str(Path(settings["trainer"]["default_root_dir"] or ".") / "videos")
        options = [*options, "--prompts", prompts, "--out", out]
        videos = plan("predict", options, read("predict", options), made={folder})
        queued.append(Queued(spread(videos, seeds=seeds, parts=parts), after=(export,)))
    return queued
