"""One pass over a shard's headers finds its samples, whatever else the shard holds."""

import gzip
import json
import os
import tarfile

import numpy as np
import pytest

from cmdvid.data.shard_index import index_path, read_facts, read_index, scan_shard, write_index
from cmdvid.data.shard_list import list_shards
from cmdvid.data.shards import Shards


def scan(path):
    (file,), _ = list_shards(str(path))
    index, facts = scan_shard(file)
    data = path.read_bytes()
    rows = [index.row(i) for i in range(facts.num_videos)]
    videos = [data[offset : offset + size] for offset, size in index.videos.tolist()]
    return [(*row, video) for row, video in zip(rows, videos, strict=True)], facts


def test_samples_are_members_of_one_key(tmp_path, write_tar):
    members = {
        "000.txt": b" a  red\ncircle ",
        "000.mp4": b"first",
        "000.json": b'{"caption": "not this one"}',
        "sub/001.MP4": b"second",
        "sub/001.caption.txt": b"ignored",
        "sub/001.txt": "\ufeffdéjà vu".encode(),
        "002.m4a": b"sound",
        "002.webm": b"third",
    }
    rows, facts = scan(write_tar(tmp_path / "a.tar", members))
    assert rows == [
        ("000.mp4", "a red circle", b"first"),
        ("sub/001.MP4", "déjà vu", b"second"),
        ("002.webm", "", b"third"),
    ]
    assert facts == (3, 0, "caption", "", 1)


def test_what_video2dataset_writes_is_read(tmp_path, write_tar):
    facts_of = {"url": "https://a.example/b.mp4", "caption": "a cat", "status": "success"}
    failed = {"url": "https://a.example/c.mp4", "caption": "gone", "status": "failed_to_download"}
    members = {
        "000000000.mp4": b"cat",
        "000000000.json": json.dumps(facts_of | {"key": "000000000"}).encode(),
        "000000000.m4a": b"sound",
        "000000001.json": json.dumps(failed | {"key": "000000001"}).encode(),
        "000000001.txt": b"gone",
        "000000002.mp4": b"dog",
        "000000002.txt": b"a dog",
        "000000002.json": b'["no object"]',
    }
    rows, facts = scan(write_tar(tmp_path / "a.tar", members))
    assert rows == [("000000000.mp4", "a cat", b"cat"), ("000000002.mp4", "a dog", b"dog")]
    assert facts == (2, 1, "caption", "", 0)


def test_classes_are_numbers_and_a_sample_without_one_is_left_out(tmp_path, write_tar):
    members = {"0.mp4": b"a", "0.cls": b"12\n", "1.mp4": b"b", "2.mp4": b"c", "2.cls": b"dog"}
    rows, facts = scan(write_tar(tmp_path / "a.tar", members))
    assert rows == [("0.mp4", 12, b"a")]
    assert facts == (1, 2, "class", "", 0)


def test_absent_captions_are_the_null_condition(tmp_path, write_tar):
    members = {
        "0.mp4": b"a",
        "0.txt": b" nan\n",
        "1.mp4": b"b",
        "1.txt": b"NaN",
        "1.json": b'{"caption": "\\ud83d a cat"}',
        "2.mp4": b"c",
        "2.json": b'{"caption": NaN, "text": "nan"}',
    }
    rows, facts = scan(write_tar(tmp_path / "a.tar", members))
    assert rows == [("0.mp4", "", b"a"), ("1.mp4", "? a cat", b"b"), ("2.mp4", "", b"c")]
    assert facts.num_bare == 2


def test_a_second_video_of_a_key_is_counted(tmp_path, write_tar):
    members = {"my.video.1.mp4": b"one", "my.video.2.mp4": b"two", "my.txt": b"mine"}
    rows, facts = scan(write_tar(tmp_path / "a.tar", members))
    assert rows == [("my.video.1.mp4", "mine", b"one")]
    assert facts.left_out == 1


def test_names_lead_nowhere(tmp_path, write_tar):
    members = {
        "/etc/a.mp4": b"a",
        "../../b.mp4": b"b",
        "w\\..\\c.mp4": b"c",
        "x/\x1b[31m\n.mp4": b"d",
        "./.hidden.mp4": b"no sample",
        "é" * 200 + ".mp4": b"e",
    }
    path = write_tar(tmp_path / "a.tar", members)
    with tarfile.open(path, "a") as tar:  # links and folders are no videos
        for name, kind in {"f.mp4": tarfile.SYMTYPE, "g.mp4": tarfile.DIRTYPE}.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    rows, facts = scan(path)
    assert [row[0] for row in rows] == [
        "etc/a.mp4",
        "b.mp4",
        "w/c.mp4",
        "x/?[31m?.mp4",
        "é" * 200 + ".mp4",
    ]
    assert [row[2] for row in rows] == [b"a", b"b", b"c", b"d", b"e"]
    assert facts.damage == ""
    assert sorted(os.listdir(tmp_path)) == ["a.tar"]


