import csv
import json
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch

from cmdvid.data.captions import parse_caption, write_caption
from cmdvid.data.scene import (
    BACKGROUNDS,
    COLOURS,
    DEMO_MOTIONS,
    DEMO_SHAPES,
    DIRECTIONS,
    MOTIONS,
    SHAPES,
    UNITS,
    ShapeAttributes,
    coverage,
    render,
)
from cmdvid.data.shapes import COLUMNS, split_triples, write_shapes
from cmdvid.video import ClipSpec, read_clip

SMALL = {
    "num_videos": 6,
    "val_videos": 3,
    "heldout_videos": 2,
    "num_frames": 4,
    "image_size": (48, 64),
}


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("shapes")
    write_shapes(out, **SMALL)
    return out


def red(shape="circle", motion="left", **rest):
    return ShapeAttributes(shape, "red", motion, **{"background": "dark", **rest})


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_have_the_area_of_a_circle_of_their_radius(shape):
    axis = torch.arange(-160, 160) + 0.5
    cover = coverage(shape, axis, axis[:, None], torch.tensor(80.0))
    assert cover.sum().item() == pytest.approx(np.pi * 80**2, rel=0.005)
    centroid = (cover * axis).sum() / cover.sum(), (cover * axis[:, None]).sum() / cover.sum()
    assert torch.tensor(centroid).abs().max() < 0.5


@pytest.mark.parametrize("image_size", [(48, 64), (40, 24)])
def test_render_depends_on_its_seed_alone(image_size):
    first, again, other = (
        render(red(), seed=seed, num_frames=5, image_size=image_size) for seed in (1, 1, 2)
    )
    assert first.shape == (3, 5, *image_size)
    assert first.dtype == torch.uint8
    assert first.equal(again)
    assert not first.equal(other)


@pytest.mark.parametrize("free_position", [False, True])
@pytest.mark.parametrize("motion", MOTIONS)
def test_shapes_stay_inside_the_frame(motion, free_position):
    for seed, shape in enumerate([s for s in SHAPES if motion != "rotating" or s != "circle"]):
        if (shape, motion) == ("ring", "rotating"):
            continue
        clip = render(
            red(shape, motion), seed=seed, image_size=(32, 48), free_position=free_position
        )
        background = clip[:, :1, :1, :1]
        rim = torch.ones(clip.shape[2:], dtype=torch.bool)
        rim[1:-1, 1:-1] = False
        changed = (clip.int() - background.int()).abs().amax(dim=0)[:, rim]
        assert changed.max() < 140  # at most a soft edge reaches into the last pixels
        corners = clip[..., [0, 0, -1, -1], [0, -1, 0, -1]]
        assert corners.eq(background[..., 0]).all()


@pytest.mark.parametrize("motion", DIRECTIONS)
def test_paths_pass_near_the_centre_and_go_the_right_way(motion):
    height, width = 64, 96
    for seed in range(8):
        clip = render(red("square", motion), seed=seed, num_frames=17, image_size=(height, width))
        mask = (clip[0].int() - clip[1].int() > 80).float()  # l h w
        area = mask.sum(dim=(1, 2))
        x = (mask.sum(dim=1) @ (torch.arange(width) + 0.5)) / area
        y = (mask.sum(dim=2) @ (torch.arange(height) + 0.5)) / area
        unit = height / UNITS
        middle = torch.stack([x[8] - width / 2, y[8] - height / 2]) / unit
        assert middle.abs().max() <= 3.5
        travel = torch.stack([x[-1] - x[0], y[-1] - y[0]]) / unit
        assert 7.5 < travel.norm() < 12.5
        assert (travel / travel.norm()) @ torch.tensor(DIRECTIONS[motion]) > 0.99


def test_frames_of_a_scene_do_not_depend_on_their_number():
    few, many = (render(red(), seed=3, num_frames=n) for n in (3, 5))
    assert few[:, 1].equal(many[:, 2])
    assert few[:, 2].equal(many[:, 4])


def test_scenes_that_cannot_be_drawn_are_refused():
    with pytest.raises(ValueError, match="at least 2 frames of at least 24 x 24"):
        render(red(), num_frames=1)
    with pytest.raises(ValueError, match="64 x 16"):
        render(red(), image_size=(64, 16))
    with pytest.raises(ValueError, match=r"shape must be one of .*'blob'"):
        red("blob")
    with pytest.raises(ValueError, match="nobody can see a circle rotating"):
        red("circle", "rotating")


def test_captions_say_what_their_scene_shows():
    rng = np.random.default_rng(0)
    said = Counter()
    for motion in MOTIONS:
        for background in BACKGROUNDS:
            scene = ShapeAttributes("cross", "blue", motion, background, "large")
            for _ in range(20):
                caption = write_caption(scene, rng)
                found = parse_caption(caption)
                assert caption == caption.lower()
                assert found.size in (None, "large")
                said[found.size] += 1
                assert found == ShapeAttributes("cross", "blue", motion, background, found.size)
    assert 0.4 < said["large"] / said.total() < 0.6


