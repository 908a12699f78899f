"""Which tar shards there are: a folder, a file, or a numbered row of them, here or far away."""

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from fsspec.core import url_to_fs

REQUESTS = 16  # at a time: a far storage takes long for each
STAMPS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")


class ShardFile(NamedTuple):
    """A shard and the state that it is in; ``stamp`` changes when it is written anew."""

    url: str
    size: int
    stamp: str


def list_shards(urls: str | Sequence[str]) -> tuple[list[ShardFile], dict[str, str]]:
    """Find shards and their sizes.

    Args:
        urls: One or more of these: a ``.tar`` file, numbered ones as ``DIR/{00000..00099}.tar``, a
            folder whose ``.tar`` files are taken in the order of their names. Paths, or any URLs
            that fsspec opens.

    Returns:
        The shards found, in the given order, and of the others the reasons by URL.

    Raises:
        ValueError: If a folder is missing or holds no shard.
    """
    files: dict[str, ShardFile | None] = {}  # each once
    for url in [urls] if isinstance(urls, str) else urls:
        for one in _numbered(url):
            if urlsplit(one).path.endswith(".tar"):
                files.setdefault(one)
            else:
                files |= {file.url: file for file in _folder(one)}
    missing: dict[str, str] = {}
    with ThreadPoolExecutor(REQUESTS) as pool:
        unseen = [url for url, file in files.items() if file is None]
        for url, found in zip(unseen, pool.map(_file, unseen), strict=True):
            if isinstance(found, str):
                missing[url] = found
            else:
                files[url] = found
    return [file for file in files.values() if file is not None], missing


def _numbered(url: str) -> Iterator[str]:
    """``a{08..11}b`` to its numbers, as in a shell."""
    if (found := re.search(r"\{(\d+)\.\.(\d+)\}", url)) is None:
        yield url
        return
    first, last = found.groups()
    if int(last) < int(first):
        raise ValueError(f"{url}: the numbers in braces go down, from {first} to {last}")
    for number in range(int(first), int(last) + 1):
        yield from _numbered(f"{url[: found.start()]}{number:0{len(first)}d}{url[found.end() :]}")


def _folder(url: str) -> list[ShardFile]:
    storage, path = url_to_fs(url)
    try:
        infos = storage.ls(path, detail=True)
    except Exception as error:  # each kind of storage raises the errors of its own library
        raise ValueError(f"{url}: no folder of tar shards ({_reason(error)})") from error
    infos = [info for info in infos if urlsplit(info["name"]).path.endswith(".tar")]
    if not (infos := [info for info in infos if info["type"] == "file"]):
        raise ValueError(f"{url}: no .tar file in this folder; make some with `cmdvid prepare`")
    names = sorted(info["name"].removesuffix("/").rpartition("/")[2] for info in infos)
    by_name = {info["name"].rpartition("/")[2]: info for info in infos}
    return [_shard(f"{url.rstrip('/')}/{name}", by_name[name]) for name in names]


def _file(url: str) -> ShardFile | str:
    """The shard, or why it cannot be had."""
    storage, path = url_to_fs(url)
    try:
        return _shard(url, storage.info(path))
    except Exception as error:
        return _reason(error)


def _shard(url: str, info: dict[str, Any]) -> ShardFile:
    stamp = next((info[name] for name in STAMPS if info.get(name)), "")
    if isinstance(stamp, datetime):  # some storages list a number, and look one up as this
        stamp = stamp.timestamp()
    return ShardFile(url, int(info["size"] or 0), str(stamp))


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
