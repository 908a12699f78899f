"""Shards are found by folder, by number and by URL, and their state is noted."""

import os

import fsspec
import pytest

from cmdvid.data.shard_list import list_shards


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "shards [1]"  # no pattern, whatever it looks like
    folder.mkdir()
    for number in (9, 10, 11):
        (folder / f"{number:03d}.tar").write_bytes(bytes(number))
    (folder / "notes.txt").write_text("no shard")
    (folder / ".012.tar.part").write_text("not yet a shard")
    return folder


def test_a_folder_gives_its_shards_by_name(shards):
    found, missing = list_shards(str(shards))
    assert [file.url for file in found] == [str(shards / f"{n:03d}.tar") for n in (9, 10, 11)]
    assert [file.size for file in found] == [9, 10, 11]
    assert missing == {}


def test_numbers_in_braces_are_counted_with_their_zeros(shards):
    found, missing = list_shards(f"{shards}/{{008..011}}.tar")
    assert [file.size for file in found] == [9, 10, 11]
    assert missing == {f"{shards}/008.tar": "No such file or directory"}
    with pytest.raises(ValueError, match="go down, from 3 to 1"):
        list_shards("a/{3..1}.tar")


def test_a_shard_that_is_named_twice_counts_once(shards):
    found, _ = list_shards([str(shards / "010.tar"), str(shards)])
    assert [file.size for file in found] == [10, 9, 11]


def test_the_stamp_tells_a_shard_that_was_written_anew(shards):
    (before,), _ = list_shards(str(shards / "010.tar"))
    os.utime(shards / "010.tar", (1, 1))
    (after,), _ = list_shards(str(shards / "010.tar"))
    assert before.size == after.size
    assert before.stamp != after.stamp


def test_urls_are_listed_through_fsspec(shards):
    assert [file.size for file in list_shards(f"file://{shards}")[0]] == [9, 10, 11]
    storage = fsspec.filesystem("memory")
    storage.pipe("/list_shards/7.tar", bytes(7))
    try:
        (file,), _ = list_shards("memory://list_shards")
        assert file[:2] == ("memory://list_shards/7.tar", 7)
        assert list_shards("memory://list_shards/{6..7}.tar")[0] == [file]
    finally:
        storage.rm("/list_shards", recursive=True)


def test_a_folder_without_shards_is_refused_with_its_name(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere: no folder of tar shards \(No such file"):
        list_shards(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"no \.tar file in this folder"):
        list_shards(str(tmp_path))
