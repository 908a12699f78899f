import pytest
import torch

from cmdvid.models.autoencoder import Autoencoder, content_frame, project, spread
from cmdvid.models.layers import MLP, GatedMLP
from cmdvid.types import VideoLatent


@pytest.fixture
def autoencoder() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(width=32, depth=1, num_heads=4, patch=4).eval()


@pytest.fixture
def frames() -> torch.Tensor:
    return torch.rand(2, 3, 5, 8, 12, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_content_frame_of_a_still_clip_is_that_frame(autoencoder):
    frame = torch.rand(2, 3, 8, 12)
    content, _ = autoencoder.encode(torch.stack([frame] * 4, dim=2))
    torch.testing.assert_close(content, frame)


def test_centred_motion_of_all_still_clips_is_the_same():
    torch.manual_seed(0)
    autoencoder = Autoencoder(width=32, depth=1, num_heads=4, patch=4, center_motion=True).eval()
    one, other = (
        autoencoder.encode(torch.rand(1, 3, 1, 8, 12).expand(-1, -1, 4, -1, -1)) for _ in "ab"
    )
    torch.testing.assert_close(one.motion, other.motion)
    moving = autoencoder.encode(torch.rand(1, 3, 4, 8, 12))
    assert (moving.motion - one.motion).abs().max() > 1e-3


def test_content_lies_within_the_range_of_the_frames(autoencoder, frames):
    content = autoencoder.encode(frames).content
    assert (content >= frames.amin(dim=2) - 1e-6).all()
    assert (content <= frames.amax(dim=2) + 1e-6).all()


def test_content_frame_weights_each_value_on_its_own():
    frames = torch.arange(4.0).view(1, 1, 2, 1, 2)  # frame 0 is [0, 1], frame 1 is [2, 3]
    importance = torch.tensor([[100.0, 0.0], [0.0, 100.0]]).view(1, 1, 2, 1, 2)
    expected = torch.tensor([0.0, 3.0]).view(1, 1, 1, 2)
    torch.testing.assert_close(content_frame(frames, importance), expected)


def test_uniform_importance_gives_the_mean(frames):
    torch.testing.assert_close(content_frame(frames, torch.ones_like(frames)), frames.mean(dim=2))


@pytest.mark.parametrize(("anchor", "frame"), [(0.0, 0), (0.5, 2), (1.0, 4)])
def test_a_strong_anchor_starts_from_that_frame(frames, anchor, frame):
    sharp = Autoencoder(width=32, depth=1, num_heads=4, patch=4, anchor=anchor, anchor_bias=50.0)
    expected = frames[:, :, frame]
    torch.testing.assert_close(sharp.encode(frames).content, expected, atol=1e-4, rtol=1e-4)


def test_projection_is_the_mean_over_the_other_axis_rows_first():
    u = torch.randn(1, 2, 3, 4, 5)
    s = project(u)
    torch.testing.assert_close(s[:, :, :3], u.mean(dim=3))
    torch.testing.assert_close(s[:, :, 3:], u.mean(dim=2))


def test_spread_adds_content_rows_and_columns():
    image, rows, cols = torch.randn(1, 3, 4, 5), torch.randn(1, 2, 3, 5), torch.randn(1, 2, 4, 5)
    v = spread(image, rows, cols)
    torch.testing.assert_close(v[0, 1, 2, 3], image[0, 2, 3] + rows[0, 1, 2] + cols[0, 1, 3])


def test_shuffled_frames_change_motion_by_more_than_the_shuffle(autoencoder, frames):
    order = torch.tensor([3, 1, 4, 0, 2])
    motion = autoencoder.encode(frames).motion
    shuffled = autoencoder.encode(frames[:, :, order]).motion
    assert not torch.allclose(motion[:, :, order], shuffled, atol=1e-4)  # time positions count


def test_mirrored_frames_change_motion_by_more_than_the_mirror(autoencoder, frames):
    columns = autoencoder.encode(frames).motion[..., 2:]
    mirrored = autoencoder.encode(frames.flip(-1)).motion[..., 2:]
    assert not torch.allclose(columns.flip(-1), mirrored, atol=1e-4)


def test_swapping_rows_and_columns_changes_the_decoded_frames(autoencoder):
    content, motion = autoencoder.encode(torch.rand(1, 3, 4, 8, 8))
    swapped = torch.cat([motion[..., 2:], motion[..., :2]], dim=-1)
    decoded = [autoencoder.decode(VideoLatent(content, m)) for m in (motion, swapped)]
    assert not torch.allclose(*decoded, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 3, 2, 4, 4), (2, 3, 7, 8, 20), (1, 3, 16, 12, 4)])
