"""`cmdvid prepare`: any index of videos to tar shards, as they are or made quick to read."""

import hashlib
import io
import json
import logging
import os
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import Dataset
from tqdm import tqdm

from cmdvid.container import VideoError, read_video
from cmdvid.data.files import VIDEO_SUFFIXES
from cmdvid.data.skipped import FEW
from cmdvid.reencode import reencode, video_info
from cmdvid.types import VideoEntry
from cmdvid.whole import whole, write_text

logger = logging.getLogger(__name__)

SETTINGS = "prepare.json"
SKIPPED = "skipped.jsonl"


class _Sample(NamedTuple):
    """A row of the index, ready to be written."""

    members: dict[str, bytes]  # by suffix; none if the video cannot be used
    said: dict[str, Any]  # of a bad video, for ``skipped.jsonl``


def write_shards(  # one argument for each option of `cmdvid prepare`
    index: Dataset,  # of VideoEntry, but the parser of the command line cannot look inside
    out: str,
    *,
    samples_per_shard: int = 1000,
    short_side: int | None = None,
    gop: int = 16,
    crf: int = 18,
    num_workers: int | None = None,
    max_bad_fraction: float = 0.2,
) -> None:
    """Write ``00000.tar``, ``00001.tar``, ...; a second call writes what is missing.

    Each sample is ``KEY.mp4`` (or what the file is), ``KEY.txt`` (caption) or ``KEY.cls`` (class
    index) and ``KEY.json``, with its row in the index as the key. Videos that cannot be read are
    left out and named in ``skipped.jsonl``, as are those that were written anew without all of
    their frames. A shard is there whole or not at all.

    Args:
        index: Any index of ``cmdvid.data``, or another data set of ``VideoEntry``.
        out: Folder of the shards, made if need be.
        samples_per_shard: Rows of the index in one shard, those left out among them.
        short_side: Write videos anew, height or width not above this (even) number of pixels, with
            key frames so near that random clips are read many times faster. Without, copy them.
        gop: Frames from one key frame to the next, if videos are written anew.
        crf: Their quality: 18 is hardly told from the original, 23 takes half the space.
        num_workers: Videos worked on at a time; by default as many as there are processors.
        max_bad_fraction: Stop when more than this share of the videos tried, of 200 at least,
            cannot be read: with a disk gone, all that follow would be left out for good.

    Raises:
        ValueError: If a number is out of range, the folder holds shards of other settings or of
            another index, too many videos cannot be read, or none can.
    """
    least = {"samples_per_shard": (samples_per_shard, 1), "gop": (gop, 1), "crf": (crf, 0)}
    for name, (number, minimum) in (least | {"short_side": (short_side or 16, 16)}).items():
        if number < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {number}")
    if not 0 <= max_bad_fraction <= 1:
        raise ValueError(f"max_bad_fraction must lie in 0..1, got {max_bad_fraction}")
    if short_side is not None and short_side % 2:
        raise ValueError(f"short_side must be even, as mp4 needs it, got {short_side}")
    size = len(index)  # type: ignore[arg-type]
    settings = {"samples_per_shard": samples_per_shard, "short_side": short_side}
    settings |= {"gop": gop, "crf": crf} if short_side else {}
    folder = Path(out)
    _claim(folder, settings | {"rows": size, "index": _fingerprint(index, size)})

    def make(row: int) -> _Sample:
        try:
            return _sample(index, row, short_side=short_side, gop=gop, crf=crf)
        except VideoError as error:
            path = index[row].path
            reason = str(error).removeprefix(f"{os.path.abspath(path)}: ")
            return _Sample({}, {"path": path, "reason": reason})

    shards = {
        number: range(first, min(first + samples_per_shard, size))
        for number, first in enumerate(range(0, size, samples_per_shard))
    }
    _write_missing(folder, shards, make, num_workers or os.cpu_count() or 1, max_bad_fraction)
    _summarise(folder, size)


def _summarise(folder: Path, size: int) -> None:
    """Say how many videos were bad."""
    path, said = folder / SKIPPED, _read_skipped(folder)
    num_skipped = _num_left_out(said)
    num_damaged = len(said) - num_skipped
    if num_skipped == size:
        raise ValueError(f"{path}: none of {size} videos can be read")
    if num_skipped:
        logger.warning("%d of %d videos were left out: %s says why", num_skipped, size, path)
    if num_damaged:
        logger.warning(
            "%d of %d videos have lost frames: %s says how many", num_damaged, size, path
        )


def _sample(
    index: Dataset[VideoEntry], row: int, *, short_side: int | None, gop: int, crf: int
) -> _Sample:
    entry = index[row]
    path = os.path.abspath(entry.path) if entry.part is None else entry.path
    suffix, data, lost = Path(path).suffix.lower(), None, 0
    if suffix not in VIDEO_SUFFIXES:  # readers of shards would not take it for a video
        suffix = ".mp4"
    if entry.part is not None or short_side is None:
        data = read_video(path, entry.part)
    if short_side is not None:
        data, lost = reencode(path, data, short_side=short_side, gop=gop, crf=crf)
        suffix = ".mp4"
    assert data is not None, "read or written anew"
    facts: dict[str, Any] = {"key": f"{row:09d}", "source": entry.path}
    facts |= video_info(path, data)._asdict()
    if isinstance(entry.condition, str):
        facts["caption"] = entry.condition
    else:
        classes = getattr(index, "classes", None)
        facts |= {"label": entry.condition, "class": classes[entry.condition] if classes else None}
    said: dict[str, Any] = {}
    if lost:
        facts["frames_lost"] = lost
        reason = f"damaged, {lost} of {lost + facts['num_frames']} frames are lost"
        said = {"path": entry.path, "reason": reason, "frames_lost": lost}
    condition = ".txt" if isinstance(entry.condition, str) else ".cls"
    members = {
        suffix: data,
        condition: str(entry.condition).encode("utf-8", "replace"),
        ".json": json.dumps(facts).encode(),
    }
    return _Sample(members, said)


