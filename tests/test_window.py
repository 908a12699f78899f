"""The frames of a clip lie where they are asked for, and never outside the video."""

import pytest

from cmdvid.container import VideoError
from cmdvid.window import ClipSpec, num_starts, window

SECONDS = [i / 10 for i in range(10)]


def test_every_start_can_be_drawn_and_the_last_is_reached():
    spec = ClipSpec(3, stride=2)
    assert num_starts(SECONDS, spec) == 6
    drawn = [window("a.mp4", SECONDS, spec, i / 60)[0] for i in range(61)]
    assert sorted(set(drawn)) == list(range(6))
    assert window("a.mp4", SECONDS, spec, 1) == [5, 7, 9]


@pytest.mark.parametrize("settings", [{"stride": 3}, {"fps": 5.0}])
def test_what_is_too_short_is_refused_or_stands_still(settings):
    spec = ClipSpec(7, **settings)
    with pytest.raises(VideoError, match=r"a.mp4: a clip of 7 frames .*spec.repeat_last: true"):
        window("a.mp4", SECONDS, spec, 0.5)
    still = ClipSpec(7, **settings, repeat_last=True)
    wanted = window("a.mp4", SECONDS, still, 1)
    step = settings.get("stride", 2)
    assert wanted == [min(step * i, 9) for i in range(7)]
    with pytest.raises(VideoError, match="no frame can be decoded"):
        window("a.mp4", [], still, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_frames": 0}, r"must be at least 1, got ClipSpec\(num_frames=0"),
        ({"stride": 0}, r"must be at least 1, got .*stride=0"),
        ({"image_size": (0, 8)}, r"spec.image_size must be height and width, got \(0, 8\)"),
        ({"fps": -1.0}, r"must be positive and spec.stride 1, got -1.0 and 1"),
        ({"fps": 8.0, "stride": 2}, r"must be positive and spec.stride 1, got 8.0 and 2"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ClipSpec(**settings)
