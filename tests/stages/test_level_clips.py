import pytest
import torch

from cmdvid.data.clip_folder import ClipFolder
from cmdvid.stages.level_clips import LevelClips, StoredClips, sample_names, select
from cmdvid.types import ClipBatch
from cmdvid.video import ClipSpec

LEVELS = ("reconstruction", "motion given content")


@pytest.fixture
def batch():
    return ClipBatch(torch.rand(3, 3, 4, 16, 24) * 2 - 1, ["a", "b", "c"], torch.tensor([7, 2, 9]))


def test_clips_come_back_in_eight_bits(batch, tmp_path):
    stored, names = LevelClips(tmp_path, LEVELS), sample_names(batch)
    assert all(stored.missing(name) for name in names)
    stored.save(names, {LEVELS[0]: batch.clip, LEVELS[1]: -batch.clip})
    assert not any(stored.missing(name) for name in names)
    for level, sign in zip(LEVELS, (1, -1), strict=True):
        found = stored.load(level, names[::-1]) / 127.5 - 1
        torch.testing.assert_close(found.flip(0), sign * batch.clip, atol=1 / 255 + 1e-6, rtol=0)
    (tmp_path / "motion-given-content" / names[1]).unlink()
    assert [stored.missing(name) for name in names] == [False, True, False]


def test_a_name_tells_the_row_the_clip_and_the_condition(batch):
    names = sample_names(batch)
    assert [name[:7] for name in names] == ["000007-", "000002-", "000009-"]
    other = batch._replace(condition=["a", "b", "d"])
    assert [x == y for x, y in zip(names, sample_names(other), strict=True)] == [True, True, False]
    darker = batch._replace(clip=batch.clip * 0.5)
    assert not set(names) & set(sample_names(darker))
    one = select(batch, torch.tensor([False, True, False]))
    assert sample_names(one) == names[1:2]


def test_metrics_read_a_level_at_the_protocols_size_as_evaluate_does(batch, tmp_path):
    stored, names = LevelClips(tmp_path, LEVELS[:1]), sorted(sample_names(batch))
    stored.save(sample_names(batch), {LEVELS[0]: batch.clip})
    clips = StoredClips(stored, LEVELS[0], names, ClipSpec(3, (8, 8)))
    folder = ClipFolder(tmp_path / "reconstruction", num_frames=3, image_size=(8, 8))
    assert folder.names == names
    for i in range(3):
        assert clips[i].clip.shape == (3, 3, 8, 8)
        assert torch.equal(clips[i].clip, folder[i].clip)


def test_a_damaged_file_is_named(batch, tmp_path):
    stored, names = LevelClips(tmp_path, LEVELS[:1]), sample_names(batch)
    stored.save(names, {LEVELS[0]: batch.clip})
    (tmp_path / "reconstruction" / names[0]).write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"npz: cannot be read .* delete it"):
        stored.load(LEVELS[0], names)
