import os
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image
from torch.utils.data import Dataset

from cmdvid.data.clip_folder import ClipFolder
from cmdvid.data.scene import ShapeAttributes, render
from cmdvid.draws import draw, files_of, halves, listing
from cmdvid.evaluation import frechet_scores
from cmdvid.evaluator import Evaluator, Reals
from cmdvid.protocols import Protocol
from cmdvid.types import VideoEntry
from cmdvid.vectors import REPLACED, Weights
from cmdvid.video import ClipSpec, read_clip, write_clip


class Rows(list, Dataset):
    """Rows of an index, given one by one."""


L, SIZE = 4, (24, 32)
PROTOCOL = Protocol("p", ("fvd_shapes", "motion"), num_samples=10, spec=ClipSpec(L, SIZE))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Rows of 24 videos of 6 frames, of two classes."""
    folder = tmp_path_factory.mktemp("videos")
    entries = Rows()
    for i in range(24):
        scene = ShapeAttributes("circle" if i % 2 else "square", "red", "left", "dark")
        clip = render(scene, seed=i, num_frames=6, image_size=SIZE).float() / 127.5 - 1
        write_clip(folder / f"{i:02d}.mp4", clip)
        entries.append(VideoEntry(str(folder / f"{i:02d}.mp4"), i % 2))
    return entries


def evaluator(folder, protocol=PROTOCOL):
    return Evaluator(protocol, Weights(), device=CPU, cache=str(folder))


def test_a_draw_is_a_sample_of_all_classes_and_repeats_differ(videos):
    first, other = (draw(videos, PROTOCOL, repeat=r) for r in (0, 1))
    assert sorted(entry.condition for entry in first.clips.index.entries) == [0] * 5 + [1] * 5
    assert first.made_of["data"] != other.made_of["data"]
    rest = draw(videos, PROTOCOL, skip=10)
    paths = [{entry.path for entry in d.clips.index.entries} for d in (first, rest)]
    assert not paths[0] & paths[1]
    with pytest.raises(ValueError, match="30 videos are needed, but there are 24"):
        draw(videos, Protocol("p", ("motion",), num_samples=30))


def test_captions_of_real_clips_are_used_if_all_have_one(videos):
    said = Rows(entry._replace(condition=f"clip {i}") for i, entry in enumerate(videos))
    found = draw(said, PROTOCOL)
    assert [f"clip {int(e.path[-6:-4])}" for e in found.clips.index.entries] == found.captions
    assert draw(Rows(entry._replace(condition="") for entry in videos), PROTOCOL).captions is None
    assert draw(videos, PROTOCOL).captions is None


def test_the_floor_is_that_of_other_videos_at_the_same_n(videos, tmp_path):
    one = evaluator(tmp_path)
    real = one.real(videos)
    floor = one.floor(real)
    assert floor["fvd_shapes"].n == 10
    assert floor["frame_difference"].n == 10
    itself = one.scores(real, [real.draws[0]])
    assert itself["fvd_shapes"].value == pytest.approx(0, abs=1e-6)
    assert floor["fvd_shapes"].value > 0
    few = evaluator(tmp_path).real(Rows(videos[:12]))
    assert evaluator(tmp_path).floor(few)["fvd_shapes"].n == 5  # halves


def test_halves_of_a_floor_have_no_video_in_common(videos):
    settings = {"metrics": ("motion",), "num_samples": 15, "several_windows": True}
    found = draw(Rows(videos[:9]), Protocol("p", spec=PROTOCOL.spec, **settings))
    assert len(set(found.videos)) == 9
    rows = torch.arange(15)[:, None]
    split = halves({"row": rows}, found.videos)
    assert split is not None
    one, other = ([found.videos[row] for row in half["row"]] for half in split)
    assert len(one) == len(other) == 7
    assert not set(one) & set(other)
    assert halves({"row": rows}, ["the same"] * 15) is None


def test_videos_that_come_again_are_in_one_set_of_the_floor(videos, tmp_path):
    again = Rows([*videos[:10], *videos[:10]])  # as an index of windows names them
    floor = evaluator(tmp_path).real(again).floor
    assert len(floor[0]["motion"]) <= 5


def test_real_clips_that_could_not_be_read_are_counted_once_and_for_all(videos, tmp_path):
    rows = Rows(videos[:20])
    bad = str(tmp_path / "bad.mp4")
    Path(bad).write_bytes(b"no video")
    drawn = {entry.path for entry in draw(rows, PROTOCOL).clips.index.entries}
    broken = [e._replace(path=bad) if e.path == min(drawn) else e for e in rows]
    real = evaluator(tmp_path / "cache").real(Rows(broken))
    assert (real.settings["asked"], real.settings["read"]) == (10, [9])
    assert real.notes() == [
        "1 of 10 real clips could not be read, and clips of other videos took their places"
    ]
    kept = evaluator(tmp_path / "cache").real(Rows(broken))
    assert kept.settings["read"] == [9]
    whole = evaluator(tmp_path / "cache").real(rows)
    assert (whole.settings["read"], whole.notes()) == ([10], [])


def test_real_clips_are_read_once_for_all_models(videos, tmp_path):
    first = evaluator(tmp_path).real(videos)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    again = evaluator(tmp_path).real(videos)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")} == files
    assert torch.equal(first.draws[0]["fvd_shapes"], again.draws[0]["fvd_shapes"])


def test_repeats_average_over_draws_and_first_by_path_has_no_floor(videos, tmp_path):
    settings = {"metrics": ("fvd_shapes",), "num_samples": 6, "spec": PROTOCOL.spec}
    twice = evaluator(tmp_path, Protocol("p", repeats=2, **settings))
    real = twice.real(videos)
    generated = real.draws[1]
    apart = [frechet_scores(twice.protocol, each, generated) for each in real.draws]
    mean = twice.scores(real, [generated])["fvd_shapes"].value
    assert mean == pytest.approx(sum(each["fvd_shapes"].value for each in apart) / 2)
    assert mean > 0.01  # of the two draws one is not the generated clips themselves
    old = evaluator(tmp_path, Protocol("p", first_by_path=True, **settings))
    assert "fvd_shapes" not in old.floor(old.real(videos))


def test_clips_of_arrays_can_be_the_real_side(videos, tmp_path):
    clips = [read_clip(entry.path, PROTOCOL.spec) for entry in videos]
    (tmp_path / "real").mkdir()
    np.savez(tmp_path / "real" / "a.npz", rearrange(torch.stack(clips), "n c l h w -> n l h w c"))
    folder = ClipFolder(tmp_path / "real", num_frames=L, image_size=SIZE)
    real = evaluator(tmp_path / "cache").real(folder)
    assert len(real.draws[0]["fvd_shapes"]) == 10
    one, other = real.floor
    assert not torch.equal(one["motion"], other["motion"])  # kept apart from the first draw
    with pytest.raises(ValueError, match="clips are needed, found 24"):
        draw(folder, PROTOCOL, skip=20)


def test_a_changed_file_is_another_listing(videos, tmp_path):
    copies = []
    for entry in videos[:2]:
        path = tmp_path / entry.path[-6:]
        path.write_bytes(Path(entry.path).read_bytes())
        copies.append(entry._replace(path=str(path)))
    first = listing(copies)
    assert first["data"] == listing(videos[:2])["data"]
    path.touch()
    assert listing(copies) != first


def test_every_frame_of_a_folder_counts_and_each_time_of_a_file(videos, tmp_path):
    for clip in ("a", "b"):
        (tmp_path / clip).mkdir()
        for frame in range(2):
            path = tmp_path / clip / f"{frame}.png"
            Image.new("RGB", (8, 8), (frame, 0, 0)).save(path)
            os.utime(path, (10, 10))

    def told():
        return files_of(ClipFolder(tmp_path, num_frames=2, image_size=(8, 8)), range(2))

    first = told()
    os.utime(tmp_path / "a" / "1.png", (5, 5))  # an older one of the same size in its place
    assert told()["data"] == first["data"]
    assert told()["changed"] != first["changed"]


def test_a_video_in_anothers_place_is_not_measured_by_that_ones_caption(videos, tmp_path):
    one = evaluator(tmp_path)
    said = torch.tensor([[0.3], [0.5], [0.9]])
    vectors = {"clipsim": said, REPLACED: torch.tensor([[0.0], [0.0], [1.0]])}
    found = one.floor(Reals([vectors], None, {}, frozenset()))["clipsim"]
    assert (found.value, found.n) == (pytest.approx(0.4), 2)
    none = {"clipsim": said, REPLACED: torch.ones(3, 1)}
    assert one.floor(Reals([none], None, {}, frozenset())) == {}


def test_captions_are_needed_for_clipsim(tmp_path):
    one = evaluator(tmp_path)
    one.protocol = Protocol("words", ("clipsim",), num_samples=2)
    with pytest.raises(ValueError, match="words measures CLIPSIM, which needs the caption"):
        one.clips(Dataset(), tmp_path, made_of={})
