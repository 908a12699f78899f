"""Contact sheets: the first clips of a run on one page, with captions, as a picture and moving."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from cmdvid.frames import to_pixels
from cmdvid.types import Condition
from cmdvid.video import write_clip
from cmdvid.whole import whole

SMALL, LARGE = 128, 192  # pixels of a frame's longer side: below is enlarged, above is shrunk
PAGE = 2100  # pixels that a page may be wide, unless one sample is wider
NUM_STILLS = 4  # frames of each clip on a still page
NAME_BYTES = 80  # of a file name; file systems allow 255
GAP, NUM_LINES = 6, 5
STILL_FONT, MOVING_FONT = 20, 13  # pixels; a still page is wide and will be shown smaller
WHITE, BLACK, GREY = (255, 255, 255), (0, 0, 0), (110, 110, 110)

Rows = Mapping[str, UInt8[Tensor, "n 3 _ _ _"]]
"""Clips "n 3 l h w" of the same samples by the row's name; a still has one frame."""


def captions_of(condition: Condition) -> list[str]:
    """Write conditions as text that can be shown: captions, or the number of a class."""
    if isinstance(condition, Tensor):
        return [f"class {label}" for label in condition.tolist()]
    # an undecodable byte of a command line is half a character, which no font and no file takes
    return [text.encode("utf-8", "replace").decode() for text in condition]


def file_name(text: str, index: int | None = None) -> str:
    """Make a name without suffix for any text: letters and digits of any script, and hyphens.

    Args:
        text: A caption; may be empty.
        index: Number that makes the name unique.
    """
    slug = re.sub(r"[\W_]+", "-", text.lower()).strip("-")
    slug = slug.encode("utf-8", "ignore")[:NAME_BYTES].decode("utf-8", "ignore").strip("-")
    return "-".join(part for part in ("" if index is None else f"{index:06d}", slug) if part)


