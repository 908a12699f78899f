"""From a command line of a stage to a job, with all refused that would fail on the cluster."""

import contextlib
import io
import shlex
from collections.abc import Collection, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import yaml

from cmdvid.settings import option
from cmdvid.slurm.inputs import check_protocol, inputs
from cmdvid.slurm.job import Array, Job

VERBS = ("fit", "validate", "test", "predict", "encode")
CHECKPOINT = "lightning.pytorch.callbacks.ModelCheckpoint"


def plan(
    verb: str,
    words: Sequence[str],
    settings: dict[str, Any],
    *,
    name: str | None = None,
    auto: int | None = None,
    made: Collection[str] = (),
) -> Job:
    """Make the job that runs a command line.

    Args:
        verb: One of VERBS.
        words: Its options.
        settings: What `read` understood of them.
        name: Of the job; by default verb and config.
        auto: Devices of a node where the settings leave them open; refused if none.
        made: Files and folders that earlier jobs will have made.

    Raises:
        ValueError: If a setting is unsafe on a cluster, or something that the run reads is missing.
    """
    check_protocol(verb, settings)
    for key, path in inputs(verb, settings):
        if path not in made and not Path(path).exists():
            raise ValueError(f"{key}: {path}: no such file or folder; nothing was submitted")
    trainer = settings["trainer"]
    devices, nodes = count_devices(trainer, auto), int(trainer["num_nodes"])
    last = last_checkpoint(settings) if verb == "fit" else None
    if last is not None and Path(last).exists() and settings["ckpt_path"] != last:
        raise ValueError(
            f"{last}: holds a training already; give --ckpt {last} to go on with it, or another "
            "folder; nothing was submitted"
        )
    size = ("--trainer.num_nodes", str(nodes), "--trainer.devices", str(devices))
    named = [i for i, word in enumerate(words) if word.partition("=")[0] == "--config"]
    first = option(words[named[0] : named[0] + 2], "--config") if named else None
    source = first or settings["ckpt_path"] or ""
    return Job(
        name=name or "-".join(filter(None, (verb, Path(source).stem))),
        words=(verb, *words, *size),
        nodes=nodes,
        devices=devices,
        gpus=trainer["accelerator"] != "cpu",
        last=last,
        cache=_cache(settings) if verb == "encode" else None,
    )


def spread(job: Job, *, seeds: str | None, parts: int | None) -> Job:
    """A `predict` as an array: each task has a seed of its own, or a part of the prompts.

    Args:
        job: The whole.
        seeds: Numbers of the tasks, which are their seeds, as in ``0-7``.
        parts: Number of the tasks; each takes one of so many prompts, and its files are numbered
            and its noise is drawn by the row in its part.

    Raises:
        ValueError: If the job is not a `predict`, or has no prompts, or fewer than parts.
    """
    if seeds is None and parts is None:
        return job
    out, prompts = option(job.words, "--out"), option(job.words, "--prompts")
    if job.words[0] != "predict" or (seeds is not None and parts is not None):
        raise ValueError("give predict either --seeds or --parts; no other verb takes them")
    out = shlex.quote(out or "runs/predict")
    task = '"$SLURM_ARRAY_TASK_ID"'
    if seeds is not None:
        return replace(job, array=Array(seeds, f"--seed {task} --out {out}/seed-{task}"))
    lines = Path(prompts).read_text(encoding="utf-8-sig").split("\n") if prompts else []
    count = sum(bool(line.strip()) for line in lines)
    if not 0 < cast(int, parts) <= count or prompts is None:
        raise ValueError(f"--parts {parts}: give --prompts FILE with as many lines; it has {count}")
    file = f"{out}/part-{task}/prompts.txt"
    # a carriage return would make a word of an empty line
    rows = '{sub(/\\r$/, "")} NF && k++ % n == i'
    pick = f"awk -v n={parts} -v i={task} '{rows}' {shlex.quote(prompts)}"
    return replace(
        job,
        array=Array(
            f"0-{cast(int, parts) - 1}",
            f"--prompts {file} --out {out}/part-{task}",
            f"mkdir -p {out}/part-{task}\n{pick} > {file}",
        ),
    )


def read(verb: str, words: Sequence[str]) -> dict[str, Any]:
    """The settings of a command line as the verb itself understands them; builds nothing.

    Raises:
        ValueError: If one is wrong.
    """
    from cmdvid.cli import main

    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main([verb, *words, "--print_config"])
    settings = yaml.safe_load(text.getvalue())
    if not settings.get("model"):
        raise ValueError(f"{verb}: no stage; give --config FILE")
    return settings


def last_checkpoint(settings: dict[str, Any]) -> str:
    """The file that a training goes on from when it is started again.

    Raises:
        ValueError: If the config keeps none, or under names that change.
    """
    callbacks = settings["trainer"]["callbacks"] or []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        given = callback.get("init_args", {})
        # not save_last: link, by which last.ckpt is an older checkpoint after a stop
        if _class(callback["class_path"]) is _class(CHECKPOINT) and given.get("save_last") is True:
            if given.get("dirpath") is None or given.get("enable_version_counter", True):
                break
            return str(Path(given["dirpath"]) / "last.ckpt")
    raise ValueError(
        "trainer.callbacks: a job that is started again needs a ModelCheckpoint with dirpath, "
        "save_last: true and enable_version_counter: false, to go on from its last.ckpt"
    )


def _cache(settings: dict[str, Any]) -> str:
    """The folder in which `encode` goes on when it is started again.

    Raises:
        ValueError: If each start would remove what the one before has written.
    """
    if settings["overwrite"]:
        raise ValueError(
            f"--overwrite: a job that is started again would begin anew each time; remove "
            f"{settings['out']} yourself and leave the option out; nothing was submitted"
        )
    return settings["out"]


def _class(path: str) -> Any:
    """What a class_path means, for a class may have several."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def count_devices(trainer: dict[str, Any], auto: int | None) -> int:
    """Devices of a node.

    Raises:
        ValueError: If the settings leave them open, and nothing says what that means; sbatch must
            be told.
    """
    devices = trainer["devices"]
    if isinstance(devices, list):
        return len(devices)
    if devices == "auto" and trainer["accelerator"] == "cpu":
        return 1
    if devices == "auto" and auto is None:
        raise ValueError(
            "trainer.devices is auto, but a job must say how many: give --trainer.devices N, or "
            "set gpus_per_node in the cluster's YAML; nothing was submitted"
        )
    number = auto if devices == "auto" else int(devices)
    if cast(int, number) < 1:
        raise ValueError(f"trainer.devices: a job needs their number, got {devices}")
    return cast(int, number)
