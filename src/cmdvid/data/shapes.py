"""The procedural captioned data set: real mp4 files and a csv in WebVid's layout."""

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations, cycle, islice, product
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from cmdvid.data.captions import write_caption
from cmdvid.data.scene import (
    COLOURS,
    DEMO_BACKGROUNDS,
    DEMO_MOTIONS,
    DEMO_SHAPES,
    SIZES,
    ShapeAttributes,
    render,
)
from cmdvid.video import write_clip
from cmdvid.whole import whole, write_text

HELD_OUT = 0.1  # of all (shape, colour, motion) triples
COLUMNS = ("videoid", "name", "page_idx", "page_dir", "duration", "contentUrl")
PAGE = 1000  # videos in one folder

Triple = tuple[str, str, str]  # shape, colour, motion


class _Video(NamedTuple):
    """One row of a csv, with what it takes to draw its file."""

    videoid: int
    page_dir: str
    attributes: ShapeAttributes
    caption: str
    seed: tuple[int, int]


def write_shapes(  # one argument for each option of `cmdvid shapes`, so more than eight
    out: str | os.PathLike[str],
    *,
    num_videos: int = 6000,
    val_videos: int = 512,
    heldout_videos: int = 512,
    num_frames: int = 16,
    image_size: tuple[int, int] = (64, 64),
    fps: int = 8,
    seed: int = 0,
    shapes: Sequence[str] = DEMO_SHAPES,
    motions: Sequence[str] = DEMO_MOTIONS,
    backgrounds: Sequence[str] = DEMO_BACKGROUNDS,
    free_position: bool = False,
) -> None:
    """Write train.csv, val.csv, heldout.csv and their videos; a second call writes what is missing.

    About a tenth of the (shape, colour, motion) triples is in heldout.csv alone, though each of
    their pairs is in train.csv. val.csv has new videos of the triples of train.csv.

    Args:
        out: Folder of the data set, made if need be.
        num_videos: Videos in train.csv.
        val_videos: Videos in val.csv.
        heldout_videos: Videos in heldout.csv.
        num_frames: Frames of each video, 2 or more.
        image_size: Height and width in pixels, 24 or more. H.264 halves the resolution of colour:
            from 48 pixels on, and resized to 24 or more, clips are clean enough for the oracle.
        fps: Frames per second.
        seed: Everything follows from it.
        shapes: Some of circle, square, triangle, star, cross, ring.
        motions: Some of the eight directions (left, up left, ...), rotating, growing, bouncing.
        backgrounds: Some of dark, grey, light, striped, gradient, speckled.
        free_position: Let paths lie anywhere in the frame, not only near its centre.

    Raises:
        ValueError: If a word is unknown, a number too small, or the folder holds a data set of
            other settings.
    """
    settings = {name: value for name, value in locals().items() if name != "out"}
    for name, least in {"num_videos": 0, "val_videos": 0, "heldout_videos": 0, "fps": 1}.items():
        if settings[name] < least:
            raise ValueError(f"{name} must be at least {least}, got {settings[name]}")
    out = Path(out)
    seen, heldout = split_triples(shapes, motions, seed)
    shares = {
        "train": (num_videos, seen),
        "val": (val_videos, seen),
        "heldout": (heldout_videos, heldout),
    }
    splits = {
        name: _plan(name, number, *share, backgrounds, seed)
        for number, (name, share) in enumerate(shares.items())
    }
    _claim(out, settings)

    def write(video: _Video) -> None:
        clip = render(
            video.attributes,
            seed=video.seed,
            num_frames=num_frames,
            image_size=image_size,
            free_position=free_position,
        )
        path = out / "videos" / video.page_dir / f"{video.videoid}.mp4"
        with whole(path) as part:
            write_clip(part, clip, fps=fps)

    _write_missing(out, [video for split in splits.values() for video in split], write)
    duration = f"PT00H00M{round(num_frames / fps):02d}S"
    for name, split in splits.items():
        _write_csv(out / f"{name}.csv", split, duration)


