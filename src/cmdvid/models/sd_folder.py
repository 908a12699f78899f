"""One part of a Stable Diffusion model (vae, unet, text_encoder, ...) from its folder or hub id.

Weights are read from safetensors only: pickled ones can run code when they are opened.
"""

import json
from pathlib import Path
from typing import Any

import torch

from cmdvid.models.sd_architectures import known_config

INDEX = "model_index.json"
CONFIGS = {"tokenizer": "tokenizer_config.json", "scheduler": "scheduler_config.json"}


def load_part(cls: Any, model: str, part: str) -> Any:
    """Read one network in float32 by its own ``from_pretrained``; on meta, its sizes alone.

    Args:
        cls: Class of diffusers or transformers that the part must be.
        model: A whole model's folder or hub id, or the part's own.
        part: Name of the part's sub-folder, such as "vae".

    Raises:
        ValueError: If the model has no such part, or it is of another class, or its weights are
            not in safetensors.
    """
    config = read_config(model, part)
    named = config.get("_class_name") or next(iter(config.get("architectures") or []), None)
    if named and named != cls.__name__:
        raise ValueError(f"{model}: its {part} is of class {named}, needed is {cls.__name__}")
    of_diffusers = hasattr(cls, "load_config")
    if on_meta():
        return cls.from_config(config) if of_diffusers else cls(cls.config_class.from_dict(config))
    where = locate(model, part)
    dtype = {"torch_dtype" if of_diffusers else "dtype": torch.float32}
    try:
        return cls.from_pretrained(**where, **dtype, use_safetensors=True)
    except OSError as error:
        raise ValueError(
            f"{model}: the weights of its {part} cannot be read; needed is a .safetensors file, "
            f"found {_listing(_path(where))} ({_first_line(error)})"
        ) from error


def locate(model: str, part: str) -> dict[str, str]:
    """Where a part is, as the arguments that every ``from_pretrained`` takes.

    Args:
        model: A whole model's folder or hub id, or the part's own.
        part: Name of the part's sub-folder.

    Raises:
        ValueError: If a folder holds neither, naming what it holds; or nothing can be found.
    """
    path, config = Path(model), CONFIGS.get(part, "config.json")
    own = {"pretrained_model_name_or_path": model}
    whole = own | {"subfolder": part}
    if (path / part / config).is_file():
        return whole
    if (path / config).is_file():
        return own
    if path.is_dir():
        raise ValueError(
            f"{model}: no Stable Diffusion model with a {part} is in this folder; expected "
            f"{part}/{config} (beside {INDEX}), or {config} if it is the {part} alone, "
            f"found {_listing(path)}"
        )
    if path.exists() or path.is_absolute() or model.startswith(".") or model.count("/") != 1:
        raise ValueError(
            f"{model}: no such folder, and no hub id (OWNER/NAME) either; expected a folder with "
            f"{INDEX} and {part}/{config}"
        )
    try:
        return whole if _from_hub(model, f"{part}/{config}", or_none=True) else own
    except ValueError:  # without the hub nobody knows that it is a part alone, but it may be here
        if not _is_cached(model, config):
            raise
        return own


def on_meta() -> bool:
    """Whether networks are being built on the meta device, for their sizes alone."""
    return torch.get_default_device().type == "meta"


def read_config(model: str, part: str) -> dict[str, Any]:
    """The configuration of a part, as its library wrote it; on meta, what is known of hub models.

    Raises:
        ValueError: As :func:`locate` does.
    """
    if on_meta() and not Path(model).is_dir() and (known := known_config(model, part)):
        return dict(known)
    where, name = locate(model, part), CONFIGS.get(part, "config.json")
    file = _path(where) / name
    if not file.is_file():
        file = _from_hub(model, f"{where['subfolder']}/{name}" if "subfolder" in where else name)
    return json.loads(Path(str(file)).read_text(encoding="utf-8"))


def _from_hub(model: str, name: str, *, or_none: bool = False) -> str | None:
    """One file of a hub model, fetched once and kept in the hub's cache."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return hf_hub_download(model, name)
    except Exception as error:
        absent = isinstance(error, EntryNotFoundError)
        if or_none and absent and not isinstance(error, LocalEntryNotFoundError):
            return None
        raise ValueError(
            f"{model}: there is no such folder here, and {name} could not be had from the hub; "
            f"download the model and give its folder ({_first_line(error)})"
        ) from error


def _is_cached(model: str, name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(model, name), str)


def _path(where: dict[str, str]) -> Path:
    return Path(where["pretrained_model_name_or_path"], where.get("subfolder", ""))


def _listing(path: Path) -> str:
    names = sorted(each.name for each in path.iterdir())[:8] if path.is_dir() else []
    return ", ".join(names) or "nothing"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
