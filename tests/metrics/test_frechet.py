import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cmdvid.metrics.frechet import FrechetVideoDistance, frechet_distance, moments_distance
from cmdvid.metrics.resampling import feature_moments

# by the nuclear norm of the product of the centred features, in NumPy
UNBIASED, BIASED = 931.1064210910442, 916.8863112443432
NOTHING_ADDED = "ignore:The ``compute`` method"  # torchmetrics warns, then we raise


class MeanColours(nn.Module):
    """Means and deviations of the colours."""

    num_features = 6

    def forward(self, clip):
        pixels = clip.float().flatten(2) / 255
        return torch.cat([pixels.mean(dim=2), pixels.std(dim=2)], dim=1)


@pytest.fixture
def clips():
    return torch.randint(256, (20, 3, 4, 8, 12), dtype=torch.uint8)


def features(n, d, *, seed, shift=0.0):
    """Correlated features, much like a network's."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mixing + shift


def by_scipy(a, b, *, unbiased):
    """The formula as it is written."""
    from scipy.linalg import sqrtm

    (m1, c1), (m2, c2) = (
        (x.mean(0).numpy(), np.cov(x.numpy(), rowvar=False, ddof=int(unbiased))) for x in (a, b)
    )
    return ((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)


def distance(metric, real, generated):
    metric.update(real, real=True)
    metric.update(generated, real=False)
    return metric.compute()


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize(("n", "d"), [(40, 16), (300, 16)])
def test_it_is_the_formula_of_scipy(n, d, unbiased):
    a, b = features(n, d, seed=1), features(n + 5, d, seed=2, shift=0.3)
    found = moments_distance(feature_moments(a), feature_moments(b), unbiased)
    assert found == pytest.approx(by_scipy(a, b, unbiased=unbiased), rel=1e-9)


@pytest.mark.parametrize(
    ("unbiased", "near", "far"),
    [(True, 16.070937154, 85.413467612), (False, 15.784807709, 84.051066769)],
)
def test_features_of_real_clips_have_their_distances_in_the_right_order(unbiased, near, far):
    """Of clips of one class, of others of it, and of other classes: eight numbers of a network."""
    path = Path(__file__).parent / "real_features.json"
    sets = {k: torch.tensor(v).double() for k, v in json.loads(path.read_text()).items()}
    moments = {name: feature_moments(rows) for name, rows in sets.items()}
    found = [moments_distance(moments["guitar_a"], each, unbiased) for each in moments.values()]
    assert found == pytest.approx([0, near, far], rel=1e-8, abs=1e-6)  # by SciPy


def test_fewer_clips_than_features_are_exact():
    a, b = features(12, 40, seed=1), features(9, 40, seed=2)
    centred = [(x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (a, b)]
    overlap = torch.linalg.matrix_norm(centred[0] @ centred[1].T, ord="nuc")  # without covariances
    wanted = (a.mean(0) - b.mean(0)).square().sum() - 2 * overlap
    wanted += sum(x.square().sum() for x in centred)
    found = moments_distance(feature_moments(a), feature_moments(b), unbiased=True)
    assert found == pytest.approx(float(wanted), rel=1e-10)


def test_gaussians_with_a_known_distance():
    eye = torch.eye(3, dtype=torch.float64)
    mean = torch.tensor([1.0, 2.0, 2.0])
    assert float(frechet_distance(mean, eye, torch.zeros(3), eye)) == pytest.approx(9)
    wide = torch.tensor([4.0, 9.0, 0.0]).diag()  # deviations 2, 3, 0 against 1, 1, 1
    assert float(frechet_distance(mean, wide, mean, eye.float())) == pytest.approx(1 + 4 + 1)


@pytest.mark.parametrize("n", [5, 200])
def test_a_set_is_at_zero_from_itself(n):
    moments = feature_moments(1e3 * features(n, 40, seed=1))
    assert 0 <= moments_distance(moments, moments, unbiased=True) < 1e-12 * moments.scatter.trace()


def test_the_stored_value_of_this_generator():
    rng = np.random.default_rng(11)
    a, b = (torch.from_numpy(rng.normal(size=(64, 400)) * scale) for scale in (1.0, 1.5))
    unbiased, biased = (
        moments_distance(feature_moments(a), feature_moments(b), u) for u in (True, False)
    )
    assert unbiased == pytest.approx(UNBIASED, rel=1e-9)
    assert biased == pytest.approx(BIASED, rel=1e-9)


def test_order_and_batches_do_not_matter(clips):
    whole = distance(FrechetVideoDistance(MeanColours(), unbiased=True), clips[:11], clips[11:])
    parts = FrechetVideoDistance(MeanColours(), unbiased=True)
    for clip in clips[11:].flip(0).split(2):
        parts.update(clip, real=False)
    for clip in clips[:11].flip(0).split(4):
        parts.update(clip, real=True)
    assert parts.compute() == pytest.approx(whole, rel=1e-9)


def test_clips_are_not_changed(clips):
    before = clips.clone()
    distance(FrechetVideoDistance(MeanColours(), unbiased=True), clips[:9], clips[9:])
    assert torch.equal(clips, before)


def test_it_agrees_with_torchmetrics(clips):
    from torchmetrics.image.fid import FrechetInceptionDistance

    ours = distance(FrechetVideoDistance(MeanColours(), unbiased=True), clips[:9], clips[9:])
    theirs = FrechetInceptionDistance(MeanColours()).set_dtype(torch.float64)
    assert float(distance(theirs, clips[:9], clips[9:])) == pytest.approx(ours, rel=1e-6)


def test_conventions_differ_by_the_share_of_a_clip():
    a, b = features(50, 4, seed=1), features(50, 4, seed=2)
    by_n, by_less = (
        moments_distance(feature_moments(a - a.mean(0)), feature_moments(b - b.mean(0)), u)
        for u in (False, True)
    )
    assert by_n / by_less == pytest.approx(49 / 50)


def test_known_real_statistics_take_the_place_of_real_clips(clips):
    first = FrechetVideoDistance(MeanColours(), unbiased=False)
    wanted = distance(first, clips[:9], clips[9:])
    known = first.real_statistics
    second = FrechetVideoDistance(MeanColours(), unbiased=False, real_statistics=known)
    second.update(clips[9:], real=False)
    assert second.compute() == wanted
    with pytest.raises(ValueError, match="add no real clips"):
        second.update(clips, real=True)
    second.reset()
    assert second.real_statistics.n == 9
    assert second.generated.n == 0


def test_reset_forgets_both_sides(clips):
    metric = FrechetVideoDistance(MeanColours(), unbiased=True, keep_features=True)
    wanted = distance(metric, clips[:9], clips[9:])
    metric.reset()
    assert distance(metric, clips[:9], clips[9:]) == wanted
    assert len(metric.real.features()) == 9


@pytest.mark.filterwarnings(NOTHING_ADDED)
def test_too_few_clips_are_an_error(clips):
    metric = FrechetVideoDistance(MeanColours(), unbiased=True)
    metric.update(clips, real=True)
    with pytest.raises(ValueError, match="no clips were added"):
        metric.compute()
    metric.update(clips[:1], real=False)
    with pytest.raises(ValueError, match="at least 2 clips, got 1"):
        metric.compute()


def test_features_of_other_networks_and_nan_are_refused():
    moments = feature_moments(features(9, 4, seed=1))
    with pytest.raises(ValueError, match="of 4 and of 5 numbers"):
        moments_distance(moments, feature_moments(features(9, 5, seed=1)), unbiased=True)
    with pytest.raises(ValueError, match="NaN or infinite"):
        frechet_distance(moments.mean * torch.nan, moments.scatter, moments.mean, moments.scatter)


@pytest.mark.slow
@pytest.mark.ddp
def test_processes_do_not_matter(tmp_path):
    script = Path(__file__).with_name("score_ranks.py")
    alone = runpy.run_path(str(script))["scores"](0, 1)
    command = [sys.executable, str(script), str(tmp_path)]
    runs = [subprocess.Popen([*command, str(rank)]) for rank in range(2)]
    assert [run.wait(timeout=500) for run in runs] == [0, 0]
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["features"] == alone["features"]
        for name in ("distance", "inception", "motion"):
            assert found[name] == pytest.approx(alone[name], rel=1e-6), name
