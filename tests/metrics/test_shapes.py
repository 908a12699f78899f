import pytest
import torch

from cmdvid.data.scene import ShapeAttributes, render
from cmdvid.metrics.frechet import FrechetVideoDistance
from cmdvid.metrics.shapes import ShapesAccuracy, ShapesFeatures, wilson_interval

CAPTION = "a red circle moving left on a dark background"


def clip_of(shape="circle", colour="red", motion="left", background="dark"):
    scene = ShapeAttributes(shape, colour, motion, background)
    return render(scene, seed=1, num_frames=8, image_size=(32, 40)).float() / 127.5 - 1


def accuracy(clips, captions, **options):
    metric = ShapesAccuracy(**options)
    metric.update(torch.stack(clips), captions)
    return metric.compute()


def test_a_right_clip_is_right_in_everything():
    names = ("shape", "colour", "motion", "background", "all", "valid", "strict")
    assert accuracy([clip_of()], [CAPTION]) == dict.fromkeys(names, 1.0) | {"count": 1}


@pytest.mark.parametrize(
    ("wrong", "value"),
    [("shape", "square"), ("colour", "blue"), ("motion", "up"), ("background", "light")],
)
def test_each_attribute_is_judged_alone(wrong, value):
    scores = accuracy([clip_of(**{wrong: value})], [CAPTION])
    assert {name for name, score in scores.items() if score == 0} == {wrong, "strict"} | (
        set() if wrong == "background" else {"all"}
    )


def test_what_is_not_mentioned_is_not_judged():
    scores = accuracy([clip_of(background="light")], ["a red circle moving left"])
    assert scores["strict"] == scores["background"] == 1


def test_frozen_clips_are_not_strict():
    still = clip_of()[:, :1].expand(-1, 8, -1, -1)
    scores = accuracy([still], [CAPTION])
    assert scores["shape"] == scores["colour"] == 1
    assert scores["valid"] == scores["strict"] == 0


def test_batches_add_up_and_reset_forgets():
    metric = ShapesAccuracy()
    metric.update(clip_of()[None], [CAPTION])
    metric.update(torch.stack([clip_of(colour="cyan"), clip_of()]), [CAPTION, CAPTION])
    scores = metric.compute()
    assert scores["count"] == 3
    assert scores["colour"] == pytest.approx(2 / 3)
    metric.reset()
    assert metric.count == 0


@pytest.mark.filterwarnings("ignore:The ``compute`` method")  # torchmetrics warns, then we raise
def test_nothing_judged_has_no_accuracy():
    with pytest.raises(ValueError, match="no clips were judged"):
        ShapesAccuracy().compute()


def test_all_states_are_sums_over_ranks():
    metric = ShapesAccuracy()
    metric.update(torch.stack([clip_of(), clip_of(colour="cyan")]), [CAPTION, CAPTION])
    for name, value in metric.metric_state.items():
        setattr(metric, name, metric._reductions[name](torch.stack([value, value])))
    metric._computed = None
    scores = metric.compute()
    assert scores["count"] == 4
    assert scores["strict"] == 0.5


def test_captions_that_cannot_be_judged_are_refused():
    metric = ShapesAccuracy()
    with pytest.raises(ValueError, match="does not describe a scene"):
        metric.update(clip_of()[None], ["a man is skiing"])
    with pytest.raises(ValueError, match=r"mention star.*pass all shapes"):
        metric.update(clip_of()[None], ["a red star moving left"])
    with pytest.raises(ValueError, match="got 2 for 1"):
        metric.update(clip_of()[None], [CAPTION, CAPTION])
    assert metric.count == 0


def test_other_shapes_are_judged_when_named():
    scores = accuracy([clip_of("star")], ["a red star goes left"], shapes=("star", "ring"))
    assert scores["strict"] == 1


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),  # from scipy.stats.binomtest
    [(0, 10, 0.0, 0.27753), (5, 10, 0.23659, 0.76341), (256, 256, 0.98521, 1.0)],
)
def test_wilson_interval(successes, n, low, high):
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=1e-5)


def test_wilson_interval_needs_trials():
    with pytest.raises(ValueError, match="got 0 of 0"):
        wilson_interval(0, 0)


def drawn(seeds):
    scene = ShapeAttributes("circle", "red", "left", "dark")
    size = (32, 40)
    return torch.stack([render(scene, seed=i, num_frames=8, image_size=size) for i in seeds])


def test_distances_of_the_oracles_measures_tell_right_from_wrong_and_frozen_clips():
    network = ShapesFeatures()
    real = drawn(range(30))
    mirrored, still = real.flip(-1), real[:, :, :1].expand(-1, -1, 8, -1, -1)
    green = real.roll(1, dims=1)

    def from_real(clips):
        metric = FrechetVideoDistance(network, unbiased=True)
        metric.update(real, real=True)
        metric.update(clips, real=False)
        return metric.compute()

    floor = from_real(drawn(range(30, 60)))
    for wrong in (mirrored, still, green):
        assert from_real(wrong) > 3 * floor


def test_the_oracles_measures_are_finite_for_clips_that_show_nothing():
    black = torch.zeros(2, 3, 8, 32, 40, dtype=torch.uint8)
    noise = torch.randint(256, (2, 3, 8, 32, 40), dtype=torch.uint8)
    for shapes in (("circle",), ("square", "star")):
        network = ShapesFeatures(shapes)
        for clip in (black, noise):
            found = network(clip)
            assert found.shape == (2, network.num_features)
            assert found.isfinite().all()
    with pytest.raises(ValueError, match="at least 2 frames"):
        ShapesFeatures()(black[:, :, :1])
