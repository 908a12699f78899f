from itertools import cycle, islice, product

import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from cmdvid.data.oracle import read_attributes, read_batch
from cmdvid.data.scene import (
    COLOURS,
    DEMO_BACKGROUNDS,
    DEMO_MOTIONS,
    DEMO_SHAPES,
    MOTIONS,
    SHAPES,
    TEXTURED,
    ShapeAttributes,
    render,
)
from cmdvid.video import ClipSpec, read_clip, write_clip

NAMES = ("shape", "colour", "motion", "background")


def scenes_of(count, shapes=DEMO_SHAPES, motions=DEMO_MOTIONS, backgrounds=DEMO_BACKGROUNDS):
    combos = [
        ShapeAttributes(*words)
        for words in product(shapes, COLOURS, motions, backgrounds)
        if not (words[2] == "rotating" and words[0] in ("circle", "ring"))
    ]
    order = torch.randperm(len(combos), generator=torch.Generator().manual_seed(0)).tolist()
    return [combos[i] for i in islice(cycle(order), count)]


def film(scenes, folder, image_size, **options):
    """Real clips: drawn at 64 pixels or more, through an mp4 file, resized."""
    clips = []
    height, width = (round(n * 64 / min(image_size)) for n in image_size)
    for seed, scene in enumerate(scenes):
        clip = render(scene, seed=seed, image_size=(height, width), **options)
        write_clip(folder / f"{seed}.mp4", clip)
        spec = ClipSpec(num_frames=clip.shape[1], image_size=image_size)
        clips.append(read_clip(folder / f"{seed}.mp4", spec))
    return torch.stack(clips)


def score(readings, scenes):
    """Fractions right by attribute, valid, and strict."""
    right = torch.tensor(
        [
            [getattr(reading.attributes, name) == getattr(scene, name) for name in NAMES]
            for reading, scene in zip(readings, scenes, strict=True)
        ]
    )
    valid = torch.tensor([reading.valid for reading in readings])
    strict = valid & right.all(dim=1)
    return dict(zip(NAMES, right.double().mean(dim=0).tolist(), strict=True)) | {
        "valid": valid.double().mean().item(),
        "strict": strict.double().mean().item(),
    }


@pytest.fixture(scope="module")
def scenes():
    return scenes_of(48)


@pytest.fixture(scope="module")
def clips(scenes, tmp_path_factory):
    pixels = film(scenes, tmp_path_factory.mktemp("real"), (32, 48))
    return pixels.float() / 127.5 - 1


def test_real_clips_are_read_right(clips, scenes):
    assert min(score(read_batch(clips), scenes).values()) >= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("image_size", [(32, 32), (64, 64), (24, 40)])
def test_512_real_clips_are_read_right(tmp_path, image_size):
    scenes = scenes_of(512)
    readings = read_batch(film(scenes, tmp_path, image_size))
    assert min(score(readings, scenes).values()) >= 0.99


@pytest.mark.parametrize("image_size", [(24, 24), (32, 56), (96, 64)])
@pytest.mark.parametrize("num_frames", [6, 16])
def test_any_resolution_and_length_will_do(image_size, num_frames):
    scenes = scenes_of(12)
    clips = [
        render(scene, seed=seed, num_frames=num_frames, image_size=image_size)
        for seed, scene in enumerate(scenes)
    ]
    assert score(read_batch(torch.stack(clips)), scenes)["strict"] == 1


@pytest.mark.parametrize(
    ("choice", "free_position"),
    [
        ({"shapes": SHAPES}, False),
        ({"motions": MOTIONS[8:]}, False),
        ({"backgrounds": TEXTURED}, False),
        ({}, True),
    ],
)
def test_options_are_read_too(tmp_path, choice, free_position):
    scenes = scenes_of(16, **choice)
    clips = film(scenes, tmp_path, (32, 40), free_position=free_position)
    readings = read_batch(clips, choice.get("shapes", DEMO_SHAPES))
    assert min(score(readings, scenes).values()) >= 0.97


def test_integers_and_floats_and_single_clips_read_alike():
    scene = ShapeAttributes("triangle", "cyan", "down left", "light")
    clip = render(scene, seed=5, image_size=(40, 32))
    whole = read_attributes(clip)
    assert whole.attributes == scene
    assert whole.valid
    real = read_attributes(clip.float() / 127.5 - 1)
    assert real[:2] == whole[:2]
    assert real.residual == pytest.approx(whole.residual, abs=1e-4)


def blur(clips):
    frames = clips.transpose(1, 2).flatten(0, 1)
    return (
        gaussian_blur(frames, [13, 13], [2.0, 2.0])
        .unflatten(0, (-1, clips.shape[2]))
        .transpose(1, 2)
    )


def frozen(clips):
    return clips[:, :, :1].expand_as(clips)


def ghost(clips):
    return 0.6 * clips + 0.4 * clips.roll(9, dims=-1)


def smear(clips):
    return 0.5 * clips + 0.5 * clips.mean(dim=2, keepdim=True)


def two_shapes(clips):
    background = clips[..., :1, :1]
    is_shape = (clips - background).abs().sum(dim=1, keepdim=True) > 0.3
    return torch.where(is_shape, clips, clips.flip(2).roll(13, dims=-1))


def noise(clips):
    return torch.randn(clips.shape, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)


def grain(clips):
    return clips + 0.3 * noise(clips)


def empty(clips):
    return clips[..., :1, :1].expand_as(clips)


def vanishing(clips):
    return torch.cat([clips[:, :, :-3], empty(clips)[:, :, -3:]], dim=2)


@pytest.mark.parametrize(
    "spoil", [blur, frozen, ghost, smear, two_shapes, noise, grain, empty, vanishing]
)
def test_spoilt_clips_are_not_valid(clips, spoil):
    assert not any(reading.valid for reading in read_batch(spoil(clips[:24])))


def test_blobs_keep_their_direction_but_are_not_valid(clips, scenes):
    scores = score(read_batch(blur(clips)), scenes)
    assert scores["motion"] > 0.95
    assert scores["strict"] == 0


def test_a_shape_that_changes_into_another_is_not_valid():
    for seed, (first, second) in enumerate(product(DEMO_SHAPES, DEMO_SHAPES)):
        halves = [
            render(
                ShapeAttributes(shape, "green", "right", "dark", "small"),
                seed=seed,
                image_size=(64, 80),
            )
            for shape in (first, second)
        ]
        clip = torch.cat([halves[0][:, :8], halves[1][:, 8:]], dim=1)
        small = F.interpolate(clip.transpose(0, 1), (32, 40), mode="bilinear", antialias=True)
        assert read_attributes(small.transpose(0, 1)).valid == (first == second)


def test_clips_too_small_to_read_are_refused():
    with pytest.raises(ValueError, match="at least 24 x 24 pixels, got 16 frames of 20 x 64"):
        read_attributes(torch.zeros(3, 16, 20, 64))
    with pytest.raises(ValueError, match="got 1 frames"):
        read_attributes(torch.zeros(3, 1, 32, 64))
