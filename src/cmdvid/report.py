"""The report of an evaluation, as JSON and Markdown, and two of them side by side."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cmdvid.whole import write_text

COLUMNS = {  # score in the report to its heading in the table
    "colour": "colour",
    "motion": "motion",
    "shape": "shape",
    "all": "all three",
    "background": "background",
    "valid": "valid",
    "strict": "strict",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "psnr_mean_frame": "mean-frame PSNR",
    "fvd": "FVD",
    "fvd_infinite": "FVD, n → ∞",
    "fvd_shapes": "Fréchet (shapes)",
    "fvd_shapes_infinite": "Fréchet (shapes), n → ∞",
    "clipsim": "CLIPSIM",
    "inception_score": "IS",
    "frame_difference": "frame difference",
    "dynamics": "dynamics",
    "frozen": "frozen",
}
DISTANCES = tuple(COLUMNS)[list(COLUMNS).index("fvd") :]  # what a protocol measures
PERCENT = ("colour", "motion", "shape", "all", "background", "valid", "strict", "frozen")
FINE = {"ssim": 3, "lpips": 3, "clipsim": 4}  # digits, if not 2
COMPARED = ("protocol", "networks", "real")  # settings that two comparable reports share
NOTE = (
    "Accuracies in %, PSNR in dB; in parentheses 95 % intervals: Wilson's for accuracies, normal "
    "for means, bootstrapped for Fréchet distances, whose row of real clips is the floor: other "
    "real clips, as many as its own n says. IS has the spread of its splits instead."
)


class Interval(NamedTuple):
    """A score of ``n`` clips and its 95 % confidence interval."""

    value: float
    low: float | None  # none where it cannot be told
    high: float | None
    n: int


Levels = Mapping[str, Mapping[str, Interval]]
"""By level and name."""
Scores = Mapping[str, Levels]
"""By test set, level and name."""


@dataclass(frozen=True)
class Report:
    """All scores of a run, and what made them.

    Attributes:
        settings: What a reader needs to repeat it.
        scores: By test set, level and name.
        notes: What the numbers lack.
    """

    settings: Mapping[str, Any]
    scores: Scores
    notes: Sequence[str] = ()

    def to_json(self) -> str:
        """Write it for programs: ``report["scores"][test set][level][score]["value"]``."""
        scores = {
            name: {
                level: {score: interval._asdict() for score, interval in found.items()}
                for level, found in levels.items()
            }
            for name, levels in self.scores.items()
        }
        content = {"settings": dict(self.settings), "scores": scores, "notes": list(self.notes)}
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """Write it for people, each score with its interval."""
        settings = "\n".join(f"- {key}: {shown(value)}" for key, value in self.settings.items())
        notes = "".join(f"\n**Note:** {note}\n" for note in self.notes)
        return f"# Evaluation\n\n{self.table()}{notes}\n{NOTE}\n\n## Settings\n\n{settings}\n"

    def cells(
        self, *, intervals: bool = True, scores: Sequence[str] = tuple(COLUMNS)
    ) -> list[list[str]]:
        """Some scores as rows of text, headings first; columns without any score are left out."""
        rows = [
            (name, level, found)
            for name, levels in self.scores.items()
            for level, found in levels.items()
        ]
        used = [key for key in scores if any(key in found for *_, found in rows)]
        lines = [["test set", "level", "clips", *(COLUMNS[key] for key in used)]]
        for name, level, found in rows:
            count = max((score.n for score in found.values()), default=0)
            cells = [_cell(key, found.get(key), count, intervals) for key in used]
            lines.append([name, level, str(count), *cells])
        return lines

    def table(self, *, intervals: bool = True) -> str:
        """Draw the scores as a Markdown table."""
        return markdown_table(self.cells(intervals=intervals))

    def printed(self) -> str:
        """The table as a terminal shows it: in two, with intervals where a protocol measures."""
        others = [key for key in COLUMNS if key not in DISTANCES]
        parts = [
            self.cells(intervals=False, scores=others),
            self.cells(intervals=True, scores=DISTANCES),
        ]
        tables = [markdown_table(lines) for lines in parts if len(lines[0]) > 3]
        return "\n".join([*tables, *(f"Note: {note}\n" for note in self.notes)])

    def write(self, folder: str | Path) -> list[Path]:
        """Write ``report.json`` and ``report.md``, each whole or not at all."""
        texts = {"json": self.to_json(), "md": self.to_markdown()}
        return [write_text(Path(folder) / f"report.{kind}", t) for kind, t in texts.items()]


def log_scores(report: Report, folder: str | Path) -> None:
    """Write the scores for TensorBoard: ``test set/level/score``."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for name, levels in report.scores.items():
            for level, found in levels.items():
                for score, interval in found.items():
                    tag = f"{name}/{level}/{score}".replace(" ", "_")
                    writer.add_scalar(tag, interval.value, 0)


