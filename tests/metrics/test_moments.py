import pytest
import torch

from cmdvid.metrics.moments import FeatureMoments, FeatureStatistics, sorted_rows


def gathered(batches, **options):
    metric = FeatureStatistics(batches[0].shape[1], **options)
    for batch in batches:
        metric.update(batch)
    return metric


def test_moments_are_those_of_torch():
    x = 5 + torch.randn(50, 7)
    moments = gathered(x.split(8)).compute()
    assert moments.n == 50
    torch.testing.assert_close(moments.mean, x.double().mean(dim=0))
    for unbiased in (True, False):
        wanted = x.double().T.cov(correction=int(unbiased))
        torch.testing.assert_close(moments.covariance(unbiased), wanted)


def test_shares_of_the_vectors_merge_to_the_whole():
    x = torch.randn(50, 7)
    whole = gathered([x], keep=True)
    merged, other = (gathered(part.split(8), keep=True) for part in x.split([37, 13]))
    merged.merge_state(other)
    for ours, wanted in zip(merged.compute(), whole.compute(), strict=True):
        torch.testing.assert_close(ours, wanted)
    assert torch.equal(merged.features(), whole.features())


def test_half_precision_features_are_summed_in_double():
    x = (100 + torch.randn(4000, 2)).half()
    moments = gathered(x.split(100)).compute()
    torch.testing.assert_close(moments.mean, x.double().mean(dim=0), rtol=1e-12, atol=0)


def test_kept_features_have_an_order_of_their_own():
    x = torch.randn(30, 5)
    one = gathered(x.split(7), keep=True).features()
    other = gathered(x.flip(0).split(4), keep=True).features()
    assert torch.equal(one, other)
    assert sorted(map(tuple, one.tolist())) == sorted(map(tuple, x.tolist()))


def test_rounding_does_not_reorder_rows_but_near_ties():
    x = torch.randn(40, 5)
    noisy = sorted_rows(x + 1e-7 * torch.randn(40, 5))
    torch.testing.assert_close(noisy, sorted_rows(x), rtol=0, atol=1e-5)


def test_saved_statistics_come_back_whole(tmp_path):
    moments = gathered([torch.randn(9, 3)]).compute()
    path = tmp_path / "new" / "real.safetensors"
    moments.save(path, {"split": "train", "n": 9})
    found = FeatureMoments.load(path, {"n": 9, "split": "train"})
    assert found.n == 9
    assert torch.equal(found.mean, moments.mean)
    assert torch.equal(found.scatter, moments.scatter)
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing temporary stays


def test_statistics_of_something_else_are_refused(tmp_path):
    path = tmp_path / "real.safetensors"
    gathered([torch.randn(9, 3)]).compute().save(path, {"split": "train"})
    with pytest.raises(ValueError, match=r'"test".*found .*"train".*delete the file'):
        FeatureMoments.load(path, {"split": "test"})
    with pytest.raises(ValueError, match="no feature statistics"):
        FeatureMoments.load(tmp_path / "none.safetensors")
    path.write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match="no feature statistics"):
        FeatureMoments.load(path)


def test_other_safetensors_are_no_statistics(tmp_path):
    from safetensors.torch import save_file

    save_file({"mean": torch.zeros(3)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="but not of feature statistics"):
        FeatureMoments.load(tmp_path / "weights.safetensors")


def test_bad_features_leave_the_sums_as_they_were():
    metric = gathered([torch.randn(4, 3)])
    for bad, message in (
        (torch.zeros(2, 4), "of 3, got 4"),
        (torch.full((1, 3), torch.nan), "NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            metric.update(bad)
    assert metric.compute().n == 4
    with pytest.raises(ValueError, match="keep=True"):
        metric.features()