def test_any_length_and_size_keeps_its_shape(autoencoder, shape):
    frames = torch.rand(shape)
    rebuilt, latent = autoencoder(frames)
    assert rebuilt.shape == frames.shape
    assert latent.content.shape == (shape[0], 3, *shape[3:])
    assert latent.motion.shape == (shape[0], 8, shape[2], shape[3] // 4 + shape[4] // 4)


def test_residual_decoder_starts_from_the_content_frame(frames):
    autoencoder = Autoencoder(width=32, depth=1, num_heads=4, patch=4, residual=True)
    rebuilt, latent = autoencoder(frames)
    torch.testing.assert_close(rebuilt, latent.content[:, :, None].expand_as(frames))


def test_bounded_motion_and_noise_only_in_training(frames):
    noisy = Autoencoder(width=32, depth=1, num_heads=4, patch=4, bound_motion=True, motion_noise=1)
    assert noisy.encode(frames).motion.abs().max() <= 1
    latent = noisy.encode(frames)
    assert not torch.allclose(noisy.train().decode(latent), noisy.decode(latent))
    torch.testing.assert_close(noisy.eval().decode(latent), noisy.decode(latent))


def test_statistics_give_unit_variance_and_come_back(autoencoder, frames):
    latent = autoencoder.encode(frames)
    moments = [torch.stack([x.mean((0, 2, 3)), x.std((0, 2, 3), correction=0)]) for x in latent]
    autoencoder.set_statistics(*moments)
    for x in autoencoder.normalize(latent):
        torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(x.shape[1]), atol=1e-4, rtol=0)
        torch.testing.assert_close(
            x.std((0, 2, 3), correction=0), torch.ones(x.shape[1]), atol=1e-3, rtol=0
        )
    back = autoencoder.denormalize(autoencoder.normalize(latent))
    torch.testing.assert_close(back, latent)


def test_gradient_checkpointing_changes_no_gradient(autoencoder, frames):
    def gradient() -> torch.Tensor:
        autoencoder.zero_grad()
        autoencoder(frames)[0].square().mean().backward()
        return autoencoder.encoder_in.weight.grad.clone()

    plain = gradient()
    autoencoder.enable_gradient_checkpointing()
    autoencoder.train()
    torch.testing.assert_close(gradient(), plain)


def test_save_pretrained_round_trip(autoencoder, frames, tmp_path):
    autoencoder.set_statistics(torch.full((2, 3), 2.0), torch.full((2, 8), 3.0))
    autoencoder.save_pretrained(tmp_path)
    loaded = Autoencoder.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(frames)[0], autoencoder(frames)[0], atol=1e-5, rtol=0)
    assert loaded.get_buffer("measured")


def test_paper_size_has_depth_8_and_width_384():
    with torch.device("meta"):
        autoencoder = Autoencoder()
    assert len(autoencoder.encoder.blocks) == len(autoencoder.decoder.blocks) == 8
    assert autoencoder.encoder_in.out_features == 384


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.zeros(1, 3, 1, 8, 8), "at least 2 frames to have motion, got 1"),
        (torch.zeros(1, 3, 4, 8, 10), "sides divisible by 4, got 3 channels of 8x10"),
        (torch.zeros(1, 4, 4, 8, 8), "takes 3 channels .* got 4 channels"),
    ],
)
def test_frames_that_do_not_fit_are_refused(autoencoder, frames, message):
    with pytest.raises(ValueError, match=message):
        autoencoder.encode(frames)


def test_motion_of_another_size_is_refused(autoencoder):
    with pytest.raises(ValueError, match=r"of 2\+3 rows and columns, got 4"):
        autoencoder.decode(VideoLatent(torch.zeros(1, 3, 8, 12), torch.zeros(1, 8, 5, 4)))


def test_content_that_does_not_fit_is_refused(autoencoder):
    with pytest.raises(ValueError, match="sides divisible by 4, got 3 channels of 8x13"):
        autoencoder.decode(VideoLatent(torch.zeros(1, 3, 8, 13), torch.zeros(1, 8, 5, 5)))


def test_a_gated_mlp_changes_each_token_by_itself_and_costs_half_more(frames):
    torch.manual_seed(0)
    plain, gated = MLP(32), GatedMLP(32)
    x = torch.rand(2, 5, 32)
    torch.testing.assert_close(gated(x)[:, :2], gated(x[:, :2]))
    weights = [sum(p.numel() for p in mlp.parameters() if p.ndim == 2) for mlp in (plain, gated)]
    assert weights[1] == 1.5 * weights[0]
    autoencoder = Autoencoder(width=32, depth=1, num_heads=4, patch=4, gated_mlp=True)
    assert autoencoder(frames)[0].shape == frames.shape
