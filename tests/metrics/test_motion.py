import pytest
import torch

from cmdvid.metrics.motion import MotionStatistics, dynamics


def measured(*clips):
    metric = MotionStatistics()
    for clip in clips:
        metric.update(clip)
    return metric.compute()


@pytest.fixture
def still():
    """Pictures with coarse structure, far from black and white, standing still."""
    image = 60 + torch.rand(4, 3, 1, 4, 6) * 120
    image = torch.nn.functional.interpolate(image, size=(1, 32, 48))
    return image.expand(-1, -1, 8, -1, -1)


def moving(still):
    return torch.stack([still[:, :, i].roll(3 * i, dims=-1) for i in range(8)], dim=2)


def test_a_still_clip_is_frozen(still):
    found = measured(still.byte())
    assert (found["frame_difference"], found["dynamics"], found["frozen"]) == (0, 0, 1)


def test_noise_and_flicker_do_not_hide_that_a_clip_is_frozen(still):
    noise = 4 * torch.randn(still.shape)
    flicker = 10 * torch.randn(4, 1, 8, 1, 1)
    for change in (noise, flicker):
        shaken, moved = measured((still + change).byte()), measured(moving(still).byte())
        assert shaken["frame_difference"] > 3
        assert shaken["dynamics"] < 0.1 * moved["dynamics"]
        assert moved["frozen"] == 0


def test_a_step_of_one_level_a_frame_has_known_values():
    ramp = (10 * torch.arange(4)).view(1, 1, 4, 1, 1).expand(1, 3, 4, 32, 32).clone()
    ramp[..., 16:] = 0  # half of the frame changes, so its mean colour takes half of it away
    found = measured(ramp.byte())
    assert found["frame_difference"] == pytest.approx(5)
    assert found["dynamics"] == pytest.approx(0.5 * 10 * (5 / 4) ** 0.5, rel=1e-5)


def test_batches_agree_and_errors_are_those_of_the_mean(still):
    clips = (still + torch.rand(4, 1, 1, 1, 1) * torch.randn(still.shape)).byte()
    whole, parts = measured(clips), measured(*clips.split(3))
    assert parts == pytest.approx(whole)
    values = dynamics(clips)
    assert whole["dynamics"] == pytest.approx(float(values.mean()))
    assert whole["dynamics_error"] == pytest.approx(float(values.std()) / 2)
    assert measured(clips[:1])["dynamics_error"] == float("inf")


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_one_frame_has_no_motion_and_no_clip_none_either(still):
    with pytest.raises(ValueError, match="at least 2 frames to have motion, got 1"):
        measured(still[:, :, :1].byte())
    with pytest.raises(ValueError, match="no clips were measured"):
        measured()