def read_report(path: str | Path) -> Report:
    """Read a ``report.json``, or that of a folder.

    Raises:
        ValueError: If there is none.
    """
    file = Path(path) / "report.json" if Path(path).is_dir() else Path(path)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        scores = {
            name: {
                level: {score: Interval(**interval) for score, interval in found.items()}
                for level, found in levels.items()
            }
            for name, levels in content["scores"].items()
        }
        return Report(content["settings"], scores, content["notes"])
    except OSError as error:
        raise ValueError(f"{file}: no report can be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: no report of `cmdvid evaluate` or `cmdvid test`") from error


def compare(one: Report, other: Report) -> str:
    """The scores of two reports side by side, and by how much the second is higher.

    Raises:
        ValueError: If their protocols, networks or real clips differ, with each difference; or
            if they have no score in common.
    """
    parts = [_comparable(report.settings) for report in (one, other)]
    first, second = (dict(_leaves(part)) for part in parts)
    if any(part["protocol"] is None for part in parts):
        raise ValueError("only reports that were made by a protocol can be compared")
    differing = sorted(key for key in first | second if first.get(key) != second.get(key))
    if differing:
        told = "; ".join(
            f"{k}: {shown(first.get(k))} and {shown(second.get(k))}" for k in differing
        )
        raise ValueError(f"the two reports were not made alike, so they say nothing: {told}")
    lines = [["test set", "level", "score", "first", "second", "difference"]]
    for name, levels, second_levels in _paired(one.scores, other.scores):
        for level, found in levels.items():
            others = second_levels.get(level, {})
            for key in (key for key in COLUMNS if key in found and key in others):
                scale, digits = _scale(key)
                change = (others[key].value - found[key].value) * scale
                cells = [_cell(key, x[key], x[key].n, True) for x in (found, others)]
                lines.append([name, level, COLUMNS[key], *cells, f"{change:+.{digits}f}"])
    if len(lines) == 1:
        told = " and ".join(
            ", ".join(f"{name} ({', '.join(levels)})" for name, levels in report.scores.items())
            for report in (one, other)
        )
        raise ValueError(f"the two reports have no score in common; test sets (levels): {told}")
    return markdown_table(lines)


def _comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What two reports must share; the only test set of a `test` goes without its name."""
    found = {key: settings.get(key) for key in COMPARED}
    real = found["real"]
    if isinstance(real, Mapping) and len(real) == 1:
        (only,) = real.values()
        found["real"] = only if isinstance(only, Mapping) else real
    return found


def _paired(one: Scores, other: Scores) -> Iterator[tuple[str, Levels, Levels]]:
    """Test sets of one name, or the only ones: `evaluate` names it by its protocol."""
    if len(one) == len(other) == 1:
        (name, levels), (second, others) = *one.items(), *other.items()
        yield name if name == second else f"{name}, {second}", levels, others
        return
    for name in (name for name in one if name in other):
        yield name, one[name], other[name]


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """A table that is also aligned as plain text."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    ]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text) + "\n"


def shown(value: Any) -> str:
    """A setting as one line of text."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {shown(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(shown, value))
    return "none" if value is None else str(value)


def _scale(key: str) -> tuple[int, int]:
    """Factor and digits that a score is shown with."""
    return (100, 1) if key in PERCENT else (1, FINE.get(key, 2))


def _cell(key: str, score: Interval | None, count: int, with_interval: bool) -> str:
    if score is None:
        return ""
    scale, digits = _scale(key)
    value, low, high = (
        None if x is None else f"{x * scale:.{digits}f}"
        for x in (score.value, score.low, score.high)
    )
    text = f"{value} ({low} to {high})" if with_interval and low is not None else str(value)
    return text if score.n == count else f"{text}, n = {score.n}"


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Walk nested settings, with dotted names."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, list(value) if isinstance(value, tuple) else value
