import pytest
import torch

from cmdvid.frames import resize_and_crop, to_pixels


def test_resize_covers_the_size_and_keeps_the_centre():
    torchvision = pytest.importorskip("torchvision.transforms.v2.functional")
    frames = torch.randint(0, 256, (5, 3, 60, 100), dtype=torch.uint8)
    out = resize_and_crop(frames, (24, 32))
    wanted = torchvision.center_crop(torchvision.resize(frames, [24, 40], antialias=True), [24, 32])
    assert (out.int() - wanted.int()).abs().max() <= 1
    assert torch.equal(resize_and_crop(frames, (60, 100)), frames)
    assert resize_and_crop(frames[0].float(), (70, 31)).shape == (3, 70, 31)


def test_downscaling_is_antialiased():
    stripes = torch.zeros(1, 3, 64, 128)
    stripes[..., ::2] = 1
    out = resize_and_crop(stripes, (16, 32))
    torch.testing.assert_close(
        out[..., 1:-1], torch.full_like(out[..., 1:-1], 0.5), atol=0.1, rtol=0
    )


def test_pixels_round_halves_up_and_no_number_is_black():
    clip = torch.tensor([126.5, 127.5, 128.5, torch.nan, torch.inf, -7.0]) / 127.5 - 1
    found = to_pixels(clip.expand(3, 1, 1, 6))[0, 0, 0]
    assert found.tolist() == [127, 128, 129, 0, 255, 0]
