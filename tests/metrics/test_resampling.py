import pytest
import torch

from cmdvid.metrics.frechet import moments_distance
from cmdvid.metrics.resampling import (
    bootstrap_frechet,
    feature_moments,
    frechet_at_infinity,
    in_their_span,
)


def populations(n, *, seed):
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.randn(2, n, 8, generator=generator)
    return one, other + 0.5


def test_counts_weigh_as_copies_do():
    x = torch.randn(5, 3)
    counts = torch.tensor([2, 0, 1, 3, 1])
    found, wanted = feature_moments(x, counts), feature_moments(x.repeat_interleave(counts, dim=0))
    assert found.n == wanted.n == 7
    torch.testing.assert_close(found.mean, wanted.mean)
    torch.testing.assert_close(found.scatter, wanted.scatter)


def test_the_interval_holds_the_distance_and_is_as_wide_as_new_draws_scatter():
    distances = [
        moments_distance(*map(feature_moments, populations(200, seed=seed)), unbiased=True)
        for seed in range(60)
    ]
    spread = 4 * float(torch.tensor(distances).std())
    found = bootstrap_frechet(*populations(200, seed=0), unbiased=True)
    assert found.value == distances[0]
    assert found.low < found.value < found.high
    assert 0.6 < (found.high - found.low) / spread < 1.6
    assert found.bias > 0  # fewer different clips


def test_a_seed_fixes_the_interval_and_known_moments_narrow_it():
    real, generated = populations(100, seed=1)
    first, again, other = (
        bootstrap_frechet(real, generated, unbiased=True, num_resamples=40, seed=seed)
        for seed in (0, 0, 1)
    )
    assert first == again != other
    fixed = bootstrap_frechet(feature_moments(real), generated, unbiased=True, num_resamples=40)
    assert fixed.value == first.value
    assert fixed.high - fixed.low < first.high - first.low


def test_infinitely_many_clips_have_the_distance_of_the_populations():
    real, generated = torch.randn(2, 600, 30)  # of one population
    found = frechet_at_infinity(real, generated, unbiased=True, num_repeats=3)
    assert [n for n, _ in found.points] == [150, 168, 191, 221, 262, 323, 420, 600]
    assert found.points[0][1] > 3 * found.points[-1][1] > 2  # the fewer, the farther
    assert abs(found.value) < 0.25 * found.points[-1][1]


def test_a_line_over_one_by_n_is_found():
    real, generated = populations(64, seed=3)
    found = frechet_at_infinity(real, generated, unbiased=False, sizes=(32, 64), num_repeats=1)
    (n1, d1), (n2, d2) = found.points
    assert (n1, n2) == (32, 64)
    assert found.value == pytest.approx(2 * d2 - d1)
    assert d2 == pytest.approx(
        moments_distance(feature_moments(real), feature_moments(generated), unbiased=False)
    )


def test_what_cannot_be_resampled_is_an_error():
    real, generated = populations(20, seed=4)
    with pytest.raises(ValueError, match="at least 40 resamples, got 10"):
        bootstrap_frechet(real, generated, unbiased=True, num_resamples=10)
    for sizes in ((10,), (10, 30), (1, 10)):
        with pytest.raises(ValueError, match="two sizes or more from 2 to 20"):
            frechet_at_infinity(real, generated, unbiased=True, sizes=sizes)


@pytest.mark.parametrize("repeated", [False, True])
def test_few_vectors_of_many_features_are_as_far_apart_in_their_span(repeated):
    real, generated = torch.randn(5, 40), torch.randn(7, 40) * 2 + 3
    generated = real.clone() if repeated else generated
    pair = in_their_span(real, generated)
    assert pair[0].shape == (5, len(real) + len(generated))
    for unbiased in (True, False):
        found, wanted = (
            moments_distance(*map(feature_moments, each), unbiased)
            for each in (pair, (real, generated))
        )
        assert found == pytest.approx(wanted, rel=1e-10, abs=1e-9)
    many = torch.randn(30, 40)
    assert in_their_span(many, many)[0] is many