def _write_missing(
    folder: Path,
    shards: dict[int, range],
    make: Callable[[int], _Sample],
    num_workers: int,
    max_bad_fraction: float,
) -> None:
    """Write the shards that are not there, in threads: PyAV works without Python's lock."""
    missing = {n: rows for n, rows in shards.items() if not _path(folder, n).exists()}
    _keep_skipped(folder, set(shards) - set(missing))
    total, left = (sum(map(len, part.values())) for part in (shards, missing))
    with (
        ThreadPoolExecutor(num_workers) as pool,
        tqdm(total=total, initial=total - left, desc="prepare") as progress,
    ):
        try:
            every_row = chain.from_iterable(missing.values())
            made = _in_order(pool, make, every_row, ahead=2 * num_workers)
            num_bad = _num_left_out(_read_skipped(folder))
            samples = _up_to_too_many(made, max_bad_fraction, total - left, num_bad)
            for number, rows in missing.items():
                _write_shard(folder, number, rows, islice(samples, len(rows)), progress)
        except BaseException:  # Ctrl-C too: do not work on the rest first
            pool.shutdown(cancel_futures=True)
            raise


def _in_order(
    pool: ThreadPoolExecutor, make: Callable[[int], Any], rows: Iterable[int], *, ahead: int
) -> Iterator[Any]:
    """Like ``pool.map``, but only so much ahead of what is taken that memory stays small."""
    pending: deque[Future] = deque()
    for row in rows:
        pending.append(pool.submit(make, row))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _up_to_too_many(
    samples: Iterator[_Sample], max_bad_fraction: float, num_tried: int, num_bad: int
) -> Iterator[_Sample]:
    """Pass samples on and count those that are bad, beside those of finished shards."""
    for sample in samples:
        num_tried += 1
        num_bad += not sample.members
        if num_bad > max_bad_fraction * max(num_tried, FEW):
            raise ValueError(
                f"{num_bad} of the {num_tried} videos tried so far cannot be read, more than "
                f"max_bad_fraction ({max_bad_fraction}) allows; the last is {sample.said['path']}: "
                f"{sample.said['reason']}. The same command goes on with the shard that was begun"
            )
        yield sample


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.tar"


def _write_shard(
    folder: Path,
    number: int,
    rows: range,
    samples: Iterator[_Sample],
    progress: tqdm,
) -> None:
    path = _path(folder, number)
    lines = []
    with whole(path) as part, tarfile.open(part, "w") as tar:
        for row, sample in zip(rows, samples, strict=True):
            if sample.said:
                lines.append({"shard": number} | sample.said)
            for suffix, data in sample.members.items():
                member = tarfile.TarInfo(f"{row:09d}{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
            progress.update()
        if lines:  # before the shard is there: a shard made again says it again
            with (folder / SKIPPED).open("a") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)


def _read_skipped(folder: Path) -> list[dict[str, Any]]:
    """The lines of ``skipped.jsonl``; one that a killed run left half written is of no shard."""
    path = folder / SKIPPED
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _num_left_out(said: Sequence[dict[str, Any]]) -> int:
    """How many lines are of videos that gave nothing; of the others frames are lost."""
    return sum("frames_lost" not in line for line in said)


def _keep_skipped(folder: Path, finished: set[int]) -> None:
    """Forget what was said of shards that are made again."""
    lines = [line for line in _read_skipped(folder) if line["shard"] in finished]
    if (folder / SKIPPED).exists():
        write_text(folder / SKIPPED, "".join(json.dumps(line) + "\n" for line in lines))


def _fingerprint(index: Dataset[VideoEntry], size: int) -> str:
    """A hash of all rows: shards are numbered by rows, so another index has other shards."""
    digest = hashlib.sha256()
    for row in range(size):
        path, condition, part = index[row]
        digest.update(json.dumps([path, condition, part]).encode())
    return digest.hexdigest()[:16]


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Note the settings in the folder, or see that they are those of the shards in it."""
    path = folder / SETTINGS
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if others := sorted(folder.glob("*.tar")):
            raise ValueError(f"{folder} holds other shards ({others[0].name}): choose a new folder")
        write_text(path, json.dumps(settings, indent=2) + "\n")
        return
    found = json.loads(path.read_text())
    if changed := [key for key in settings if settings[key] != found.get(key)]:
        differences = "; ".join(f"{k} was {found.get(k)}, is now {settings[k]}" for k in changed)
        raise ValueError(
            f"{folder} holds shards of other settings ({differences}): choose another folder, or "
            "delete this one"
        )
