import torch

from cmdvid.losses import LatentMoments, psnr
from cmdvid.types import VideoLatent


def test_psnr_of_a_known_error():
    reference = torch.zeros(2, 3, 4, 6, 8)
    noisy = reference + torch.tensor([0.2, 0.02]).view(2, 1, 1, 1, 1)  # 1/10 and 1/100 of the peak
    torch.testing.assert_close(psnr(noisy, reference), torch.tensor([20.0, 40.0]))


def test_moments_of_batches_are_those_of_the_whole():
    latent = VideoLatent(torch.randn(6, 3, 4, 5) * 3 + 1, torch.randn(6, 8, 2, 9) - 2)
    moments = LatentMoments()
    for rows in (slice(0, 1), slice(1, 6)):
        moments.update(VideoLatent(latent.content[rows], latent.motion[rows]))
    for measured, x in zip(moments.compute(), latent, strict=True):
        expected = torch.stack([x.mean((0, 2, 3)), x.std((0, 2, 3), correction=0)])
        torch.testing.assert_close(measured, expected)