class Samples:
    """The first samples of a run, small enough to keep in memory, and the sheets of them.

    Args:
        num: How many are kept: those with the lowest index.
    """

    def __init__(self, num: int = 16):
        self.num = num
        self.seen: set[int] = set()  # the index of all samples
        self.kept: dict[int, tuple[str, dict[str, Tensor]]] = {}

    def add(
        self, index: Tensor, condition: Condition, rows: Mapping[str, Float[Tensor, "_ 3 _ _ _"]]
    ) -> None:
        """Keep those of a batch that are among the first.

        Args:
            index: Row of each sample in its data set.
            condition: Of each sample.
            rows: Clips "b 3 l h w" by name, the same names in each batch; a still has one frame.
        """
        self.seen.update(index.tolist())
        for b, (i, caption) in enumerate(zip(index.tolist(), captions_of(condition), strict=True)):
            if len(self.kept) < self.num or i < max(self.kept):
                clips = {name: _shrink(to_pixels(clip[b])).cpu() for name, clip in rows.items()}
                self.kept[i] = caption, clips
                self.kept = {i: self.kept[i] for i in sorted(self.kept)[: self.num]}

    def gather(self) -> None:
        """Take in those of all other processes; each process must call this."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            shares: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(shares, (self.seen, self.kept))
            self.seen = set().union(*(seen for seen, _ in shares))
            merged = {i: sample for _, kept in shares for i, sample in kept.items()}
            self.kept = {i: merged[i] for i in sorted(merged)[: self.num]}

    def write(self, path: Path, fps: float = 8) -> None:
        """Write ``path`` (png) and, if anything moves, the same beside it as mp4; or nothing."""
        if not self.kept:
            return
        captions = [caption for caption, _ in self.kept.values()]
        names = next(iter(self.kept.values()))[1]
        rows = {k: torch.stack([clips[k] for _, clips in self.kept.values()]) for k in names}
        with whole(path, shared=True) as part:
            write_picture(part, still_sheet(rows, captions))
        if (sheet := moving_sheet(rows, captions)).shape[1] > 1:
            with whole(path.with_suffix(".mp4"), shared=True) as part:
                write_clip(part, sheet, fps)


def write_picture(path: Path, picture: UInt8[Tensor, "3 h w"]) -> None:
    """Write a png file."""
    Image.fromarray(rearrange(picture, "c h w -> h w c").cpu().numpy()).save(path, format="png")


def still_sheet(rows: Rows, captions: Sequence[str]) -> UInt8[Tensor, "3 height width"]:
    """Draw a page with a few frames of each clip side by side."""
    strips = {}
    for name, clips in rows.items():
        length = clips.shape[2]
        chosen = torch.linspace(0, length - 1, min(length, NUM_STILLS)).round().long()
        frames = F.pad(_resize(clips[:, :, chosen]), (0, 2), value=255)
        strips[name] = rearrange(frames, "n c k h w -> n c 1 h (k w)")[..., :-2]
    return _draw(strips, captions, STILL_FONT)[:, 0]


def moving_sheet(rows: Rows, captions: Sequence[str]) -> UInt8[Tensor, "3 l height width"]:
    """Draw a page where all clips play; shorter ones hold their last frame."""
    return _draw({k: _resize(clips) for k, clips in rows.items()}, captions, MOVING_FONT)


class _Layout(NamedTuple):
    """Where things stand: samples side by side in bands, the rows of a sample below each other."""

    left: int  # pixels kept for the names of the rows
    cell: int  # width of a sample
    columns: int  # samples in a band
    tops: list[int]  # of each row within its band; the last is that of the captions
    line: int  # height of a line of text
    band: int  # height of a band

    def place(self, sample: int, row: int) -> tuple[int, int]:
        """Left and top of a cell; the row after the last is the caption."""
        band, column = divmod(sample, self.columns)
        x = self.left + column * (self.cell + GAP)
        return x, GAP + band * self.band + self.tops[row]


def _draw(rows: Rows, captions: Sequence[str], font_size: int) -> UInt8[Tensor, "3 l height width"]:
    font = ImageFont.load_default(font_size)
    cell = max(clips.shape[-1] for clips in rows.values())
    texts = [_wrap(caption, font, cell) for caption in captions]
    tops = [0]
    for clips in rows.values():
        tops.append(tops[-1] + clips.shape[-2] + GAP)
    num_bands = -(-len(captions) // max(1, PAGE // (cell + GAP)))
    layout = _Layout(
        left=int(max(font.getlength(name) for name in rows)) + 2 * GAP,
        cell=cell,
        columns=-(-len(captions) // num_bands),  # bands of equal length
        tops=tops,
        line=(line := round(1.3 * font_size)),
        band=tops[-1] + line * max(len(lines) for lines in texts) + 2 * GAP,
    )
    page = _write_text(layout, list(rows), texts, num_bands, font)
    length = max(clips.shape[2] for clips in rows.values())
    sheet = page[:, None].repeat(1, length, 1, 1)
    for row, clips in enumerate(rows.values()):
        times = torch.arange(length).clamp(max=clips.shape[2] - 1)
        for sample, clip in enumerate(clips[:, :, times]):
            x, y = layout.place(sample, row)
            sheet[:, :, y : y + clip.shape[-2], x : x + clip.shape[-1]] = clip
    return sheet


def _write_text(
    layout: _Layout, names: list[str], texts: list[list[str]], num_bands: int, font
) -> UInt8[Tensor, "3 height width"]:
    """A white page with the names of the rows and the captions on it."""
    width = layout.left + layout.columns * (layout.cell + GAP)
    page = Image.new("RGB", (width, num_bands * layout.band + GAP), WHITE)
    draw = ImageDraw.Draw(page)
    for band in range(num_bands):
        for row, name in enumerate(names):
            _, top = layout.place(band * layout.columns, row)
            draw.text((GAP, top), name, fill=GREY, font=font)
    for sample, lines in enumerate(texts):
        x, y = layout.place(sample, len(names))
        for n, line in enumerate(lines):
            draw.text((x, y + n * layout.line), line, fill=BLACK, font=font)
    pixels = torch.frombuffer(bytearray(page.tobytes()), dtype=torch.uint8)
    return rearrange(pixels, "(h w c) -> c h w", h=page.height, c=3)


def _wrap(text: str, font, width: int) -> list[str]:
    """Break a caption into a few lines of this width; what is left over is cut."""
    lines = [""]
    for word in text.split():
        if lines[-1] and font.getlength(f"{lines[-1]} {word}") > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
        while len(lines) <= NUM_LINES and font.getlength(lines[-1]) > width:  # one long word
            long = lines[-1]
            ends = (n for n in range(len(long), 1, -1) if font.getlength(long[:n]) <= width)
            fits = next(ends, 1)
            lines[-1:] = [lines[-1][:fits], lines[-1][fits:]]
    if len(lines) > NUM_LINES:
        lines = [*lines[: NUM_LINES - 1], lines[NUM_LINES - 1][:-1] + "…"]
    return lines


def _shrink(clip: UInt8[Tensor, "3 l h w"]) -> UInt8[Tensor, "3 l h2 w2"]:
    height, width = clip.shape[-2:]
    if (longer := max(height, width)) <= LARGE:
        return clip
    size = [max(1, round(side * LARGE / longer)) for side in (height, width)]
    frames = rearrange(clip, "c l h w -> l c h w")
    return rearrange(
        F.interpolate(frames, size, mode="bilinear", antialias=True), "l c h w -> c l h w"
    )


def _resize(clips: UInt8[Tensor, "n 3 l h w"]) -> UInt8[Tensor, "n 3 l h2 w2"]:
    """Shrink what is large; enlarge what is small by a whole factor, so that pixels stay sharp."""
    clips = torch.stack([_shrink(clip) for clip in clips])
    factor = -(-SMALL // max(clips.shape[-2:])) if max(clips.shape[-2:]) < SMALL else 1
    return clips.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)
