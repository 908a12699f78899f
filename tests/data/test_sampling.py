from collections import Counter

import pytest
from torch.utils.data import Dataset

from cmdvid.data.sampling import Sample, sample_rows
from cmdvid.types import VideoEntry


class Rows(list, Dataset):
    """Rows of an index, given one by one."""


ENTRIES = Rows(
    VideoEntry(f"{c}/{i:03d}.avi", c) for c, n in enumerate((60, 30, 10)) for i in range(n)
)


def test_each_class_has_its_share_in_every_stretch():
    rows = sample_rows([entry.condition for entry in ENTRIES], 50)
    assert len(set(rows)) == 50
    assert Counter(ENTRIES[row].condition for row in rows) == {0: 30, 1: 15, 2: 5}
    first = Counter(ENTRIES[row].condition for row in rows[:20])
    assert all(abs(first[c] - share) <= 1 for c, share in enumerate((12, 6, 2)))


def test_the_draw_follows_from_its_seed_alone():
    captions = [f"caption {i}" for i in range(40)]
    assert sample_rows(captions, 10, seed=3) == sample_rows(captions, 10, seed=3)
    assert sample_rows(captions, 10, seed=3) != sample_rows(captions, 10, seed=4)
    assert sorted(sample_rows(captions, 40)) == list(range(40))


def test_two_samples_of_one_draw_share_no_video():
    one, other = Sample(ENTRIES, num=30), Sample(ENTRIES, num=30, skip=30)
    assert len({entry.path for entry in (*one.entries, *other.entries)}) == 60
    assert Counter(entry.condition for entry in other.entries)[0] == pytest.approx(18, abs=1)


def test_the_first_by_path_miss_most_classes():
    found = Sample(Rows(ENTRIES[::-1]), num=50, first_by_path=True)
    assert [entry.path for entry in found.entries] == [f"0/{i:03d}.avi" for i in range(50)]


def test_several_windows_repeat_videos_as_evenly_as_can_be():
    found = Sample(ENTRIES, num=250, several_windows=True)
    counts = Counter(entry.path for entry in found.entries)
    assert set(counts.values()) == {2, 3}
    assert found.num_files == 100
    assert found[3] == found[103]


def test_too_few_videos_are_an_error():
    with pytest.raises(ValueError, match="101 videos are needed, but there are 100"):
        Sample(ENTRIES, num=101)
    with pytest.raises(ValueError, match="needed beside the 60 of another sample"):
        Sample(ENTRIES, num=60, skip=60, several_windows=True)
    with pytest.raises(ValueError, match="a sample of 3 videos needs as many, got 2"):
        sample_rows(["a", "b"], 3)