@pytest.mark.parametrize("byte", [700, 1100, 1536, 1600, 2300, 2560, 2700, 3072, 3500])
def test_of_a_shard_that_is_cut_what_came_before_is_used(tmp_path, write_tar, byte):
    # each member takes 1024 bytes: 0.mp4, 0.txt, 1.mp4, 1.txt
    members = {f"{n // 2}.{'txt' if n % 2 else 'mp4'}": bytes([65 + n]) * 512 for n in range(4)}
    path = write_tar(tmp_path / "a.tar", members)
    path.write_bytes(path.read_bytes()[:byte])
    rows, facts = scan(path)
    whole = [("0.mp4", "B" * 512, b"A" * 512)]
    assert rows == (whole if byte > 2048 + 512 - 1 else [])
    assert "cut" in facts.damage


def test_damage_in_the_middle_is_noticed(tmp_path, write_tar):
    path = write_tar(tmp_path / "a.tar", {f"{n}.mp4": bytes(512) for n in range(4)})
    data = bytearray(path.read_bytes())
    data[2048:2560] = b"x" * 512  # the header of 2.mp4
    path.write_bytes(data)
    rows, facts = scan(path)
    assert [row[0] for row in rows] == ["0.mp4"]  # more of 1 might have followed
    assert facts.damage == "cut or damaged at byte 2048"


@pytest.mark.parametrize(
    "data", [b"", b"<html>no such file</html>", gzip.compress(bytes(4096), mtime=0), bytes(300)]
)
def test_what_is_no_tar_is_said_to_be_none(tmp_path, data):
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    rows, facts = scan(path)
    assert rows == []
    assert facts.damage


def test_an_empty_tar_is_whole(tmp_path, write_tar):
    rows, facts = scan(write_tar(tmp_path / "a.tar", {}))
    assert rows == []
    assert facts == (0, 0, "", "", 0)


def test_an_index_is_kept_and_goes_with_its_shard(tmp_path, write_tar, monkeypatch):
    path = write_tar(tmp_path / "a.tar", {"0.mp4": b"a", "0.txt": b"b"})
    (file,), _ = list_shards(str(path))
    kept = index_path(file)
    assert kept.parent == tmp_path / ".cmdvid-index"
    assert read_facts(kept) is None
    index, facts = scan_shard(file)
    write_index(kept, index, facts)
    assert read_facts(kept) == facts
    for found, wanted in zip(read_index(kept), index, strict=True):
        assert np.array_equal(found, wanted)
    assert [p.name for p in kept.parent.iterdir()] == [kept.name]
    kept.write_bytes(kept.read_bytes()[:-5])
    assert read_facts(kept) is None  # damaged: as if it were not there
    # moved with the folder it is still right; written anew the shard has another
    tmp_path.joinpath("b").mkdir()
    moved = path.rename(tmp_path / "b" / "a.tar")
    (file_moved,), _ = list_shards(str(moved))
    assert index_path(file_moved).name == kept.name
    os.utime(moved, (1, 1))
    (file_new,), _ = list_shards(str(moved))
    assert index_path(file_new).name != kept.name
    # and where one cannot write beside it
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    far = file._replace(url="memory://shards/a.tar")
    assert index_path(far).parent == tmp_path / "cache" / "cmdvid" / "shards"
    assert index_path(file, str(tmp_path / "mine")).parent == tmp_path / "mine"


def test_where_one_cannot_write_old_indexes_are_read_and_new_ones_kept_elsewhere(
    tmp_path, write_tar, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("a.tar", "b.tar"):
        write_tar(tmp_path / "shards" / name, {"0.mp4": b"a", "0.txt": b"b"})
    (a, b), _ = list_shards(str(tmp_path / "shards"))
    kept = index_path(a)
    write_index(kept, *scan_shard(a))
    kept.parent.chmod(0o555)
    try:
        assert index_path(a) == kept
        assert index_path(b).parent == tmp_path / "cache" / "cmdvid" / "shards"
        assert len(Shards(str(tmp_path / "shards"))) == 2
    finally:
        kept.parent.chmod(0o755)


def test_a_folder_that_cannot_hold_indexes_is_named(tmp_path, write_tar):
    path = write_tar(tmp_path / "a.tar", {"0.mp4": b"a"})
    (file,), _ = list_shards(str(path))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match=r"cannot be kept there .* set index_folder"):
        write_index(tmp_path / "file" / "x.safetensors", *scan_shard(file))
