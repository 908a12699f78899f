from types import SimpleNamespace

import pytest

from cmdvid.models.autoencoder import Autoencoder
from cmdvid.models.codecs import PixelCodec
from cmdvid.models.content_dit import ContentDiT
from cmdvid.models.content_unet import ContentUNet
from cmdvid.models.motion_dit import MotionDiT
from cmdvid.stages.sizes import check_sides
from cmdvid.video import ClipSpec

SMALL = {"width": 48, "depth": 1, "num_heads": 2}
VAE = SimpleNamespace(stride=8)


@pytest.mark.parametrize(
    ("denoiser", "multiple"),
    [
        (None, 16),  # 8 of the codec, 2 of the autoencoder
        (ContentDiT(**SMALL, patch=3), 48),
        (ContentUNet(widths=(24, 24, 24), patch=1), 32),
        (MotionDiT(**SMALL, patch=2, content_patch=2), 32),  # pairs of rows, each of 2
        (MotionDiT(**SMALL, patch=1, content_patch=8), 64),
        (SimpleNamespace(), 16),  # Stable Diffusion's U-Net pads by itself
    ],
)
def test_all_patches_must_fit(denoiser, multiple):
    networks = {"codec": VAE, "autoencoder": Autoencoder(**SMALL), "denoiser": denoiser}
    check_sides(ClipSpec(4, (multiple, 3 * multiple)), **networks)
    given = ClipSpec(4, (multiple - 8, 3 * multiple + 2))
    nearest = f"{multiple}x{3 * multiple}"
    with pytest.raises(ValueError, match=rf"divisible by {multiple} .* size is {nearest}"):
        check_sides(given, **networks)


def test_the_message_names_what_needs_it():
    networks = {"codec": PixelCodec(), "autoencoder": Autoencoder(**SMALL)}
    said = r"image_size 31x64: .* by 6 \(1 of the PixelCodec, 2 of the autoencoder, 3 of the C"
    with pytest.raises(ValueError, match=said):
        check_sides(ClipSpec(4, (31, 64)), **networks, denoiser=ContentDiT(**SMALL, patch=3))
