"""A report as one page that needs nothing else: the table, the clips, and what made the scores."""

import base64
import tempfile
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from jaxtyping import UInt8
from torch import Tensor

from cmdvid.report import COLUMNS, DISTANCES, NOTE, Report, shown
from cmdvid.video import write_clip
from cmdvid.whole import write_text

STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em; }
table { border-collapse: collapse; font-size: 13px; }
th, td { border-bottom: 1px solid #ccc; padding: .3em .7em; text-align: left; vertical-align: top; }
.table { overflow-x: auto; }
.clips { display: grid; gap: 1em; grid-template-columns: repeat(auto-fill, minmax(9em, 1fr)); }
figure { margin: 0; } figcaption, .level { color: #555; font-size: 12px; }
video { width: 100%; height: auto; image-rendering: pixelated; background: #eee; display: block; }
pre { white-space: pre-wrap; font-size: 12px; }
"""
PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<h1>{title}</h1>
{table}
{lacks}
<p>{note}</p>
{clips}
<h2>Settings</h2>
<table>{settings}</table>
</body>
</html>
"""


class Shown(NamedTuple):
    """A sample on the page: its caption, and its clips by level."""

    caption: str
    clips: Mapping[str, UInt8[Tensor, "3 l h w"]]


def write_page(
    path: Path, report: Report, samples: Mapping[str, Sequence[Shown]], *, fps: float = 8
) -> Path:
    """Write the page, whole or not at all. Nothing in it is loaded from anywhere else.

    Args:
        path: File to write.
        report: Scores and settings.
        samples: Clips to show, by test set.
        fps: Frames a second of the clips.
    """
    title = f"Evaluation: {', '.join(report.scores)}"
    others = [key for key in COLUMNS if key not in DISTANCES]
    parts = [report.cells(scores=scores) for scores in (others, DISTANCES)]
    settings = {key: escape(shown(value)) for key, value in report.settings.items()}
    text = PAGE.format(
        title=escape(title),
        style=STYLE,
        table="\n".join(_table(lines) for lines in parts if len(lines[0]) > 3),
        lacks="\n".join(f"<p><strong>{escape(note)}</strong></p>" for note in report.notes),
        note=escape(NOTE),
        clips="\n".join(_grid(name, some, fps) for name, some in samples.items() if some),
        settings="\n".join(
            f"<tr><th>{escape(k)}</th><td>{v}</td></tr>" for k, v in settings.items()
        ),
    )
    return write_text(path, text)


def _table(lines: Sequence[Sequence[str]]) -> str:
    head, *rows = lines
    body = "".join(_row(row, "td") for row in rows)
    return f'<div class="table"><table>\n{_row(head, "th")}{body}</table></div>'


def _row(cells: Sequence[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>\n"


def _grid(name: str, samples: Sequence[Shown], fps: float) -> str:
    figures = "\n".join(_figure(sample, fps) for sample in samples)
    return f'<h2>{escape(name)}</h2>\n<div class="clips">\n{figures}\n</div>'


def _figure(sample: Shown, fps: float) -> str:
    videos = "\n".join(
        f'<div class="level">{escape(level)}</div>\n{_video(clip, fps)}'
        for level, clip in sample.clips.items()
    )
    return f"<figure>\n{videos}\n<figcaption>{escape(sample.caption)}</figcaption>\n</figure>"


def _video(clip: UInt8[Tensor, "3 l h w"], fps: float) -> str:
    """A clip as mp4 inside the page."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "clip.mp4"
        write_clip(file, clip, fps)
        data = base64.b64encode(file.read_bytes()).decode()
    height, width = clip.shape[-2:]
    return (
        f'<video width="{width}" height="{height}" autoplay loop muted playsinline '
        f'src="data:video/mp4;base64,{data}"></video>'
    )
