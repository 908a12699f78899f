import json

import pytest

from cmdvid.data.datamodule import VideoDataModule
from cmdvid.data.msrvtt import MSRVTT, MSRVTTPrompts


@pytest.fixture
def folder(tmp_path):
    for name in ("video7010", "video7011", "video7012"):
        path = tmp_path / "videos" / "all" / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    sentences = [
        {"caption": f"{word} {name}", "video_id": name, "sen_id": n}
        for n, (name, word) in enumerate(
            (name, word)
            for name in ("video7010", "video7011", "video7012", "video9999")
            for word in ("one", "two", "three", "four", "five")
        )
    ]
    content = {"videos": [{"video_id": "video7010", "split": "test"}], "sentences": sentences}
    (tmp_path / "test_videodatainfo.json").write_text(json.dumps(content))
    (tmp_path / "ids.csv").write_text("video_id\nvideo7011\nvideo7010\n")
    return tmp_path


def test_each_video_has_one_caption_that_its_name_and_the_seed_draw(folder):
    captions = str(folder / "test_videodatainfo.json")
    whole = {e.path: e.condition for e in MSRVTT(captions).entries}
    some = {e.path: e.condition for e in MSRVTT(captions, ids=str(folder / "ids.csv")).entries}
    assert len(whole) == 3
    assert len(some) == 2
    assert some.items() <= whole.items()
    drawn = {MSRVTT(captions, seed=seed)[0].condition for seed in range(20)}
    assert len(drawn) == 5
    assert MSRVTT(captions).num_missing == 1


def test_an_absent_caption_is_the_null_condition(folder, caplog):
    (folder / "a.csv").write_text("video_id,sentence\nvideo7010,nan\nvideo7011,a cat\n")
    content = {"sentences": [{"video_id": "video7010", "caption": None}]}
    (folder / "a.json").write_text(json.dumps(content))
    for name, wanted in {"a.csv": ["", "a cat"], "a.json": [""]}.items():
        index = MSRVTT(str(folder / name))
        assert [entry.condition for entry in index.entries] == wanted
    assert caplog.text.count("1 videos have no caption") == 2


def test_without_a_seed_every_caption_is_a_row(folder):
    index = MSRVTT(str(folder / "test_videodatainfo.json"), seed=None)
    assert len(index) == 15
    assert [e.condition for e in index.entries[:2]] == ["one video7010", "two video7010"]


def test_the_csv_of_the_1k_set_is_read(folder):
    path = folder / "MSRVTT_JSFUSION_test.csv"
    path.write_text("key,vid_key,video_id,sentence\nret0,msr7012,video7012,a cat, sleeping\n")
    with pytest.raises(ValueError, match="none of its 1 videos is there"):
        MSRVTT(str(path), root=str(folder / "nowhere"))
    assert MSRVTT(str(path))[0].condition == "a cat"


def test_what_does_not_fit_is_named(folder):
    captions = str(folder / "test_videodatainfo.json")
    (folder / "train.csv").write_text("video0\nvideo7010\n")
    with pytest.raises(ValueError, match=r"train.csv: 1 of 2 videos have no caption .* video0"):
        MSRVTT(captions, ids=str(folder / "train.csv"))
    (folder / "other.json").write_text('{"annotations": []}')
    with pytest.raises(ValueError, match=r"other.json: needs MSR-VTT's form"):
        MSRVTT(str(folder / "other.json"))
    (folder / "other.csv").write_text("id,text\n")
    with pytest.raises(ValueError, match="lacks video_id, sentence"):
        MSRVTT(str(folder / "other.csv"))


def test_files_of_no_byte_are_found_by_their_size(folder, caplog):
    path = folder / "videos" / "all" / "video7011.mp4"
    path.write_bytes(b"")
    index = MSRVTT(str(folder / "test_videodatainfo.json"))
    assert (len(index), index.num_missing, index.empty) == (2, 2, [str(path)])
    assert "video7011.mp4 (empty)" in caplog.text


def test_prompts_are_the_captions_of_the_videos_and_need_none(folder):
    captions, ids = str(folder / "test_videodatainfo.json"), str(folder / "ids.csv")
    chosen = [entry.condition for entry in MSRVTT(captions, ids=ids, seed=3).entries]
    for path in folder.rglob("*.mp4"):
        path.unlink()
    assert list(MSRVTTPrompts(captions, ids=ids, seed=3)) == chosen
    assert len(MSRVTTPrompts(captions)) == 4
    assert len(MSRVTTPrompts(captions, seed=None)) == 20
    data = VideoDataModule(predict=MSRVTTPrompts(captions), batch_size=4, num_workers=0)
    data.setup("predict")
    assert data.spec_for("predict") is None
    (batch,) = data.predict_dataloader()
    assert list(batch.condition) == list(MSRVTTPrompts(captions))
