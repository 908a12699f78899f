"""Every index becomes shards that tarfile and Shards read; a killed run is taken up again."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from itertools import groupby
from pathlib import Path

import av
import pytest
import torch
from torch.utils.data import ConcatDataset

from cmdvid.__main__ import main
from cmdvid.data.index import UCF101, VideoFolder, WebVid
from cmdvid.data.prepare import write_shards
from cmdvid.data.shards import Shards
from cmdvid.video import ClipSpec, read_clip

SPEC = ClipSpec(num_frames=4, image_size=(32, 48))


@pytest.fixture
def ucf101(tmp_path, make_video):
    (tmp_path / "ucfTrainTestlist").mkdir()
    lists = {
        "classInd.txt": "1 Zumba\n2 Archery\n",
        "trainlist01.txt": "Archery/a.mp4 2\nZumba/b.mp4 1\n",
    }
    for name, text in lists.items():
        (tmp_path / "ucfTrainTestlist" / name).write_text(text)
    for name in ("Archery/a.mp4", "Zumba/b.mp4"):
        make_video(tmp_path / "UCF-101" / name, 50 if "a" in name[-5:] else 100)
    return UCF101(str(tmp_path))


@pytest.fixture
def webvid(tmp_path, make_video):
    rows = ["videoid,page_dir,name"]
    for n, caption in enumerate(["a, comma", "", "日本"]):
        make_video(tmp_path / "videos" / "p" / f"{n}.mp4", 40 * n)
        rows.append(f'{n},p,"{caption}"')
    (tmp_path / "train.csv").write_text("\n".join(rows), encoding="utf-8")
    return WebVid(str(tmp_path / "train.csv"))


@pytest.mark.parametrize("kind", ["ucf101", "webvid", "folder"])
def test_an_index_is_the_same_after_it(kind, request, tmp_path):
    index = request.getfixturevalue(kind)
    index = VideoFolder(str(index)) if kind == "folder" else index
    out = tmp_path / "shards"
    write_shards(index, str(out), samples_per_shard=2)
    names = sorted(path.name for path in out.iterdir())
    number = -(-len(index) // 2)
    assert names == [*[f"{n:05d}.tar" for n in range(number)], "prepare.json"]
    shards = Shards(str(out))
    assert len(shards) == len(index)
    for row in range(len(index)):
        assert shards[row].condition == index[row].condition
        clip = read_clip(shards[row].path, SPEC, 0.4, shards[row].part)
        assert torch.equal(clip, read_clip(index[row].path, SPEC, 0.4))
    again = tmp_path / "again"  # shards are an index too
    write_shards(shards, str(again), samples_per_shard=2)
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as a, tarfile.open(again / path.name) as b:
            videos = [{k: v for k, v in members(t).items() if ".mp4" in k} for t in (a, b)]
        assert videos[0] == videos[1]


def members(tar):
    return {member.name: tar.extractfile(member).read() for member in tar}


def test_the_layout_is_webdatasets(ucf101, tmp_path):
    write_shards(ucf101, str(tmp_path / "shards"))
    with tarfile.open(tmp_path / "shards" / "00000.tar") as tar:
        found = members(tar)
    # members of a key stand together, or streaming readers would not find them
    assert [key for key, _ in groupby(found, lambda name: name.split(".")[0])] == [
        "000000000",
        "000000001",
    ]
    assert found["000000000.cls"] == b"1"
    assert found["000000000.mp4"] == Path(ucf101[0].path).read_bytes()
    facts = json.loads(found["000000001.json"])
    assert facts["source"] == ucf101[1].path
    wanted = {"key": "000000001", "label": 0, "class": "Zumba", "width": 48, "height": 32}
    wanted |= {"fps": 8, "num_frames": 12, "duration": 1.5}
    assert {key: facts[key] for key in wanted} == wanted


PAGE = "an HTML or XML page, not a video; download it again"


def test_bad_files_are_left_out_and_named(folder, tmp_path, caplog):
    (folder / "left" / "1.mp4").write_text("<html>")
    (folder / "right" / "0.mp4").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    write_shards(VideoFolder(str(folder)), str(tmp_path / "shards"), samples_per_shard=2)
    lines = (tmp_path / "shards" / "skipped.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"shard": 0, "path": f"{folder}/left/1.mp4", "reason": PAGE},
        {
            "shard": 2,
            "path": f"{folder}/right/0.mp4",
            "reason": "a Git LFS pointer, not a video; run `git lfs pull`",
        },
    ]
    assert "2 of 7 videos were left out" in caplog.text
    index = Shards(str(tmp_path / "shards"))
    assert (len(index), index.num_missing) == (5, 0)
    with tarfile.open(tmp_path / "shards" / "00000.tar") as tar:
        assert {name[:9] for name in tar.getnames()} == {"000000000"}


def test_nothing_readable_is_an_error(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_text("<html>")
    with pytest.raises(ValueError, match="none of 1 videos can be read"):
        write_shards(VideoFolder(str(tmp_path / "videos")), str(tmp_path / "shards"))


def test_too_many_bad_files_stop_it_and_it_goes_on(folder, tmp_path):
    saved = {path: path.read_bytes() for path in (folder / "right").iterdir()}
    for path in saved:
        path.unlink()
        path.symlink_to(path)  # a disk that does not answer
    rows = ConcatDataset([VideoFolder(str(folder))] * 40)
    out, options = str(tmp_path / "shards"), {"samples_per_shard": 40, "max_bad_fraction": 0.2}
    with pytest.raises(
        ValueError, match=r"41 of the 97 videos tried .* allows; the last is .*/right/"
    ):
        write_shards(rows, out, **options)
    assert sorted(path.name for path in Path(out).glob("*.tar")) == ["00000.tar", "00001.tar"]
    for path, data in saved.items():
        path.unlink()
        path.write_bytes(data)
    write_shards(rows, out, **options)
    assert len(Shards(out)) == 280 - 33  # those that the first two shards left out


def test_what_damage_cost_is_told(folder, tmp_path, make_video, caplog):
    clip = make_video(tmp_path / "long.mp4", num_frames=40)
    with av.open(str(clip)) as video, av.open(str(folder / "left" / "0.avi"), "w") as output:
        stream = output.add_stream("mpeg4", rate=8)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for frame in video.decode(video=0):
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    cut = folder / "left" / "0.avi"
    data = cut.read_bytes()
    cut.write_bytes(data[: (data.index(b"movi") + data.index(b"idx1")) // 2])
    write_shards(VideoFolder(str(folder)), str(tmp_path / "shards"), short_side=16)
    (line,) = (tmp_path / "shards" / "skipped.jsonl").read_text().splitlines()
    lost = json.loads(line)["frames_lost"]
    assert 10 < lost < 40
    reason = f"damaged, {lost} of 40 frames are lost"
    assert json.loads(line) == {
        "shard": 0,
        "path": str(cut),
        "reason": reason,
        "frames_lost": lost,
    }
    assert "1 of 8 videos have lost frames" in caplog.text
    assert "left out" not in caplog.text
    with tarfile.open(tmp_path / "shards" / "00000.tar") as tar:
        assert json.loads(members(tar)["000000000.json"])["frames_lost"] == lost
    assert len(Shards(str(tmp_path / "shards"))) == 8


def test_a_video_of_any_suffix_is_read_again(folder, tmp_path):
    (folder / "left" / "0.mp4").rename(folder / "a.video")
    (folder / "metadata.csv").write_text("file_name,text\na.video,a cat\nleft/1.mp4,a dog\n")
    write_shards(VideoFolder(str(folder)), str(tmp_path / "shards"))
    shards = Shards(str(tmp_path / "shards"))
    assert [entry.condition for entry in shards] == ["a cat", "a dog"]
    assert read_clip(shards[0].path, SPEC, part=shards[0].part).shape == (3, 4, 32, 48)


def test_a_killed_run_is_taken_up_again(folder, tmp_path):
    (folder / "left" / "0.mp4").write_text("<html>")
    (folder / "right" / "0.mp4").write_text("<html>")
    index = VideoFolder(str(folder))
    write_shards(index, str(tmp_path / "whole"), samples_per_shard=2)

    pipe, kept = folder / "right" / "1.mp4", tmp_path / "kept.mp4"
    pipe.rename(kept)
    os.mkfifo(pipe)  # whoever reads it waits: the run stops in the middle of 00002.tar
    out = tmp_path / "shards"
    command = [sys.executable, "-m", "cmdvid", "prepare", "--out", str(out), "--num-workers=2"]
    command += ["--index=cmdvid.data.index.VideoFolder", f"--index.root={folder}"]
    process = subprocess.Popen(
        [*command, "--samples-per-shard=2"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 120
        while not (out / ".00002.tar.part").exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline, "nothing was written"
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert sorted(path.name for path in out.glob("*.tar")) == ["00000.tar", "00001.tar"]
    with (out / "skipped.jsonl").open("a") as file:  # and killed once more, while it wrote this
        file.write('{"shard": 2, "path": "right/0.mp4", "reason": "said before"}\n{"shard": 2, "pa')
    before = {path: path.stat() for path in out.glob("*.tar")}

    pipe.unlink()
    kept.rename(pipe)
    write_shards(index, str(out), samples_per_shard=2)
    assert all(path.stat() == stat for path, stat in before.items())
    for path in (tmp_path / "whole").iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes(), path.name
    assert len(list(out.iterdir())) == len(list((tmp_path / "whole").iterdir()))


def test_videos_are_made_small_through_the_command_line(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = ["--index=cmdvid.data.index.VideoFolder", f"--index.root={folder}"]
    main(["prepare", *source, "--out=shards", "--short-side=16", "--crf=10"])
    index, files = Shards("shards"), VideoFolder(str(folder))
    spec = ClipSpec(num_frames=4, image_size=(16, 24))
    for row in range(7):
        clip = read_clip(index[row].path, spec, 0.8, index[row].part).float()
        error = clip - read_clip(files[row].path, spec, 0.8).float()
        assert 10 * torch.log10(255**2 / error.square().mean()) > 32
    with tarfile.open("shards/00000.tar") as tar:
        assert json.loads(members(tar)["000000003.json"])["width"] == 24
    write_shards(index, "smaller", short_side=16, crf=40)  # of videos that lie in shards
    assert [entry.condition for entry in Shards("smaller")] == [e.condition for e in files]


def test_other_settings_and_other_videos_need_another_folder(folder, tmp_path):
    out = str(tmp_path / "shards")
    write_shards(VideoFolder(str(folder)), out)
    write_shards(VideoFolder(str(folder)), out)
    with pytest.raises(ValueError, match=r"short_side was None, is now 16; gop was None, is now 8"):
        write_shards(VideoFolder(str(folder)), out, short_side=16, gop=8)
    (folder / "left" / "3.mp4").unlink()
    with pytest.raises(ValueError, match="rows was 7, is now 6; index was "):
        write_shards(VideoFolder(str(folder)), out)
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "a.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds other shards \(a.tar\): choose a new folder"):
        write_shards(VideoFolder(str(folder)), str(tmp_path / "others"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"samples_per_shard": 0}, "samples_per_shard must be at least 1, got 0"),
        ({"short_side": 8}, "short_side must be at least 16, got 8"),
        ({"short_side": 101}, "short_side must be even"),
        ({"max_bad_fraction": 20}, "max_bad_fraction must lie in 0..1, got 20"),
        ({"gop": 0}, "gop must be at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(folder, tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        write_shards(VideoFolder(str(folder)), str(tmp_path / "shards"), **options)
    assert not (tmp_path / "shards").exists()
