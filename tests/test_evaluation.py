import numpy as np
import pytest
import torch
from torchmetrics import Metric

from cmdvid.evaluation import (
    LEVELS,
    Scoreboard,
    averaged,
    fraction,
    frechet_scores,
    mean,
    single_scores,
)
from cmdvid.protocols import Protocol
from cmdvid.report import Interval


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
    assert "lpips" not in found


def test_reconstruction_has_lpips_where_it_is_given(clips):
    class Darker(torch.nn.Module):
        def forward(self, image, reference):
            return (image - reference).mean(dim=(1, 2, 3))

    board = Scoreboard(["val"], judge=None, lpips=Darker(), device=torch.device("cpu"))
    board.update("val", {k: clips[k] for k in ("real", "reconstruction")}, torch.arange(4))
    found = board.scores()["val"]["reconstruction"]
    assert found["lpips"].value == pytest.approx(0.02, rel=1e-3)
    assert found["lpips"].n == 4


def test_fractions_have_wilson_intervals():
    score = fraction(1.0, 256)
    assert (score.value, score.high, score.n) == (1.0, 1.0, 256)
    assert score.low == pytest.approx(256 / (256 + 1.959964**2))


def test_means_have_normal_intervals_where_one_can_be_told():
    assert mean(30.0, 0.5, 10) == pytest.approx((30.0, 29.02, 30.98, 10), abs=1e-3)
    assert mean(30.0, np.inf, 1) == Interval(30.0, None, None, 1)


def drawn(n, shift=0.0, d=4):
    return torch.randn(n, d) + shift


def test_a_distance_grows_with_the_shift_and_its_interval_holds_the_truth():
    protocol = Protocol("p", ("fvd_shapes",), num_samples=200)
    near, far = (
        frechet_scores(protocol, {"fvd_shapes": drawn(200)}, {"fvd_shapes": drawn(200, shift)})
        for shift in (0.0, 1.0)
    )
    assert list(far) == ["fvd_shapes", "fvd_shapes_infinite"]
    score = far["fvd_shapes"]
    assert score.low < 4 < score.high  # four features, each shifted by one
    assert score.n == 200
    assert near["fvd_shapes"].high < score.low
    assert near["fvd_shapes_infinite"].value < near["fvd_shapes"].value  # the bias of few clips
    few = frechet_scores(protocol, {"fvd_shapes": drawn(9)}, {"fvd_shapes": drawn(9)})
    assert list(few) == ["fvd_shapes"]


def test_clips_alone_have_scores_of_motion_captions_and_classes():
    motion = torch.tensor([[1.0, 10.0], [3.0, 0.1], [2.0, 20.0], [2.0, 30.0]])
    found = single_scores({"motion": motion, "clipsim": torch.full((4, 1), 0.3)})
    assert found["frame_difference"].value == 2
    assert found["dynamics"].low < found["dynamics"].value == pytest.approx(15.025)
    assert found["frozen"].value == 0.25
    assert found["clipsim"] == pytest.approx((0.3, 0.3, 0.3, 4))
    classes = torch.eye(10).repeat(10, 1)  # each clip sure of its class, ten classes
    score = single_scores({"inception": classes})["inception_score"]
    assert 5 < score.value <= 10
    assert score.low <= score.value <= score.high


def test_repeats_are_averaged():
    one, other = Interval(1.0, 0.5, 1.5, 8), Interval(2.0, None, None, 8)
    assert averaged([{"fvd": one}, {"fvd": other}]) == {"fvd": Interval(1.5, 0.5, 1.5, 8)}
    assert averaged([{"fvd": other}, {"fvd": other}])["fvd"] == other
