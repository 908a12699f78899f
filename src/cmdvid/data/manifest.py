"""What made a cache of encoded clips: its manifest, written last of all.

``OUT/unfinished.json`` becomes ``OUT/manifest.json`` when every shard is there, so that no reader
takes half a cache for a whole one, and a stopped run knows whether it may go on.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from cmdvid.data.cache import CacheShards, CacheSplit
from cmdvid.whole import write_text
from cmdvid.window import ClipSpec

MANIFEST, UNFINISHED = "manifest.json", "unfinished.json"
NOT_COMPARED = ("autoencoder_ckpt", "versions")  # tell where things came from, not what they are


@dataclass(frozen=True)
class Manifest:
    """What made a cache; a network stands here as the settings and the hash that identify it.

    Attributes:
        holds: Latents for the diffusion stages, or frames for the autoencoder stage.
        autoencoder: Fingerprint; none if frames are held.
        autoencoder_ckpt: Where it was read.
        codec: What made the frames.
        content_text: The text encoder whose embeddings the content model reads, if they are held.
        motion_text: The one of the motion model.
        spec: The ClipSpec.
        seed: Seed of the windows.
        dtype: Of the stored tensors.
        precision: Of the networks, as Lightning names it.
        versions: Of the libraries that computed it.
        train: The training clips.
        val: The validation clips.
    """

    holds: Literal["latents", "frames"]
    autoencoder: str | None
    autoencoder_ckpt: str | None
    codec: dict[str, Any]
    content_text: dict[str, Any] | None
    motion_text: dict[str, Any] | None
    spec: dict[str, Any]
    seed: int
    dtype: str
    precision: str
    versions: dict[str, str]
    train: CacheSplit
    val: CacheSplit


def index_hash(index: Any, name: str) -> str:
    """SHA-256 over the paths and conditions of all rows of an index.

    They are read one by one, unless the index has a ``digest`` of them, as those of millions have.
    """
    if (ready := getattr(index, "digest", None)) is not None:
        return hashlib.sha256(f"{ready} {len(index)}".encode()).hexdigest()
    digest = hashlib.sha256()
    for row in tqdm(range(len(index)), desc=f"reading the {name} index", delay=2, leave=False):
        entry = index[row]
        digest.update(json.dumps([str(entry.path), entry.condition]).encode())
    return digest.hexdigest()


def clips_wanted(spec: ClipSpec, **splits: Any) -> dict[str, Any]:
    """What a cache must have been made of to stand in for clips, by fields of its manifest.

    Args:
        spec: The clips.
        splits: Indexes of their videos by split, of which one or both may be None: then the cache
            is taken at its word.
    """
    named = {name: index for name, index in splits.items() if index is not None}
    wanted: dict[str, Any] = {"spec": asdict(spec)} if named else {}
    return wanted | {f"{name}.index": index_hash(index, name) for name, index in named.items()}


def read_manifest(folder: str | Path) -> Manifest:
    """What made a cache.

    Raises:
        ValueError: If the folder holds no finished cache, or one of another version of cmdvid.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise ValueError(
            f"{folder}: no finished latent cache ({MANIFEST} is missing); "
            "make it with `cmdvid encode --ckpt AUTOENCODER.ckpt --out DIR`"
        )
    return _read(path)


def begin(folder: Path, manifest: Manifest, *, overwrite: bool) -> None:
    """Make a folder ready for shards; those of the same settings stay, unless told otherwise."""
    if overwrite:
        (folder / MANIFEST).unlink(missing_ok=True)
        (folder / UNFINISHED).unlink(missing_ok=True)
        for name in ("train", "val"):
            CacheShards(folder / name, getattr(manifest, name)).remove()
    write_text(folder / UNFINISHED, json.dumps(asdict(manifest), indent=2) + "\n")
    (folder / MANIFEST).unlink(missing_ok=True)  # now that it has a successor


def finish(folder: Path, manifest: Manifest) -> None:
    """Declare a cache finished.

    Raises:
        ValueError: If shards are missing, as after ``--trainer.limit_predict_batches``.
    """
    for name in ("train", "val"):
        shards = CacheShards(folder / name, getattr(manifest, name))
        if missing := shards.missing():
            raise ValueError(
                f"{shards.folder}: {len(missing)} of {shards.split.num_shards} shards are missing, "
                f"the first is {shards.path(missing[0]).name}; run the same `cmdvid encode` again, "
                "which goes on where it stopped"
            )
    os.replace(folder / UNFINISHED, folder / MANIFEST)


def refuse_other_settings(folder: Path, manifest: Manifest) -> None:
    """See that a run may go on with what an earlier one left in a folder.

    Raises:
        ValueError: If other settings made it; names each with both values.
    """
    found = [path for name in (MANIFEST, UNFINISHED) if (path := folder / name).is_file()]
    if not found:
        if any(folder.glob("*/[0-9]*.safetensors")):
            raise ValueError(
                f"{folder}: holds shards, but nothing says of what; add --overwrite true to "
                "replace them, or choose another --out"
            )
        return
    theirs, ours = (
        {k: v for k, v in json.loads(json.dumps(asdict(each))).items() if k not in NOT_COMPARED}
        for each in (_read(found[0]), manifest)
    )
    if changed := differences(theirs, ours):
        listed = "; ".join(f"{key} was {old}, now {new}" for key, old, new in changed)
        raise ValueError(
            f"{folder}: made with other settings ({listed}); correct them, choose another --out, "
            "or add --overwrite true to make it anew"
        )


def refuse_other_fields(folder: str | Path, wanted: Mapping[str, Any]) -> None:
    """See that a cache is of the kind that a stage trains on.

    Args:
        folder: The cache.
        wanted: Values that fields of its manifest must have; a dot leads to a field's field.

    Raises:
        ValueError: If some differ, naming each with both values, or the cache is not finished.
    """
    manifest = read_manifest(folder)
    found = {field: attrgetter(field)(manifest) for field in wanted}
    if differ := differences(found, json.loads(json.dumps(wanted))):
        listed = "; ".join(f"{key} is {theirs}, but here {ours}" for key, theirs, ours in differ)
        if any(key.endswith(".index") for key, _, _ in differ):
            listed += "; an index is of other videos, paths, captions or order"
        raise ValueError(
            f"{folder}: not a cache for this stage ({listed}); make one with `cmdvid encode`, or "
            "correct the settings (data.train and data.val may be null)"
        )


def differences(
    one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = ""
) -> list[tuple[str, Any, Any]]:
    """What differs between nested settings: dotted name and both values."""
    found = []
    for key in sorted(one.keys() | other.keys()):
        a, b = one.get(key), other.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append((f"{prefix}{key}", a, b))
    return found


def _read(path: Path) -> Manifest:
    try:
        values = json.loads(path.read_text())
        splits = {name: CacheSplit(**values[name]) for name in ("train", "val")}
        return Manifest(**{**values, **splits})
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not the manifest of a cache of this version of cmdvid ({error}); make the "
            "cache anew with `cmdvid encode --overwrite true ...`"
        ) from error
