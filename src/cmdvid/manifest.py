"""What made a number: hashes of weights and data, versions of packages, the commit."""

import hashlib
import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

import cmdvid
from cmdvid.metrics.weights import digest as file_digest
from cmdvid.types import VideoEntry

PACKAGES = (
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "torchmetrics",
    "open_clip_torch",
    "numpy",
    "av",
)
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".json")


def versions() -> dict[str, str]:
    """The versions of the packages that a score may depend on."""
    found = {"cmdvid": cmdvid.__version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def commit() -> str | None:
    """The commit that the source is at, with "+changes" if files differ; none outside git."""
    command = ["git", "-C", str(Path(__file__).parent)]
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 20}
    try:
        head = subprocess.run([*command, "rev-parse", "HEAD"], **options)
        changes = subprocess.run([*command, "status", "--porcelain", "-uno"], **options)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if head.returncode or changes.returncode:
        return None
    return head.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


def digest(value: Mapping[str, Any]) -> str:
    """SHA-256 of plain settings, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def weights_digests(folder: str | Path) -> dict[str, str]:
    """SHA-256 of every file of weights or configuration in a folder, by its path in it."""
    files = sorted(p for p in Path(folder).rglob("*") if p.suffix in WEIGHTS and p.is_file())
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}


def source_digest() -> str:
    """SHA-256 of the source of this package."""
    folder, found = Path(__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        found.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return found.hexdigest()


def data_digest(entries: Dataset[VideoEntry] | Iterable[VideoEntry], root: str | Path) -> str:
    """SHA-256 of which videos an index names: paths below ``root``, sizes and conditions.

    Not of their pixels, so it costs a look at each file's size, and is the same on each machine.
    """
    rows = entries if isinstance(entries, Iterable) else _rows(entries)
    found = hashlib.sha256()
    for path, condition, part in rows:
        row = [os.path.relpath(path, root), part.size if part else os.path.getsize(path), condition]
        found.update(json.dumps(row).encode() + b"\n")
    return found.hexdigest()


def _rows(index: Dataset[VideoEntry]) -> Iterable[VideoEntry]:
    return (index[row] for row in range(len(index)))  # type: ignore[arg-type]
