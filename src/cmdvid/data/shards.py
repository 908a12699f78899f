"""Videos in tar shards, WebDataset's layout: what `cmdvid prepare` and video2dataset write."""

import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import UInt64
from torch.utils.data import Dataset
from tqdm import tqdm

from cmdvid.data.files import path_keys, report_rows
from cmdvid.data.order import ShardWindows
from cmdvid.data.shard_index import (
    ShardFacts,
    index_path,
    read_facts,
    read_index,
    scan_shard,
    write_index,
)
from cmdvid.data.shard_list import REQUESTS, ShardFile, list_shards
from cmdvid.types import FilePart, VideoEntry

logger = logging.getLogger(__name__)

WITHOUT = "samples have no video, no class or another video of their name"


class Shards(Dataset[VideoEntry]):
    """Videos of tar shards with their captions or classes, on disk or at any URL of fsspec.

    The first time the headers of each shard are read, and where its videos lie is kept in a small
    file; a shard that was written anew is read anew. Videos are fetched by their range of bytes,
    conditions come from the index. In training the order is local: see ``window``.

    A shard that is missing, cut or unreadable is named in the log and in ``missing``; what lies
    before the cut is used. ``num_missing`` counts it, and each sample without a video or class.

    Args:
        urls: A folder of ``.tar`` files, one file, numbered ones as ``DIR/{00000..00099}.tar``, or
            a list of such; paths or URLs.
        min_clips: Name the videos again and again up to this many rows. Each row is a clip of its
            own, from another window, so that a few videos fill batches and caches.
        window: Shards that are shuffled together; fewer keep reading more in sequence, more mix
            better. ``cmdvid prepare`` keeps the order of its index, where neighbours are alike.
        index_folder: Where to keep indexes; by default in ``.cmdvid-index`` beside the shards, or,
            where one cannot write, in ``~/.cache/cmdvid/shards``. They may be deleted.

    Raises:
        ValueError: If there is no usable shard, or some hold captions and others classes.
    """

    def __init__(
        self,
        urls: str | list[str],
        *,
        min_clips: int = 1,
        window: int = 16,
        index_folder: str | None = None,
    ) -> None:
        if window < 1 or min_clips < 1:
            raise ValueError(
                f"Shards.window and min_clips must be at least 1, got {window} and {min_clips}"
            )
        files, bad = list_shards(urls)
        self.classes: list[str] | None = None
        self.urls: list[str] = []
        self.indexes: list[Path] = []
        facts: list[ShardFacts] = []
        for file, found in zip(files, _facts_of(files, index_folder), strict=True):
            if isinstance(found, str) or found.damage:
                bad[file.url] = found if isinstance(found, str) else found.damage
            if isinstance(found, ShardFacts):
                self.urls.append(file.url)
                self.indexes.append(index_path(file, index_folder))
                facts.append(found)
        _check_kinds(self.urls, facts)
        self.sizes = np.array([fact.num_videos for fact in facts], np.int64)
        self.ends = np.cumsum(self.sizes)
        self.num_files = int(self.ends[-1]) if len(self.ends) else 0
        self.num_rows = max(self.num_files, min_clips)
        # few videos that are read again and again have no order to keep
        whole = self.num_rows == self.num_files
        self.windows = ShardWindows(self.sizes, window) if whole else None
        left_out = {u: f.left_out for u, f in zip(self.urls, facts, strict=True) if f.left_out}
        self.num_missing = _report(urls, bad, sum(left_out.values()), self.num_files)
        # for the report of a run, a line each
        self.missing = {url: f"{number} {WITHOUT}" for url, number in left_out.items()} | bad
        report_rows(str(urls), num_bare=sum(fact.num_bare for fact in facts))

    @property
    def path_keys(self) -> UInt64[np.ndarray, " n"]:
        """What tells each video from others: its shard, links followed, and its number there."""
        shards = path_keys(self.urls) - (self.ends - self.sizes).astype(np.uint64)
        return np.repeat(shards, self.sizes) + np.arange(self.num_files, dtype=np.uint64)

    @property
    def digest(self) -> str:
        """What tells the rows from others, from the indexes as they are."""
        digest = hashlib.sha256()
        for url, path in zip(self.urls, self.indexes, strict=True):
            rows = read_index(path).rows
            digest.update(f"{url} {len(rows)} ".encode() + rows.tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> VideoEntry:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= self.num_files
        shard = int(np.searchsorted(self.ends, index, side="right"))
        row = index - int(self.ends[shard] - self.sizes[shard])
        table, url = read_index(self.indexes[shard]), self.urls[shard]
        name, condition = table.row(row)
        offset, size = table.videos[row].tolist()
        return VideoEntry(f"{url}::{name}", condition, FilePart(url, offset, size))


def _facts_of(files: Sequence[ShardFile], folder: str | None) -> list[ShardFacts | str]:
    """What is known of each shard, or why it cannot be read; those never seen are read now."""
    facts: list[ShardFacts | str | None] = [read_facts(index_path(f, folder)) for f in files]
    unseen = [i for i, found in enumerate(facts) if found is None]
    if unseen:
        with ThreadPoolExecutor(REQUESTS) as pool:
            found = pool.map(lambda i: _scan(files[i], folder), unseen)
            for i, facts_or_reason in zip(unseen, tqdm(found, "shards", len(unseen)), strict=True):
                facts[i] = facts_or_reason
    return [found for found in facts if found is not None]


def _scan(file: ShardFile, folder: str | None) -> ShardFacts | str:
    path = index_path(file, folder)
    if (found := read_facts(path)) is not None:  # another process was here
        return found
    try:
        index, facts = scan_shard(file)
    except Exception as error:  # each kind of storage raises the errors of its own library
        return f"cannot be read ({getattr(error, 'strerror', None) or error})"
    write_index(path, index, facts)
    return facts


def _check_kinds(urls: Sequence[str], facts: Sequence[ShardFacts]) -> None:
    """Captions and classes cannot stand in one batch."""
    first = {fact.kind: url for url, fact in zip(urls, facts, strict=True) if fact.num_videos}
    if "class" in first and len(first) > 1:
        other = first["caption"] if "caption" in first else first[""]
        raise ValueError(
            f"{first['class']} holds classes (.cls), {other} does not: give data of one kind"
        )


def _report(urls: str | Sequence[str], bad: dict[str, str], left_out: int, num_videos: int) -> int:
    """Warn of what cannot be used, and return its number."""
    reasons = "; ".join(f"{url}: {reason}" for url, reason in list(bad.items())[:5])
    if not num_videos:
        raise ValueError(f"{urls}: no video in these shards{f': {reasons}' if bad else ''}")
    if bad:
        logger.warning("%s: %d shards are missing or damaged: %s", urls, len(bad), reasons)
    if left_out:
        logger.warning("%s: %d %s", urls, left_out, WITHOUT)
    return len(bad) + left_out
