"""The settings of a run that do not stand in a YAML: a checkpoint's, a pipeline's, flat options."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace

CONFIG_KEY = "config"  # of a checkpoint
STAGE_OPTIONS = ("num_inference_steps", "guidance_scale", "negative_prompt", "seed")


def option(args: Sequence[str], *names: str) -> str | None:
    """Find the value of an option before the parser exists: the last, which counts there too."""
    found = None
    for position, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        if name in names:
            found = value if equals else next(iter(args[position + 1 :]), None)
    return found


def defaults(ckpt: str, verb: str) -> dict[str, Any]:
    """Read the settings that a checkpoint or a pipeline folder brings with it."""
    if Path(ckpt).is_dir():
        if not (Path(ckpt) / "model_index.json").is_file():
            raise ValueError(
                f"{ckpt}: a folder without model_index.json; give a .ckpt file, or a pipeline "
                "folder made by `cmdvid export`"
            )
        if verb == "encode":
            raise ValueError(f"{ckpt}: encode needs an autoencoder checkpoint, not a pipeline")
        stage = {"class_path": "cmdvid.stages.GenerationStage", "init_args": {"pipeline": ckpt}}
        return {"model": stage}
    settings = read_settings(ckpt)
    if verb != "encode":
        settings.get("data", {}).pop("train", None)  # not read; need not be on this machine
    return settings


def read_settings(ckpt: str) -> dict[str, Any]:
    """Read the settings of stage and data that a checkpoint was trained with; no weights.

    Returns:
        ``model`` and ``data`` as in a YAML; nothing if the command line did not train it.

    Raises:
        ValueError: If the file is missing or no checkpoint.
    """
    if not Path(ckpt).is_file():
        raise ValueError(f"{ckpt}: no such checkpoint")
    try:
        return dict(torch.load(ckpt, map_location="meta", mmap=True).get(CONFIG_KEY, {}))
    except Exception as error:
        raise ValueError(f"{ckpt}: not a checkpoint") from error


def plain(parser: ArgumentParser, settings: Namespace) -> dict[str, Any]:
    """Bring the settings of stage and data into the form that a YAML has."""
    text = parser.dump(settings, skip_unset=False)
    return {key: yaml.safe_load(text)[key] for key in ("model", "data")}


def use_pipeline(settings: Namespace, folder: str) -> None:
    """Generate with a pipeline folder; it is no checkpoint, so Lightning must not load it."""
    if "pipeline" not in settings.model.init_args:
        raise ValueError(
            f"{folder}: a pipeline folder, which {settings.model.class_path} cannot use; "
            "give a checkpoint, or leave --model to be GenerationStage"
        )
    settings.model.init_args.pipeline, settings.ckpt_path = folder, None


def spread_options(settings: Namespace) -> None:
    """Put the flat options of ``predict`` where they belong."""
    if settings.seed is not None:
        settings.seed_everything = settings.seed
    for name in STAGE_OPTIONS:
        if (value := settings[name]) is not None:
            if name not in settings.model.init_args:
                raise ValueError(f"--{name}: {settings.model.class_path} has no such setting")
            settings.model.init_args[name] = value
            settings[name] = None
    if settings.prompt is not None or settings.prompts is not None:
        prompts = Namespace(file=settings.prompts, prompt=settings.prompt)
        settings.data.predict = Namespace(class_path="cmdvid.data.index.Prompts", init_args=prompts)
        settings.prompt = settings.prompts = None
    callbacks = settings.trainer.callbacks or []
    callbacks = list(callbacks) if isinstance(callbacks, list) else [callbacks]
    writers = [c for c in callbacks if c.class_path.endswith(".ClipWriter")]
    if not writers:
        settings.out = settings.out or "runs/predict"
        writers = [Namespace(class_path="cmdvid.callbacks.ClipWriter", init_args=Namespace())]
        callbacks += writers
    if settings.out:
        writers[0].init_args.out = settings.out
    if settings.fps is not None:
        writers[0].init_args.fps = settings.fps
    settings.trainer.callbacks = callbacks


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Walk the leaves of nested settings, with dotted names."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from flat(inner, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, value
