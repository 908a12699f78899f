import math

import pytest
import torch

from cmdvid.losses import psnr
from cmdvid.metrics.reconstruction import Reconstruction


@pytest.fixture
def pair():
    clip = torch.rand(6, 3, 4, 16, 24) * 2 - 1
    return clip, (clip + 0.1 * torch.randn_like(clip)).clamp(-1, 1)


def test_batches_and_one_update_agree(pair):
    whole, parts = Reconstruction(), Reconstruction()
    whole.update(*pair)
    for one, other in zip(*(x.split([1, 3, 2]) for x in pair), strict=True):
        parts.update(one, other)
    assert parts.compute() == pytest.approx(whole.compute(), rel=1e-9)
    assert parts.compute()["count"] == 6


def test_psnr_is_the_mean_over_clips_with_its_standard_error(pair):
    metric = Reconstruction()
    metric.update(*pair)
    scores, found = psnr(*pair).double(), metric.compute()
    assert found["psnr"] == pytest.approx(float(scores.mean()))
    error = float(scores.std()) / math.sqrt(6)
    assert found["psnr_error"] == pytest.approx(error, rel=1e-4)


def test_a_known_error_has_a_known_psnr():
    clip = torch.zeros(1, 3, 2, 8, 12)
    metric = Reconstruction()
    metric.update(clip + 0.2, clip)
    found = metric.compute()
    assert found["psnr"] == pytest.approx(20.0, abs=1e-4)  # a tenth of the peak
    assert found["psnr_error"] == math.inf  # one clip tells nothing of others


def test_ssim_is_one_for_equal_clips_and_does_not_care_for_mirrors(pair):
    metric = Reconstruction()
    metric.update(pair[0], pair[0])
    assert metric.compute()["ssim"] == pytest.approx(1.0)
    straight, mirrored = Reconstruction(), Reconstruction()
    straight.update(*pair)
    mirrored.update(*(x.flip(-1) for x in pair))
    assert 0.5 < straight.compute()["ssim"] < 0.999
    assert mirrored.compute()["ssim"] == pytest.approx(straight.compute()["ssim"], rel=1e-5)


def test_ssim_takes_pixels_from_zero(pair):
    from torchmetrics.functional.image import structural_similarity_index_measure

    frames, others = (((x + 1) / 2).transpose(1, 2).flatten(0, 1) for x in pair)
    wanted = structural_similarity_index_measure(frames, others, data_range=1.0)
    metric = Reconstruction()
    metric.update(*pair)
    assert metric.compute()["ssim"] == pytest.approx(float(wanted), rel=1e-5)


def test_half_precision_clips_are_compared_in_full(pair):
    metric = Reconstruction()
    metric.update(*(x.bfloat16() for x in pair))
    assert metric.psnr_sum.dtype == torch.float64
    assert metric.compute()["psnr"] == pytest.approx(float(psnr(*pair).mean()), abs=0.1)


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match="at least 6x6 pixels, got 4x12"):
        Reconstruction().update(*(torch.zeros(1, 3, 2, 4, 12),) * 2)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_compared_is_an_error():
    with pytest.raises(ValueError, match="no clips were compared"):
        Reconstruction().compute()


def test_each_score_has_its_standard_error(pair):
    class Difference(torch.nn.Module):
        def forward(self, frames, originals):
            return (frames - originals).abs().mean((1, 2, 3))

    metric = Reconstruction(Difference())
    metric.update(*pair)
    apart = []
    for one, other in zip(*(x.split(1) for x in pair), strict=True):
        single = Reconstruction(Difference())
        single.update(one, other)
        apart.append(single.compute())
    found = metric.compute()
    for score in ("psnr", "ssim", "lpips"):
        values = torch.tensor([each[score] for each in apart], dtype=torch.float64)
        assert found[score] == pytest.approx(float(values.mean()))
        assert found[f"{score}_error"] == pytest.approx(float(values.std()) / 6**0.5, rel=1e-3)
