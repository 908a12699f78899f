import pytest
import torch

from cmdvid.metrics.pixels import to_uint8


def test_pixels_of_files_return_unchanged():
    levels = torch.arange(256, dtype=torch.uint8).expand(3, 2, 1, 256)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(to_uint8(levels.to(dtype) / 127.5 - 1), levels)


def test_halves_are_rounded_up_and_the_rest_is_clipped():
    values = torch.tensor([127.5, 2.49, 2.51, -7.0, 300.0]) / 127.5 - 1
    for dtype in (torch.float32, torch.bfloat16):
        found = to_uint8(values.to(dtype).expand(3, 1, 1, 5))[0, 0, 0].tolist()
        assert found[0] == 128
        assert found[3:] == [0, 255]
    assert to_uint8(values.expand(3, 1, 1, 5))[0, 0, 0, 1:3].tolist() == [2, 3]


def test_pixels_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="NaN or infinite"):
        to_uint8(torch.full((3, 1, 2, 2), torch.nan))