def _write_missing(out: Path, videos: Sequence[_Video], write: Callable[[_Video], None]) -> None:
    """Write the videos that are not there, in threads: PyAV encodes without Python's lock."""
    missing = []
    for page_dir in dict.fromkeys(video.page_dir for video in videos):
        folder = out / "videos" / page_dir
        folder.mkdir(parents=True, exist_ok=True)
        there = {path.stem for path in folder.glob("*.mp4")}
        missing += [v for v in videos if v.page_dir == page_dir and str(v.videoid) not in there]
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=len(videos), initial=len(videos) - len(missing), desc="shapes") as progress,
    ):
        try:
            for _ in pool.map(write, missing):
                progress.update()
        except BaseException:  # Ctrl-C too: do not write the rest first
            pool.shutdown(cancel_futures=True)
            raise


def split_triples(
    shapes: Sequence[str], motions: Sequence[str], seed: int = 0
) -> tuple[list[Triple], list[Triple]]:
    """Share out all (shape, colour, motion) triples: a tenth is held out, as evenly as can be.

    Each pair of a held-out triple remains in two thirds or so of its triples, and at least in one.

    Returns:
        The seen triples and the held-out ones.
    """
    triples = [
        triple
        for triple in product(shapes, COLOURS, motions)
        if not (triple[2] == "rotating" and triple[0] in ("circle", "ring"))
    ]
    pairs = Counter(pair for triple in triples for pair in _pairs(triple))
    taken: Counter[tuple] = Counter()
    heldout: list[Triple] = []
    order = np.random.default_rng(seed).permutation(len(triples))
    for triple in (triples[i] for i in order):
        fits = all(
            taken[pair] < min(ceil(HELD_OUT * pairs[pair]), pairs[pair] - 1)
            for pair in _pairs(triple)
        )
        if fits and len(heldout) < round(HELD_OUT * len(triples)):
            heldout.append(triple)
            taken.update(_pairs(triple))
    return [triple for triple in triples if triple not in heldout], heldout


def _pairs(triple: Triple) -> list[tuple]:
    return list(combinations(enumerate(triple), 2))


def _plan(
    name: str,
    number: int,
    count: int,
    triples: Sequence[Triple],
    backgrounds: Sequence[str],
    seed: int,
) -> list[_Video]:
    """Decide the videos of one split; every triple on every background comes equally often."""
    rng = np.random.default_rng([seed, number])
    scenes = list(product(triples, backgrounds))
    order: Iterable[int] = islice(cycle(rng.permutation(len(scenes))), count) if scenes else ()
    sizes = list(SIZES)
    videos = []
    for index, scene in enumerate(order):
        (shape, colour, motion), background = scenes[scene]
        size = sizes[rng.integers(len(sizes))]
        attributes = ShapeAttributes(shape, colour, motion, background, size)
        videos.append(
            _Video(
                videoid=(videoid := (number + 1) * 1_000_000 + index),
                page_dir=f"{name}_{index // PAGE:03d}",
                attributes=attributes,
                caption=write_caption(attributes, rng),
                seed=(seed, videoid),
            )
        )
    return videos


def _claim(out: Path, settings: dict) -> None:
    """Note the settings in the folder, or see that they are those of the videos in it."""
    wanted = json.loads(json.dumps(settings))
    path = out / "shapes.json"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(wanted, indent=2) + "\n")
        return
    found = json.loads(path.read_text())
    if changed := [key for key in wanted if wanted[key] != found.get(key)]:
        differences = "; ".join(f"{k} was {found.get(k)}, is now {wanted[k]}" for k in changed)
        raise ValueError(
            f"{out} holds videos of other settings ({differences}): choose another folder, or "
            "delete this one"
        )


def _write_csv(path: Path, videos: Sequence[_Video], duration: str) -> None:
    rows = [(v.videoid, v.caption, 0, v.page_dir, duration, "") for v in videos]
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
    write_text(path, text.getvalue())