def test_captions_have_several_phrasings():
    rng = np.random.default_rng(0)
    scene = red(motion="up left")
    assert len({write_caption(scene, rng) for _ in range(200)}) > 20


@pytest.mark.parametrize(
    ("text", "attributes"),
    [
        ("a red circle moving left", ShapeAttributes("circle", "red", "left")),
        (
            "on a grey background a small green triangle moves to the upper right",
            ShapeAttributes("triangle", "green", "up right", "grey", "small"),
        ),
        ("A Red Circle is moving  left.", ShapeAttributes("circle", "red", "left")),
    ],
)
def test_captions_may_be_written_by_hand(text, attributes):
    assert parse_caption(text) == attributes


@pytest.mark.parametrize(
    "text", ["", "a red circle", "a cat moving left", "a red circle moving left and right"]
)
def test_other_captions_are_refused(text):
    with pytest.raises(ValueError, match="does not describe a scene; write it like"):
        parse_caption(text)


@pytest.mark.parametrize("seed", range(5))
def test_a_tenth_of_the_triples_is_held_out_but_no_pair(seed):
    seen, heldout = split_triples(DEMO_SHAPES, DEMO_MOTIONS, seed)
    triples = len(DEMO_SHAPES) * len(COLOURS) * len(DEMO_MOTIONS)
    assert len(seen) + len(heldout) == len({*seen, *heldout}) == triples
    assert 0.08 < len(heldout) / triples < 0.12

    def pairs(split):
        return {pair for triple in split for pair in combinations(triple, 2)}

    assert pairs(heldout) <= pairs(seen)
    for place in range(3):
        assert len({triple[place] for triple in heldout}) > 1


def test_written_videos_and_captions_match(written):
    triples = {}
    for split, count in (("train", 6), ("val", 3), ("heldout", 2)):
        rows = rows_of(written / f"{split}.csv")
        assert len(rows) == count
        assert tuple(rows[0]) == COLUMNS
        scenes = [parse_caption(row["name"]) for row in rows]
        assert all(scene.background for scene in scenes)
        triples[split] = {(s.shape, s.colour, s.motion) for s in scenes}
        for row in rows:
            path = written / "videos" / row["page_dir"] / f"{row['videoid']}.mp4"
            clip = read_clip(path, ClipSpec(num_frames=4, image_size=(48, 64)))
            assert clip.float().std() > 10
    seen, _ = split_triples(DEMO_SHAPES, DEMO_MOTIONS)
    assert triples["train"] | triples["val"] <= set(seen)
    assert not triples["heldout"] & set(seen)


def test_a_second_run_writes_only_what_is_missing(written):
    videos = sorted((written / "videos").rglob("*.mp4"))
    assert len(videos) == 11
    assert not list(written.rglob(".*"))
    before = {path: path.stat().st_mtime_ns for path in videos}
    spec = ClipSpec(num_frames=4, image_size=(48, 64))
    clip_before = read_clip(videos[0], spec).float()
    videos[0].unlink()
    write_shapes(written, **SMALL)
    # not the same bytes: x264's assembly rounds differently from call to call
    assert (read_clip(videos[0], spec).float() - clip_before).abs().mean() < 0.5
    assert (read_clip(videos[1], spec).float() - clip_before).abs().mean() > 5
    assert {p: p.stat().st_mtime_ns for p in videos[1:]} == {p: before[p] for p in videos[1:]}


def test_a_folder_of_other_settings_is_refused(written):
    with pytest.raises(
        ValueError, match=r"other settings \(seed was 0, is now 1\): choose another"
    ):
        write_shapes(written, **SMALL, seed=1)


def test_words_are_checked_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="'pink'"):
        write_shapes(tmp_path / "out", **SMALL, backgrounds=("dark", "pink"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "least"),
    [("num_videos", 0), ("val_videos", 0), ("heldout_videos", 0), ("fps", 1)],
)
def test_numbers_too_small_are_refused_by_name(tmp_path, option, least):
    with pytest.raises(ValueError, match=f"{option} must be at least {least}, got -3"):
        write_shapes(tmp_path / "out", **(SMALL | {option: -3}))
    assert not (tmp_path / "out").exists()


def test_splits_are_balanced(tmp_path):
    sizes = {"num_videos": 48, "val_videos": 0, "heldout_videos": 0, "num_frames": 2}
    write_shapes(
        tmp_path, **sizes, image_size=(24, 32), shapes=("ring",), motions=("left", "up"),
        backgrounds=("dark", "striped"),
    )  # fmt: skip
    scenes = [parse_caption(row["name"]) for row in rows_of(tmp_path / "train.csv")]
    combos = Counter((s.colour, s.motion, s.background) for s in scenes)
    assert max(combos.values()) - min(combos.values()) <= 1
    assert json.loads((tmp_path / "shapes.json").read_text())["shapes"] == ["ring"]
