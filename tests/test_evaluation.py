import json

import numpy as np
import pytest
import torch
from torchmetrics import Metric

from cmdvid.evaluation import LEVELS, Interval, Report, Scoreboard, fraction, mean, versions


class FirstPixel(Metric):
    """Judges a clip right whose caption says whether its first pixel is bright."""

    def __init__(self):
        super().__init__()
        self.add_state("right", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, clip, captions):
        bright = clip[:, 0, 0, 0, 0] > 0
        self.right += sum((c == "bright") == bool(b) for c, b in zip(captions, bright, strict=True))
        self.count += len(clip)

    def compute(self):
        return {"strict": float(self.right / self.count), "count": int(self.count)}


@pytest.fixture
def clips():
    real = torch.rand(4, 3, 5, 16, 24) * 0.5 + 0.25
    return {
        "real": real,
        "reconstruction": real + 0.02,
        "motion given content": real * torch.tensor([1, 1, 1, -1]).view(-1, 1, 1, 1, 1),
        "generated": -real,
    }


def test_each_level_is_judged_alone(clips):
    board = Scoreboard(["seen", "held-out"], judge=FirstPixel(), device=torch.device("cpu"))
    for name in ("seen", "held-out"):
        board.update(name, clips, ["bright"] * 4)
    board.update("held-out", clips, ["dark"] * 4)
    scores = board.scores()
    assert [scores["seen"][level]["strict"].value for level in LEVELS] == [1.0, 1.0, 0.75, 0.0]
    assert scores["held-out"]["real"]["strict"].n == 8
    assert scores["held-out"]["generated"]["strict"].value == 0.5


def test_reconstruction_stands_beside_the_mean_frame(clips):
    board = Scoreboard(["val"], judge=None, device=torch.device("cpu"))
    board.update("val", {k: clips[k] for k in ("real", "reconstruction")}, torch.arange(4))
    scores = board.scores()["val"]
    assert list(scores) == ["reconstruction"]
    found = scores["reconstruction"]
    assert found["psnr"].value == pytest.approx(40, abs=0.01)  # a hundredth of the peak
    assert found["psnr_mean_frame"].value == pytest.approx(
        23, abs=1
    )  # uniform noise in half a unit
    assert found["ssim"].n == 4


def test_fractions_have_wilson_intervals():
    score = fraction(1.0, 256)
    assert (score.value, score.high, score.n) == (1.0, 1.0, 256)
    assert score.low == pytest.approx(256 / (256 + 1.959964**2))


def test_means_have_normal_intervals_where_one_can_be_told():
    assert mean(30.0, 0.5, 10) == pytest.approx((30.0, 29.02, 30.98, 10), abs=1e-3)
    assert mean(30.0, np.inf, 1) == Interval(30.0, None, None, 1)


@pytest.fixture
def report():
    scores = {
        "seen": {
            "reconstruction": {
                "colour": fraction(0.75, 8),
                "psnr": mean(31.234, 0.1, 8),
                "ssim": Interval(0.98765, None, None, 8),
            },
            "generated": {"colour": fraction(0.5, 8)},
        }
    }
    return Report({"pipeline": "runs/é", "seed": 0, "versions": versions()}, scores)


def test_json_holds_every_number_and_the_settings(report, tmp_path):
    paths = report.write(tmp_path / "new" / "eval")
    assert [path.name for path in paths] == ["report.json", "report.md"]
    assert sorted(path.name for path in paths[0].parent.iterdir()) == ["report.json", "report.md"]
    content = json.loads(paths[0].read_text(encoding="utf-8"))
    assert content["settings"]["pipeline"] == "runs/é"
    assert set(content["settings"]["versions"]) == {"cmdvid", "torch", "diffusers"}
    colour = content["scores"]["seen"]["generated"]["colour"]
    assert set(colour) == {"value", "low", "high", "n"}
    assert (colour["value"], colour["n"]) == (0.5, 8)
    assert colour["low"] < 0.5 < colour["high"]
    assert content["scores"]["seen"]["reconstruction"]["ssim"]["low"] is None


def test_markdown_has_a_row_for_each_set_and_level(report):
    head, line, *rows = [row for row in report.to_markdown().splitlines() if row.startswith("|")]
    names = [cell.strip() for cell in head.strip("|").split("|")]
    assert names == ["test set", "level", "clips", "colour", "PSNR", "SSIM"]
    assert len({len(row) for row in (head, line, *rows)}) == 1  # aligned
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert cells[0] == [
        *("seen", "reconstruction", "8", "75.0 (40.9 to 92.9)"),
        *("31.23 (31.04 to 31.43)", "0.988"),
    ]
    assert cells[1] == ["seen", "generated", "8", "50.0 (21.5 to 78.5)", "", ""]


def test_the_printed_table_leaves_the_intervals_out(report):
    assert "75.0 " in report.table(intervals=False)
    assert "(" not in report.table(intervals=False)
