"""What a run reads, found in its settings: refused before it is queued if it is not there."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cmdvid.settings import flat

DATA = ("csv", "root", "file", "captions", "ids", "urls", "latents")
MODEL = ("autoencoder_ckpt", "pipeline", "pretrained")
SCORES = ("lpips", "i3d", "c3d", "clip")  # of `test` alone
TAGS = ("clip", "pretrained")  # open_clip's: a name of weights to fetch, or a file
OPTIONAL = ("i3d.pt", "c3d.pt", "openai")  # the defaults: without them their metrics are left out


def inputs(verb: str, settings: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Key and path of all files and folders that a run reads on this machine."""
    if (ckpt := settings["ckpt_path"]) not in (None, "last", "best"):
        yield "--ckpt", ckpt
    if settings.get("prompts") is not None:
        yield "--prompts", settings["prompts"]
    names = {"model": MODEL + (SCORES if verb == "test" else ()), "data": DATA}
    for part, wanted in names.items():
        for key, value in flat(settings[part]):
            path = key.replace("init_args.", "").split(".")
            if path[-1] not in wanted or value in (None, *OPTIONAL):
                continue
            for each in value if isinstance(value, list) else [value]:
                if "://" not in each and not _is_tag(path[-1], each):
                    yield f"{part}.{'.'.join(path)}", _local(each)


def check_protocol(verb: str, settings: dict[str, Any]) -> None:
    """See that the protocol of `test` can be read.

    Raises:
        ValueError: If it cannot; the message names it.
    """
    evaluation = settings["model"].get("init_args", {}).get("evaluation")
    if verb == "test" and evaluation is not None:
        from cmdvid.protocols import read_protocol

        read_protocol(evaluation["protocol"])


def _is_tag(key: str, value: str) -> bool:
    """Whether open_clip would fetch this: it names no file."""
    return key in TAGS and not Path(value).exists() and not Path(value).suffix


def _local(path: str) -> str:
    """Of numbered shards, as in ``DIR/{000..099}.tar``, the folder."""
    return str(Path(path.partition("{")[0] + "x").parent) if "{" in path else path
