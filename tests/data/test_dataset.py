"""Samples depend on (seed, epoch, row) alone; bad files are replaced, named once and counted."""

import json
import logging
import shutil
from datetime import datetime
from pathlib import Path
from threading import Timer

import pytest
import torch
from torch.utils.data import DataLoader

from cmdvid.data import dataset
from cmdvid.data.dataset import ClipDataset, ClipSampler, PromptDataset
from cmdvid.data.index import Prompts, VideoFolder
from cmdvid.data.sampling import Sample
from cmdvid.data.skipped import SkippedFiles
from cmdvid.types import ClipBatch, PromptBatch
from cmdvid.video import ClipSpec, VideoError, read_clip

SPEC = ClipSpec(num_frames=4, image_size=(16, 24))


def break_files(folder, *names):
    for name in names:
        (folder / name).write_text("<html>")


def test_a_sample_is_a_clip_of_its_row(folder):
    index = VideoFolder(str(folder))
    sample = ClipDataset(index, spec=SPEC)[0, 5]
    assert isinstance(sample, ClipBatch)
    assert sample.clip.dtype == torch.uint8
    assert torch.equal(sample.clip, read_clip(index[5].path, SPEC, 0.5))
    assert sample[1:] == (1, 5)
    assert torch.equal(ClipDataset(index, spec=SPEC)[5].clip, sample.clip)


def test_training_windows_change_with_epoch_and_seed_and_come_back(folder):
    index = VideoFolder(str(folder))
    data = ClipDataset(index, spec=SPEC, train=True)
    epochs = [data[epoch, 2].clip for epoch in range(8)]
    assert len({clip.sum().item() for clip in epochs}) > 3
    again = ClipDataset(index, spec=SPEC, train=True)
    assert all(torch.equal(again[epoch, 2].clip, clip) for epoch, clip in enumerate(epochs))
    other = ClipDataset(index, spec=SPEC, train=True, seed=1)
    assert any(not torch.equal(other[e, 2].clip, clip) for e, clip in enumerate(epochs))
    middle = ClipDataset(index, spec=SPEC)
    assert all(torch.equal(middle[epoch, 2].clip, middle[0, 2].clip) for epoch in range(8))


def test_only_flip_mirrors_and_only_in_training(folder):
    index = VideoFolder(str(folder))

    def flipped(data):
        # the files are brighter on the right
        clips = [data[epoch, 2].clip.float() for epoch in range(12)]
        return sum((clip[..., 0].mean() > clip[..., -1].mean()).item() for clip in clips)

    assert flipped(ClipDataset(index, spec=SPEC, train=True)) == 0
    assert flipped(ClipDataset(index, spec=SPEC, flip=True)) == 0
    assert 2 < flipped(ClipDataset(index, spec=SPEC, train=True, flip=True)) < 10


def test_a_bad_file_is_named_once_counted_and_replaced(folder, caplog):
    break_files(folder, "left/1.mp4", "right/0.mp4")
    data = ClipDataset(VideoFolder(str(folder)), spec=SPEC, train=True)
    with caplog.at_level(logging.WARNING):
        first = [data[0, i] for i in range(7)]
        second = [data[0, i] for i in range(7)]
    assert data.num_unusable == 2
    assert caplog.text.count("left/1.mp4: an HTML or XML page") == 1
    assert caplog.text.count("right/0.mp4: an HTML or XML page") == 1
    assert all(torch.equal(a.clip, b.clip) for a, b in zip(first, second, strict=True))
    assert [sample.index for sample in first] == list(range(7))
    # the replacement brings its own condition: grey tells the class
    greys = [sample.clip.float().mean().item() for sample in first]
    assert [sample.condition for sample in first] == [int(grey > 125) for grey in greys]


