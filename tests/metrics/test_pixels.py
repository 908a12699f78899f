import pytest
import torch

from cmdvid.metrics.pixels import to_uint8


def test_pixels_of_files_return_unchanged():
    levels = torch.arange(256, dtype=torch.uint8).expand(3, 2, 1, 256)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(to_uint8(levels.to(dtype) / 127.5 - 1), levels)


def test_halves_are_rounded_up_and_the_rest_is_clipped():
    values = torch.tensor([0.5, 1.5, 2.49, 254.5, -7.0, 300.0]) / 127.5 - 1
    found = to_uint8(values.expand(3, 1, 1, 6).double())
    assert found[0, 0, 0].tolist() == [1, 2, 2, 255, 0, 255]


def test_pixels_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="NaN or infinite"):
        to_uint8(torch.full((3, 1, 2, 2), torch.nan))
