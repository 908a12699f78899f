"""The evaluation of CMD Table 4a: scores by test set and level, with intervals, and the report.

A level says how much of a clip is generated, from nothing (the real clip, which calibrates the
judge) to everything.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

import cmdvid
from cmdvid.metrics.reconstruction import Reconstruction
from cmdvid.metrics.shapes import wilson_interval
from cmdvid.types import Condition

REAL, RECONSTRUCTION = "real", "reconstruction"
MOTION, GENERATED = "motion given content", "generated"
LEVELS = (REAL, RECONSTRUCTION, MOTION, GENERATED)
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
    "psnr_mean_frame": "mean-frame PSNR",
}
PERCENT = ("colour", "motion", "shape", "all", "background", "valid", "strict")
NORMAL = 1.959964  # 97.5 % quantile


class Interval(NamedTuple):
    """A score of ``n`` clips and its 95 % confidence interval."""

    value: float
    low: float | None  # none where it cannot be told
    high: float | None
    n: int


def fraction(value: float, n: int) -> Interval:
    """Give a share of ``n`` clips its Wilson interval."""
    return Interval(value, *wilson_interval(round(value * n), n), n)


def mean(value: float, standard_error: float, n: int) -> Interval:
    """Give a mean over ``n`` clips its normal interval."""
    if not math.isfinite(standard_error):
        return Interval(value, None, None, n)
    half = NORMAL * standard_error
    return Interval(value, value - half, value + half, n)


@dataclass(frozen=True)
class Report:
    """All scores of a run, and what made them.

    Attributes:
        settings: What a reader needs to repeat it.
        scores: By test set, level and name.
    """

    settings: Mapping[str, Any]
    scores: Mapping[str, Mapping[str, Mapping[str, Interval]]]

    def to_json(self) -> str:
        """Write it for programs: ``report["scores"][test set][level][score]["value"]``."""
        scores = {
            name: {
                level: {score: interval._asdict() for score, interval in found.items()}
                for level, found in levels.items()
            }
            for name, levels in self.scores.items()
        }
        content = {"settings": dict(self.settings), "scores": scores}
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """Write it for people, each score with its interval."""
        settings = "\n".join(f"- {key}: {_shown(value)}" for key, value in self.settings.items())
        return (
            f"# Evaluation\n\n{self.table()}\n"
            "Accuracies in %, PSNR in dB; in parentheses 95 % intervals (Wilson's for accuracies, "
            f"normal for PSNR).\n\n## Settings\n\n{settings}\n"
        )

    def table(self, *, intervals: bool = True) -> str:
        """Draw the scores as a Markdown table; columns without any score are left out."""
        rows = [
            (name, level, found)
            for name, levels in self.scores.items()
            for level, found in levels.items()
        ]
        used = [key for key in COLUMNS if any(key in found for *_, found in rows)]
        lines = [["test set", "level", "clips", *(COLUMNS[key] for key in used)]]
        for name, level, found in rows:
            count = max((score.n for score in found.values()), default=0)
            cells = [_cell(key, found.get(key), intervals) for key in used]
            lines.append([name, level, str(count), *cells])
        return _markdown(lines)

    def write(self, folder: str | Path) -> list[Path]:
        """Write ``report.json`` and ``report.md``, each whole or not at all."""
        paths = [Path(folder) / f"report.{kind}" for kind in ("json", "md")]
        Path(folder).mkdir(parents=True, exist_ok=True)
        for path, text in zip(paths, (self.to_json(), self.to_markdown()), strict=True):
            temporary = path.with_name(f"{path.name}.tmp")
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)
        return paths


class Scoreboard:
    """Metrics for each test set and level.

    Args:
        names: Of the test sets.
        judge: Metric ``update(clip, captions)`` whose ``compute()`` gives fractions by name and
            their ``count``; none for videos that nothing can judge.
        device: Where clips are compared.
    """

    def __init__(self, names: Sequence[str], *, judge: Metric | None, device: torch.device):
        def judges() -> dict[str, Metric]:
            return {level: judge.clone().to(device) for level in LEVELS} if judge else {}

        def fidelities() -> dict[str, Reconstruction]:
            both = ("psnr", "psnr_mean_frame")
            return {key: Reconstruction().to(device) for key in both}

        self.judges = {name: judges() for name in names}
        self.fidelities = {name: fidelities() for name in names}

    def update(self, name: str, clips: Mapping[str, Tensor], condition: Condition) -> None:
        """Add a batch of a test set: its real clips and those of the other levels, by level."""
        clips = {level: clip.float() for level, clip in clips.items()}
        real = clips[REAL]
        still = real.mean(dim=2, keepdim=True).expand_as(real)
        self.fidelities[name]["psnr"].update(clips[RECONSTRUCTION], real)
        self.fidelities[name]["psnr_mean_frame"].update(still, real)
        for level, judge in self.judges[name].items():
            judge.update(clips[level], condition)

    def scores(self) -> dict[str, dict[str, dict[str, Interval]]]:
        """All scores over all processes; each process must call this."""
        return {name: self._levels(name) for name in self.judges}

    def _levels(self, name: str) -> dict[str, dict[str, Interval]]:
        found: dict[str, dict[str, Interval]] = {}
        for level, judge in self.judges[name].items():
            values = dict(judge.compute())
            n = int(values.pop("count"))
            found[level] = {key: fraction(float(value), n) for key, value in values.items()}
        rebuilt = found.setdefault(RECONSTRUCTION, {})
        for key, metric in self.fidelities[name].items():
            values = metric.compute()
            rebuilt[key] = mean(values["psnr"], values["psnr_error"], int(values["count"]))
            if key == "psnr":
                rebuilt["ssim"] = Interval(values["ssim"], None, None, int(values["count"]))
        return found


def versions() -> dict[str, str]:
    """The versions of the packages that a score may depend on."""
    found = {"cmdvid": cmdvid.__version__}
    for package in ("torch", "diffusers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def _cell(key: str, score: Interval | None, with_interval: bool) -> str:
    if score is None:
        return ""
    scale, digits = (100, 1) if key in PERCENT else (1, 3 if key == "ssim" else 2)
    value, low, high = (
        None if x is None else f"{x * scale:.{digits}f}"
        for x in (score.value, score.low, score.high)
    )
    return f"{value} ({low} to {high})" if with_interval and low is not None else str(value)


def _markdown(lines: Sequence[Sequence[str]]) -> str:
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


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    return "none" if value is None else str(value)