def test_samples_do_not_depend_on_workers_or_on_what_was_read_before(folder):
    break_files(folder, "left/1.mp4", "left/2.mp4", "right/0.mp4")

    def read(num_workers, epoch):
        data = ClipDataset(VideoFolder(str(folder)), spec=SPEC, train=True, flip=True)
        sampler = ClipSampler(data, shuffle=True, epoch=epoch)
        loader = DataLoader(data, batch_size=2, sampler=sampler, num_workers=num_workers)
        batches = list(loader)
        assert all(isinstance(batch, ClipBatch) for batch in batches)
        assert data.num_unusable == 3  # also when other processes met them
        rows = torch.cat([batch.index for batch in batches])
        return rows, torch.cat([batch.clip for batch in batches])

    rows, clips = read(0, epoch=3)
    same_rows, same_clips = read(2, epoch=3)
    assert torch.equal(rows, same_rows)
    assert torch.equal(clips, same_clips)
    alone = ClipDataset(VideoFolder(str(folder)), spec=SPEC, train=True, flip=True)
    for row, clip in zip(rows.flip(0).tolist(), clips.flip(0), strict=True):
        assert torch.equal(alone[3, row].clip, clip)


def test_a_partly_damaged_file_gives_the_windows_that_it_can_whatever_was_read_before(
    folder, monkeypatch, caplog
):
    def damaged_at_its_end(path, spec, position, part, notice):
        if path.endswith("left/1.mp4") and position > 0.5:
            raise VideoError(f"{path}: damaged")
        return read_clip(path, spec, position, part, notice)

    monkeypatch.setattr(dataset, "read_clip", damaged_at_its_end)
    index = VideoFolder(str(folder))
    data = ClipDataset(index, spec=SPEC, train=True)
    clips = [data[epoch, 1].clip for epoch in range(8)]
    assert data.num_unusable == 1
    assert caplog.text.count(": damaged") == 1
    for epoch in reversed(range(8)):
        alone = ClipDataset(index, spec=SPEC, train=True)
        assert torch.equal(alone[epoch, 1].clip, clips[epoch])


def test_strict_raises_for_bad_and_for_missing_files(folder):
    break_files(folder, "left/1.mp4")
    data = ClipDataset(VideoFolder(str(folder)), spec=SPEC, strict=True)
    data[0, 0]
    with pytest.raises(VideoError, match=r"left/1.mp4: an HTML or XML page"):
        data[0, 1]
    with pytest.raises(VideoError, match=r"left/1.mp4: an HTML or XML page"):
        list(DataLoader(data, batch_size=2, num_workers=1))
    (folder / "metadata.csv").write_text("file_name,text\nleft/0.mp4,a\ngone.mp4,b\n")
    with pytest.raises(ValueError, match=r"1 listed videos are missing .* strict: false"):
        ClipDataset(VideoFolder(str(folder)), spec=SPEC, strict=True)


def test_all_files_unusable_is_an_error_that_names_folder_and_reasons(folder):
    break_files(folder, *[p.relative_to(folder).as_posix() for p in folder.rglob("*.mp4")])
    data = ClipDataset(VideoFolder(str(folder)), spec=SPEC)
    with pytest.raises(ValueError, match=r"none of 7 videos tried \(of 7\) can give a") as caught:
        data[0, 4]
    assert f"{folder / 'right' / '0.mp4'}: " in str(caught.value)  # row 4
    assert str(caught.value).count("an HTML or XML page, not a video; download it again") == 3
    assert data.num_unusable == 7


def test_a_file_that_the_disk_does_not_give_at_once_is_waited_for(folder):
    index = VideoFolder(str(folder))
    path, away = Path(index[2].path), folder.parent / "away.mp4"
    path.rename(away)
    back = Timer(0.25, away.rename, [path])
    back.start()
    data = ClipDataset(index, spec=SPEC)
    assert torch.equal(data[0, 2].clip, read_clip(path, SPEC))
    assert data.num_unusable == 0
    back.join()
    path.unlink()  # for ever
    assert data[0, 2].index == 2
    assert data.num_unusable == 1


