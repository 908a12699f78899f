"""A user's own folder: every layout becomes captions, and two splits that stay as they are."""

import logging
from pathlib import Path

import pytest

from cmdvid.data.dataset import ClipDataset
from cmdvid.data.own import OwnVideos
from cmdvid.video import ClipSpec


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return str(root)


def captions(root):
    """Captions of both splits by file name."""
    return {
        Path(entry.path).name: entry.condition
        for split in ("train", "val")
        for entry in OwnVideos(root, split=split).entries
    }


def names(index):
    return [Path(entry.path).name for entry in index.entries]


def test_class_folders_become_words(tmp_path):
    root = touch(tmp_path, "PlayingGuitar/1.avi", "HandstandPushups/2.avi", "BMX_riding/3.mp4")
    assert captions(root) == {
        "1.avi": "playing guitar",
        "2.avi": "handstand pushups",
        "3.mp4": "bmx riding",
    }
    assert OwnVideos(root).classes is None


def test_ucf101_is_found_beside_its_lists(tmp_path, caplog):
    root = touch(tmp_path, "UCF-101/TaiChi/v_TaiChi_g01_c01.avi", "UCF-101/YoYo/v_YoYo_g01_c01.avi")
    (tmp_path / "ucfTrainTestlist").mkdir()
    (tmp_path / "ucfTrainTestlist" / "trainlist01.txt").write_text("Absent/v_Absent.avi 1\r\n")
    assert captions(root) == {"v_TaiChi_g01_c01.avi": "tai chi", "v_YoYo_g01_c01.avi": "yo yo"}
    assert OwnVideos(root).num_missing == 0
    assert captions(str(tmp_path / "UCF-101")) == captions(root)
    assert "missing" not in caplog.text


def test_webvid_files_are_joined_and_absent_videos_counted(tmp_path, caplog):
    root = touch(tmp_path, "videos/000001_000050/7.mp4", "videos/000051_000100/8.mp4")
    header = "videoid,contentUrl,duration,page_dir,name\r\n"
    rows = '7,,,000001_000050,"A Cat, asleep"\r\n9,,,000001_000050,absent\r\n'
    (tmp_path / "results_2M_val.csv").write_text(header + rows, encoding="utf-8-sig")
    (tmp_path / "more.csv").write_text("name,page_dir,videoid\nA dog,000051_000100,8\n")
    (tmp_path / "gone.csv").write_text("name,page_dir,videoid\nA dog,000051_000100,10\n")
    (tmp_path / "notes.csv").write_text("what\nnothing\n")
    assert captions(root) == {"7.mp4": "A Cat, asleep", "8.mp4": "A dog"}
    assert OwnVideos(root).num_missing == 1
    assert "left out" in caplog.text
    assert "gone.csv" in caplog.text


def test_metadata_and_sidecars_are_captions(tmp_path):
    root = touch(tmp_path / "table", "a/1.mp4", "2.mp4")
    table = '{"file_name": "a/1.mp4", "text": "One"}\n{"file_name": "2.mp4", "text": "Two"}\n'
    (tmp_path / "table" / "metadata.jsonl").write_text(table)
    assert captions(root) == {"1.mp4": "One", "2.mp4": "Two"}
    root = touch(tmp_path / "beside", "1.mp4", "2.mp4")
    (tmp_path / "beside" / "1.txt").write_text("a PlayingGuitar man")
    assert captions(root) == {"1.mp4": "a PlayingGuitar man", "2.mp4": ""}


def test_splits_are_disjoint_complete_and_move_no_video_when_some_are_added(tmp_path):
    root = touch(tmp_path, *(f"a/{i}.mp4" for i in range(60)))
    train, val = (names(OwnVideos(root, split=split)) for split in ("train", "val"))
    assert not set(train) & set(val)
    assert sorted(train + val) == sorted(f"{i}.mp4" for i in range(60))
    assert 1 <= len(val) <= 15
    touch(tmp_path, *(f"b/new{i}.mp4" for i in range(30)))
    assert [name for name in names(OwnVideos(root)) if name in train] == train
    assert set(val) <= set(names(OwnVideos(root, split="val")))
    moved = touch(tmp_path / "elsewhere", *(f"a/{i}.mp4" for i in range(60)))
    assert names(OwnVideos(moved, split="val")) == val


@pytest.mark.parametrize(("share", "split"), [(1e-9, "val"), (1 - 1e-9, "train")])
def test_neither_split_is_empty(tmp_path, share, split):
    root = touch(tmp_path, *(f"{i}.mp4" for i in range(10)))
    assert len(OwnVideos(root, split=split, val_share=share)) == 1


def test_a_handful_of_videos_is_in_both_splits_and_said_once(tmp_path, caplog):
    root = touch(tmp_path, *(f"a/{i}.mp4" for i in range(9)))
    with caplog.at_level(logging.WARNING):
        train, val = (OwnVideos(root, split=split) for split in ("train", "val"))
    assert train.entries == val.entries
    assert len(caplog.records) == 1
    assert "9 videos are too few" in caplog.text


def test_a_few_videos_fill_many_rows_with_other_windows(tmp_path, make_video):
    (tmp_path / "Walking").mkdir()
    for i in range(2):
        make_video(tmp_path / "Walking" / f"{i}.mp4", 40 + 80 * i, num_frames=40)
    train = OwnVideos(str(tmp_path), min_clips=7)
    assert names(train) == ["0.mp4", "1.mp4", "0.mp4", "1.mp4", "0.mp4", "1.mp4", "0.mp4"]
    assert len(OwnVideos(str(tmp_path), split="val", min_clips=7)) == 2
    clips = ClipDataset(train, spec=ClipSpec(num_frames=4, image_size=(16, 24)), train=True)
    first, *_, again = (clips[(0, i)] for i in range(7))
    assert first.condition == again.condition == "walking"
    assert (first.clip != again.clip).any()


def test_a_bad_file_of_many_rows_counts_once(tmp_path, make_video, caplog):
    for i in range(2):
        make_video(tmp_path / "Walking" / f"{i}.mp4")
    (tmp_path / "Walking" / "1.mp4").write_text("<html>")
    train = OwnVideos(str(tmp_path), min_clips=9)
    clips = ClipDataset(train, spec=ClipSpec(num_frames=4, image_size=(16, 24)), train=True)
    assert [clips[0, i].index for i in range(9)] == list(range(9))
    assert (clips.num_unusable, clips.num_files) == (1, 2)
    assert caplog.text.count("1.mp4: an HTML or XML page") == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"val_share": 0.0}, "val_share must lie between 0 and 1"),
        ({"min_clips": 0}, "min_clips be at least 1"),
    ],
)
def test_impossible_settings_are_errors(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        OwnVideos(touch(tmp_path, "1.mp4"), **options)


def test_a_missing_or_empty_folder_says_what_was_looked_for(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        OwnVideos(str(tmp_path / "nowhere"))
    root = touch(tmp_path, "notes.md")
    with pytest.raises(ValueError, match=r"no video .*looked for .3gp .*WebVid.*UCF-101.*metadata"):
        OwnVideos(root)
    (tmp_path / "list.csv").write_text("videoid,page_dir,name\n7,a,x\n")
    with pytest.raises(ValueError, match=r"list.csv: none of its 1 videos is there; tried .*7.mp4"):
        OwnVideos(root)
