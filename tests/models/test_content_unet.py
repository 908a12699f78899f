import pytest
import torch

from cmdvid.models.content_unet import ContentUNet


@pytest.fixture
def unet() -> ContentUNet:
    torch.manual_seed(0)
    return ContentUNet(condition_dim=6, widths=(24, 48), patch=2).eval()


T, CONDITION = torch.tensor([3, 700]), torch.randn(2, 6)


@pytest.mark.parametrize("size", [(8, 12), (16, 4)])
def test_prediction_has_the_shape_of_the_content(unet, size):
    noisy = torch.randn(2, 3, *size)
    assert unet(noisy, T, CONDITION).shape == noisy.shape


@pytest.mark.parametrize("change", ["noisy", "t", "condition"])
def test_prediction_depends_on_each_input(unet, change):
    inputs = {"noisy": torch.randn(2, 3, 8, 12), "t": T, "condition": CONDITION}
    changed = inputs | {change: inputs[change] + (1 if change != "t" else 100)}
    assert not torch.allclose(unet(**inputs), unet(**changed), atol=1e-5)


def test_save_pretrained_round_trip(unet, tmp_path):
    unet.save_pretrained(tmp_path)
    noisy = torch.randn(2, 3, 8, 12)
    loaded = ContentUNet.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(noisy, T, CONDITION), unet(noisy, T, CONDITION))


def test_sizes_that_cannot_be_halved_are_refused(unet):
    with pytest.raises(ValueError, match="sides divisible by 4, got 8x10"):
        unet(torch.zeros(2, 3, 8, 10), T, CONDITION)
