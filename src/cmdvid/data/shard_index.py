"""What a tar shard holds, found in one pass over its headers and kept in a small file.

The layout is WebDataset's: members that share a name up to its first dot are one sample. ``.txt``
is its caption, ``.cls`` its class index, ``.json`` may hold a caption, other members are ignored.
Nothing is ever extracted, so no member's name can lead out of a folder.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from jaxtyping import Int64, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cmdvid.data.files import VIDEO_SUFFIXES, is_writable
from cmdvid.data.shard_list import ShardFile
from cmdvid.data.tables import clean_caption
from cmdvid.whole import whole

VERSION = "2"  # of the files written here
BLOCK = 2**16  # bytes fetched at a time from far storages: a header and small members after it
MAX_TEXT = 2**20  # bytes of a caption; more is a mistake or an attack
FOLDER = ".cmdvid-index"


class ShardIndex(NamedTuple):
    """The samples of one shard that have a video and a condition.

    Attributes:
        videos: Offset and size of each video.
        ends: Where each row ends in ``rows``.
        rows: A JSON list ``[name, condition]`` for each video, one after the other.
    """

    videos: Int64[np.ndarray, "n 2"]
    ends: Int64[np.ndarray, " n"]
    rows: UInt8[np.ndarray, " bytes"]

    def row(self, i: int) -> tuple[str, int | str]:
        """Name and condition of one video."""
        start = self.ends[i - 1] if i else 0
        name, condition = json.loads(self.rows[start : self.ends[i]].tobytes())
        return name, condition


class ShardFacts(NamedTuple):
    """What is known of a shard as a whole."""

    num_videos: int
    left_out: int  # samples without a video, or without the class that others have
    kind: str  # of its conditions: "caption", "class", or "" if there are none
    damage: str  # what is wrong with it, or ""
    num_bare: int  # videos without caption or class


@dataclass(slots=True)
class _Sample:
    """What is known of a sample so far."""

    name: str = ""
    video: tuple[int, int] | None = None
    num_more: int = 0  # videos of the same key, which have no caption of their own
    caption: str | None = None
    told: str | None = None  # the caption in its .json
    label: int | None = None


def index_path(shard: ShardFile, folder: str | None = None) -> Path:
    """The file that keeps the index of a shard as it is now.

    Args:
        shard: The shard.
        folder: Where to keep indexes. By default beside the shard in ``.cmdvid-index``, if it is
            there already or one can write there, else in ``~/.cache/cmdvid/shards`` (or below
            ``XDG_CACHE_HOME``).
    """
    storage, path = url_to_fs(shard.url)
    if folder is None and isinstance(storage, LocalFileSystem):
        beside = Path(path).parent / FOLDER
        # by its name alone: shards may be moved with what lies beside them
        kept = beside / _file_name(shard, Path(path).name)
        place = beside if beside.is_dir() else beside.parent
        if (place.is_dir() and is_writable(place)) or kept.is_file():
            return kept
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(folder or f"{cache}/cmdvid/shards") / _file_name(shard, shard.url)


def _file_name(shard: ShardFile, where: str) -> str:
    state = "\n".join([VERSION, where, str(shard.size), shard.stamp])
    return f"{hashlib.sha256(state.encode()).hexdigest()[:32]}.safetensors"


def read_facts(path: Path) -> ShardFacts | None:
    """What a kept index says of its shard; None if there is no such file."""
    try:
        with safe_open(path, framework="numpy") as file:
            return ShardFacts(**json.loads(file.metadata()["facts"]))
    except (OSError, SafetensorError):
        return None


@lru_cache(maxsize=128)  # of each process: a few windows of shards
def read_index(path: Path) -> ShardIndex:
    """Open a kept index."""
    with safe_open(path, framework="numpy") as file:
        return ShardIndex(*(file.get_tensor(name) for name in ShardIndex._fields))


def write_index(path: Path, index: ShardIndex, facts: ShardFacts) -> None:
    """Keep an index, whole or not at all; several processes may do it at once.

    Raises:
        ValueError: If one cannot write there.
    """
    try:
        with whole(path, shared=True) as part:
            save_file(index._asdict(), part, metadata={"facts": json.dumps(facts._asdict())})
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path.parent}: indexes of shards cannot be kept there ({error}); set index_folder"
        ) from error


def scan_shard(shard: ShardFile) -> tuple[ShardIndex, ShardFacts]:
    """Read the headers of a shard; of one that is cut, those before the cut.

    Raises:
        OSError: If it cannot be opened; far storages raise errors of their own.
    """
    storage, path = url_to_fs(shard.url)
    local = isinstance(storage, LocalFileSystem)
    options: dict[str, Any] = {} if local else {"block_size": BLOCK}
    samples: dict[str, _Sample] = {}
    key, damage = "", ""
    with storage.open(path, "rb", **options) as opened:
        file: Any = opened  # what each kind of storage opens has its own type
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    key, suffix = _split(member.name)
                    if member.isreg() and not member.issparse() and not key.endswith("/"):
                        _note(samples.setdefault(key, _Sample()), suffix, member, file)
                file.seek(min(tar.offset, shard.size))
                if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                    damage = f"cut or damaged at byte {tar.offset}"  # tarfile does not mind
        except tarfile.TarError as error:
            damage = f"cut, or no uncompressed tar ({error})"
    if damage:
        samples.pop(key, None)  # its other members may have come after the cut
    return _index(list(samples.values()), damage)


def _split(name: str) -> tuple[str, str]:
    """Split a member's name into the sample's key and the suffix after the first dot."""
    folder, _, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return f"{folder}/{stem}", suffix.lower()


def _note(sample: _Sample, suffix: str, member: tarfile.TarInfo, file: Any) -> None:
    """Add one member to what is known of its sample."""
    if f".{suffix.rpartition('.')[2]}" in VIDEO_SUFFIXES:
        if sample.video is not None:
            sample.num_more += 1
            return
        sample.name, sample.video = _safe(member.name), (member.offset_data, member.size)
    elif suffix in ("txt", "cls", "json") and member.size <= MAX_TEXT:
        file.seek(member.offset_data)
        text = file.read(member.size).decode("utf-8-sig", "replace").strip()
        if suffix == "txt":
            sample.caption = clean_caption(" ".join(text.split()))
        elif suffix == "json":
            sample.told = _told(text)
        elif text.isdecimal():
            sample.label = int(text)


def _told(text: str) -> str | None:
    """The caption in a sample's JSON, if it is there."""
    try:
        facts = json.loads(text)
    except ValueError:
        return None
    captions = [facts.get(key) for key in ("caption", "text")] if isinstance(facts, dict) else []
    said = (clean_caption(" ".join(c.split())) for c in captions if isinstance(c, str))
    return next(said, None)


def _index(samples: Sequence[_Sample], damage: str) -> tuple[ShardIndex, ShardFacts]:
    """Join the samples of a shard; its conditions are of one kind."""
    kind = ""
    if any(s.caption is not None for s in samples):
        kind = "caption"
    elif any(s.label is not None for s in samples):
        kind = "class"
    elif any(s.told is not None for s in samples):
        kind = "caption"
    videos, rows, num_bare = [], [], 0
    for s in samples:
        condition = s.label if kind == "class" else s.caption or s.told or ""
        if s.video is not None and condition is not None:
            videos.append(s.video)
            num_bare += condition == ""
            rows.append(json.dumps([s.name, condition]).encode())
    left_out = len(samples) - len(videos) + sum(s.num_more for s in samples)
    index = ShardIndex(
        np.array(videos, np.int64).reshape(-1, 2),
        np.cumsum([len(row) for row in rows], dtype=np.int64),
        np.frombuffer(b"".join(rows), np.uint8),
    )
    return index, ShardFacts(len(videos), left_out, kind, damage, num_bare)


def _safe(name: str) -> str:
    """A member's name for messages: no way up or to the root, one line of plain text."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return "".join(c if c.isprintable() else "?" for c in "/".join(parts))
