"""Samples depend on (seed, epoch, row) alone; bad files are replaced, named once and counted."""

import logging

import pytest
import torch
from torch.utils.data import DataLoader

from cmdvid.data import dataset
from cmdvid.data.dataset import ClipDataset, ClipSampler, PromptDataset
from cmdvid.data.index import Prompts, VideoFolder
from cmdvid.types import ClipBatch, PromptBatch
from cmdvid.video import ClipSpec, VideoError, read_clip

SPEC = ClipSpec(num_frames=4, image_size=(16, 24))


def break_files(folder, *names):
    for name in names:
        (folder / name).write_bytes(b"")


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
    assert caplog.text.count("left/1.mp4: the file is empty") == 1
    assert caplog.text.count("right/0.mp4: the file is empty") == 1
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
    def damaged_at_its_end(path, spec, position=0.5, part=None):
        if path.endswith("left/1.mp4") and position > 0.5:
            raise VideoError(f"{path}: damaged")
        return read_clip(path, spec, position, part)

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
    with pytest.raises(VideoError, match=r"left/1.mp4: the file is empty"):
        data[0, 1]
    with pytest.raises(VideoError, match=r"left/1.mp4: the file is empty"):
        list(DataLoader(data, batch_size=2, num_workers=1))
    (folder / "metadata.csv").write_text("file_name,text\nleft/0.mp4,a\ngone.mp4,b\n")
    with pytest.raises(ValueError, match=r"1 listed videos are missing .* strict: false"):
        ClipDataset(VideoFolder(str(folder)), spec=SPEC, strict=True)


def test_all_files_unusable_is_an_error_that_names_folder_and_reasons(folder):
    break_files(folder, *[p.relative_to(folder).as_posix() for p in folder.rglob("*.mp4")])
    data = ClipDataset(VideoFolder(str(folder)), spec=SPEC)
    with pytest.raises(ValueError, match="none of 7 videos can give a clip") as caught:
        data[0, 4]
    assert str(caught.value).startswith(str(folder))
    assert str(caught.value).count("the file is empty (0 bytes)") == 3
    assert data.num_unusable == 7


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