def test_each_unusable_file_has_one_line_in_the_report_of_all_processes(folder, tmp_path):
    name = "ü & \udcff.mp4"  # a name that is no text
    (folder / "left" / name).write_bytes(b"version https://git-lfs.github.com/spec/v1")
    (folder / "right" / "2.mp4").write_bytes(b"")  # known without reading it
    break_files(folder, "left/1.mp4", "right/0.mp4")
    index = VideoFolder(str(folder))
    for _ in range(2):  # as two processes, and as a second run
        data = ClipDataset(index, spec=SPEC, report=SkippedFiles(tmp_path / "new/skipped.jsonl"))
        loader = DataLoader(data, batch_size=1, sampler=ClipSampler(data), num_workers=2)
        assert len(list(loader)) == 7
        with (tmp_path / "new/skipped.jsonl").open("a") as report:
            report.write('{"path": "cut sh\n')  # as on a full disk
    lines = (tmp_path / "new/skipped.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines if "cut sh" not in line]
    names = ("left/1.mp4", "right/0.mp4", "right/2.mp4", f"left/{name}")
    paths = {str(folder / file) for file in names}
    assert sorted(row["path"] for row in rows) == sorted(paths)
    assert {row["reason"] for row in rows} == {
        "an HTML or XML page, not a video; download it again",
        "a Git LFS pointer, not a video; run `git lfs pull`",
        "the file is empty (0 bytes)",
    }
    assert all(datetime.fromisoformat(row["first_seen"]).tzinfo for row in rows)


def test_too_large_a_share_of_bad_files_stops_the_run(folder, tmp_path):
    break_files(folder, "left/1.mp4", "left/2.mp4", "right/0.mp4")
    options = {"spec": SPEC, "report": SkippedFiles(tmp_path / "skipped.jsonl")}
    data = ClipDataset(VideoFolder(str(folder)), max_bad_fraction=0.01, **options)
    loader = DataLoader(data, batch_size=1, sampler=ClipSampler(data))
    with pytest.raises(
        ValueError, match=r"3 of the \d videos .* data.max_bad_fraction \(0.01\)"
    ) as stop:
        list(loader)  # of 200 files, two would be allowed
    assert "left/1.mp4: an HTML or XML page, not a video; download it again\n" in str(stop.value)
    assert f"all of them are in {tmp_path / 'skipped.jsonl'}" in str(stop.value)
    with pytest.raises(ValueError, match=r"max_bad_fraction must lie in 0..1, got 2"):
        ClipDataset(VideoFolder(str(folder)), spec=SPEC, max_bad_fraction=2.0)


def test_too_many_empty_files_stop_a_run_before_it_begins(folder):
    for i in range(3):
        (folder / "left" / f"{i}.mp4").write_bytes(b"")
    index = VideoFolder(str(folder))
    ClipDataset(index, spec=SPEC, max_bad_fraction=0.015)  # of 200 files, three
    with pytest.raises(ValueError, match=r"3 of 7 videos are files of no byte.*left/0.mp4"):
        ClipDataset(index, spec=SPEC, max_bad_fraction=0.01)


def test_short_videos_are_padded_by_the_same_rule_in_training_and_evaluation(
    folder, tmp_path, make_video, caplog
):
    make_video(folder / "left" / "1.mp4", num_frames=3)
    index = VideoFolder(str(folder))
    skipping = ClipDataset(index, spec=SPEC)
    assert not torch.equal(skipping[0, 1].clip[:, 2], skipping[0, 1].clip[:, 3])  # another video
    assert (skipping.num_unusable, skipping.num_partial) == (1, 0)
    spec = ClipSpec(num_frames=4, image_size=(16, 24), repeat_last=True)
    report = SkippedFiles(tmp_path / "skipped.jsonl")
    caplog.clear()
    for train in (True, False):
        data = ClipDataset(index, spec=spec, train=train, report=report)
        for epoch in range(3):
            assert torch.equal(data[epoch, 1].clip, read_clip(index[1].path, spec, notice=str))
        assert (data.num_unusable, data.num_partial) == (0, 1)
    assert caplog.text.count("shorter than a clip (3 frames), its last frame is repeated") == 2
    (line,) = (tmp_path / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"].startswith("shorter than a clip (3 frames)")


def test_a_folder_that_goes_between_listing_and_reading_stops_nothing(folder, monkeypatch, caplog):
    monkeypatch.setattr(dataset, "WAITS", (0.01,))
    index = VideoFolder(str(folder))
    shutil.rmtree(folder / "left")
    data = ClipDataset(index, spec=SPEC)
    assert {data[0, i].condition for i in range(7)} == {1}
    assert data.num_unusable == 4
    assert "left/0.mp4: cannot be read (No such file or directory)" in caplog.text


def test_a_report_that_cannot_be_written_stops_no_training(folder, tmp_path, caplog):
    break_files(folder, "left/1.mp4")
    (tmp_path / "skipped.jsonl").mkdir()
    report = SkippedFiles(tmp_path / "skipped.jsonl")
    data = ClipDataset(VideoFolder(str(folder)), spec=SPEC, report=report)
    assert [data[0, i].index for i in range(7)] == list(range(7))
    assert "skipped.jsonl: cannot be written (Is a directory)" in caplog.text


def test_one_usable_file_is_enough(folder):
    spec = ClipSpec(num_frames=12, image_size=(16, 24))
    files = sorted(folder.rglob("*.mp4"))
    break_files(folder, *[path.relative_to(folder).as_posix() for path in files[:-1]])
    data = ClipDataset(VideoFolder(str(folder)), spec=spec, train=True)
    assert {data[0, i].condition for i in range(7)} == {1}


def keys(size, world_size, **options):
    samplers = [
        ClipSampler(range(size), rank=rank, world_size=world_size, **options)
        for rank in range(world_size)
    ]
    assert all(len(list(sampler)) == len(sampler) for sampler in samplers)
    return [list(sampler) for sampler in samplers]


def test_training_order_is_a_function_of_seed_and_epoch():
    sampler = ClipSampler(range(50), shuffle=True, seed=3)
    first = list(sampler)
    assert sorted(i for _, i in first) == list(range(50))
    sampler.set_epoch(1)
    second = list(sampler)
    assert {epoch for epoch, _ in second} == {1}
    assert [i for _, i in first] != [i for _, i in second]
    assert list(ClipSampler(range(50), shuffle=True, seed=3, epoch=1)) == second
    assert [i for _, i in ClipSampler(range(50), shuffle=True, seed=4)] != [i for _, i in first]


def test_ranks_share_the_order_of_one_process():
    alone = keys(10, 1, shuffle=True)[0]
    ranks = keys(10, 3, shuffle=True)
    assert [len(rank) for rank in ranks] == [4, 4, 4]
    together = [key for group in zip(*ranks, strict=True) for key in group]
    assert together[:10] == alone
    assert together[10:] == alone[:2]


def test_evaluation_reads_each_row_once_unless_ranks_must_be_even():
    ranks = keys(10, 4, even=False)
    assert sorted(i for rank in ranks for _, i in rank) == list(range(10))
    assert [len(rank) for rank in ranks] == [3, 3, 2, 2]
    assert [len(rank) for rank in keys(10, 4)] == [3, 3, 3, 3]
    assert [len(rank) for rank in keys(2, 4, even=False)] == [1, 1, 1, 1]  # none may be empty


def test_a_resumed_epoch_leaves_out_what_was_read():
    whole = list(ClipSampler(range(10), shuffle=True, epoch=2))
    sampler = ClipSampler(range(10), shuffle=True, epoch=2, start=4)
    assert list(sampler) == whole[4:]
    sampler.set_epoch(3)
    assert len(list(sampler)) == 10


def test_prompts_are_served_with_their_rows():
    data = PromptDataset(Prompts(prompt="a red circle", num_samples=3))
    assert data[7, 2] == PromptBatch("a red circle", 2)
    (batch,) = DataLoader(data, batch_size=3, sampler=ClipSampler(data))
    assert list(batch.condition) == ["a red circle"] * 3
    assert batch.index.tolist() == [0, 1, 2]


def test_a_file_that_comes_again_gives_another_window_also_in_evaluation(folder):
    index = VideoFolder(str(folder))
    again = Sample(index, num=2 * len(index), several_windows=True)
    data = ClipDataset(again, spec=SPEC)
    for row in range(len(index)):
        first, second = data[row], data[row + len(index)]
        middle = read_clip(again[row].path, SPEC)
        assert torch.equal(first.clip, middle)
        assert torch.equal(second.clip, data[row + len(index)].clip)
    assert any(
        not torch.equal(data[row].clip, data[row + len(index)].clip) for row in range(len(index))
    )
