"""WebVid reads any csv with its columns into a table that is shared, kept and made anew in time."""

import logging
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from cmdvid.data.index import WebVid
from cmdvid.data.mapped_table import MappedTable


def webvid(root, text, videos=("000001_000050/7.mp4", "000051_000100/8.mp4")):
    for name in videos:
        path = root / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    path = root / "results.csv"
    path.write_bytes(text)
    return str(path)


ROWS = [
    "videoid,contentUrl,duration,page_dir,name",
    '7,https://a,PT00H00M17S,000001_000050,"A cat, ""grey"", runs"',
    "8,,,000051_000100,",
    "9,,,000051_000100,not there",
    "10,cut short",
]


@pytest.mark.parametrize(("start", "end"), [("", "\n"), ("\ufeff", "\r\n")])
def test_webvid_reads_csv_with_and_without_bom_and_crlf(tmp_path, caplog, start, end):
    index = WebVid(webvid(tmp_path, (start + end.join(ROWS) + end).encode()))
    videos = tmp_path / "videos"
    assert [(entry.path, entry.condition) for entry in index.entries] == [
        (str(videos / "000001_000050" / "7.mp4"), 'A cat, "grey", runs'),
        (str(videos / "000051_000100" / "8.mp4"), ""),
    ]
    assert index.num_missing == 2
    assert "2 of 4 listed videos are missing" in caplog.text
    assert index.classes is None


def test_webvid_columns_come_in_any_order_and_number(tmp_path):
    text = b"name,more,videoid,page_dir\nA dog,,7,000001_000050\n"
    index = WebVid(webvid(tmp_path, text))
    assert [(Path(e.path).name, e.condition) for e in index.entries] == [("7.mp4", "A dog")]
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "a.csv").write_bytes(text)
    elsewhere = WebVid(str(tmp_path / "lists" / "a.csv"), root=str(tmp_path))
    assert list(elsewhere.entries) == list(index.entries)


def test_webvid_names_the_missing_column(tmp_path):
    path = webvid(tmp_path, b"videoid,page_dir,caption\n7,000001_000050,x\n")
    with pytest.raises(ValueError, match="lacks name, found videoid, page_dir, caption"):
        WebVid(path)
    path = webvid(tmp_path, b"videoid;page_dir;name\n")
    with pytest.raises(ValueError, match=r"separated by commas, .* found videoid;page_dir;name"):
        WebVid(path)
    with pytest.raises(ValueError, match=r"no.csv: cannot be read \(No such file"):
        WebVid(str(tmp_path / "no.csv"))


def test_webvid_without_any_file_names_what_it_tried(tmp_path):
    path = webvid(tmp_path, b"videoid,page_dir,name\n9,a,x\n5,..,x\n")
    with pytest.raises(ValueError, match=r"none of its 2 videos is there; tried .*a/9.mp4"):
        WebVid(path)


HEADER = "videoid,page_dir,name\n"


def rows(index):
    return [(Path(entry.path).name, entry.condition) for entry in index.entries]


def settle(root):
    """Make all files and folders old enough for their time stamps to be trusted."""
    for path in [root, *root.rglob("*")]:
        if ".cmdvid" not in path.parts:
            os.utime(path, (1e9, 1e9))


def table_of(root):
    (path,) = (root / ".cmdvid").glob("*.table")
    return path


def test_absent_captions_and_repeated_videos_are_counted(tmp_path, caplog):
    captions = ["", "nan", "NaN", '"a, ""b""\tc"', '"two\nlines"', "x" * 50_000]
    text = HEADER + "".join(f"7,000001_000050,{caption}\n" for caption in captions)
    with caplog.at_level(logging.WARNING):
        index = WebVid(webvid(tmp_path, text.encode()))
    assert [said for _, said in rows(index)] == [
        *["", "", "", 'a, "b"\tc', "two\nlines", "x" * 50_000]
    ]
    assert caplog.text.count("3 videos have no caption") == 1
    assert caplog.text.count("5 rows name a video that another row names") == 1


def test_a_link_to_a_video_is_that_video(tmp_path, caplog):
    text = HEADER + "7,000001_000050,a\n9,links,b\n10,links,c\n"
    path = webvid(tmp_path, text.encode())
    links = tmp_path / "videos" / "links"
    links.mkdir()
    (links / "9.mp4").symlink_to(tmp_path / "videos" / "000001_000050" / "7.mp4")
    (links / "10.mp4").symlink_to(links / "10.mp4")  # a loop, and no video
    index = WebVid(path)
    assert rows(index) == [("7.mp4", "a"), ("9.mp4", "b")]
    assert index.path_keys[0] == index.path_keys[1]
    assert "1 rows name a video that another row names" in caplog.text
    assert "1 of 3 listed videos are missing" in caplog.text


@pytest.mark.parametrize(
    ("page_dir", "video_id"),
    [("..", "7"), ("a/../..", "7"), ("/etc", "7"), ("a\\b", "7"), ("a", "../7")],
)
def test_names_that_leave_the_root_are_never_looked_for(tmp_path, caplog, page_dir, video_id):
    (tmp_path / "7.mp4").write_bytes(b"x")
    (tmp_path / "videos" / "a\\b").mkdir(parents=True)
    (tmp_path / "videos" / "a\\b" / "7.mp4").write_bytes(b"x")
    text = HEADER + f"7,000001_000050,x\n{video_id},{page_dir},y\n"
    assert rows(WebVid(webvid(tmp_path, text.encode()))) == [("7.mp4", "x")]
    assert "not a relative path with forward slashes" in caplog.text


def test_videos_may_lie_without_pages_or_deeper(tmp_path):
    text = HEADER + "1,,flat\n2,a/b,deep\nc/3,a,deeper\n"
    path = webvid(tmp_path, text.encode(), ["1.mp4", "a/b/2.mp4", "a/c/3.mp4", "4.mp4"])
    assert rows(WebVid(path)) == [("1.mp4", "flat"), ("2.mp4", "deep"), ("3.mp4", "deeper")]


def test_a_page_that_no_folder_can_be_costs_its_row_alone(tmp_path):
    text = f"videoid,page_dir,name\n7,000001_000050,a\n7,{'x' * 300},b\n7,loop,c\n"
    path = webvid(tmp_path, text.encode())
    (tmp_path / "videos" / "loop").symlink_to("loop")
    index = WebVid(path)
    assert [caption for _, caption, _ in index.entries] == ["a"]
    assert index.missing[f"{tmp_path}/videos/loop/7.mp4"] == "listed, but not there"
    assert index.num_missing == len(index.missing) == 2


def test_without_check_files_every_row_counts_and_no_folder_is_needed(tmp_path):
    path = webvid(tmp_path, (HEADER + "7,a,x\n8,b,y\n").encode(), [])
    index = WebVid(path, check_files=False)
    assert rows(index) == [("7.mp4", "x"), ("8.mp4", "y")]
    assert index.num_missing == 0
    with pytest.raises(ValueError, match="none of its 2 videos"):
        WebVid(path)  # another table, which finds none


def test_the_digest_tells_rows_from_others(tmp_path):
    one, same, other = (
        WebVid(webvid(tmp_path / name, f"videoid,page_dir,name\n7,000001_000050,{said}\n".encode()))
        for name, said in (("a", "a cat"), ("b", "a cat"), ("c", "a dog"))
    )
    assert one.digest == WebVid(str(tmp_path / "a" / "results.csv")).digest
    assert one.digest != same.digest  # its videos are others
    assert same.digest.split()[1] != other.digest.split()[1]


def test_a_csv_without_rows_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"results.csv: names no video"):
        WebVid(webvid(tmp_path, HEADER.encode()))
    assert not list((tmp_path / ".cmdvid").glob("*.part"))


def test_the_table_is_kept_until_csv_or_folders_change(tmp_path):
    path = webvid(tmp_path, (HEADER + "7,000001_000050,x\n9,000001_000050,y\n").encode())
    settle(tmp_path)
    assert rows(WebVid(path)) == [("7.mp4", "x")]
    made = table_of(tmp_path).stat()
    assert WebVid(path).num_missing == 1
    assert table_of(tmp_path).stat() == made
    (tmp_path / "videos" / "000001_000050" / "9.mp4").write_bytes(b"x")  # its folder is new now
    assert rows(WebVid(path)) == [("7.mp4", "x"), ("9.mp4", "y")]
    (tmp_path / "videos" / "000001_000050" / "7.mp4").unlink()
    assert rows(WebVid(path)) == [("9.mp4", "y")]
    webvid(tmp_path, (HEADER + "8,000051_000100,z\n").encode())
    assert rows(WebVid(path)) == [("8.mp4", "z")]
    assert table_of(tmp_path).stat().st_ino != made.st_ino


def test_files_of_no_byte_are_found_by_their_size_until_they_are_filled(tmp_path, caplog):
    text = HEADER + "7,000001_000050,x\n8,000051_000100,y\n9,a,z\n"
    path = webvid(tmp_path, text.encode())
    videos = tmp_path / "videos"
    video = videos / "000051_000100" / "8.mp4"
    video.write_bytes(b"")
    (videos / "000001_000050" / "unlisted.mp4").write_bytes(b"")
    settle(tmp_path)
    for _ in range(2):  # converted, and opened
        index = WebVid(path)
        assert rows(index) == [("7.mp4", "x")]
        assert (index.empty, index.num_missing) == ([str(video)], 2)
    assert caplog.text.count("8.mp4 (empty)") == 2
    assert len(WebVid(path, check_files=False)) == 3
    video.write_bytes(b"x")  # in its place, so that the folder is as old as before
    assert rows(WebVid(path)) == [("7.mp4", "x"), ("8.mp4", "y")]
    for name in ("000001_000050/7.mp4", "000051_000100/8.mp4"):
        (videos / name).unlink()
        (videos / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of its 3 videos is there; tried .*7.mp4 \(empty\)"):
        WebVid(path)


@pytest.mark.parametrize("damage", ["cut", "version", "empty"])
def test_a_damaged_table_or_one_of_another_version_is_made_anew(tmp_path, damage):
    path = webvid(tmp_path, (HEADER + "7,000001_000050,x\n").encode())
    settle(tmp_path)
    assert rows(WebVid(path)) == [("7.mp4", "x")]
    table = table_of(tmp_path)
    whole = table.read_bytes()
    bad = {"cut": whole[:-30], "version": whole[:-8] + b"cmdvid-0", "empty": b""}[damage]
    table.write_bytes(bad)
    with pytest.raises(ValueError, match=r"no table of this version|empty file"):
        MappedTable(str(table), root="")
    assert rows(WebVid(path)) == [("7.mp4", "x")]
    assert table.read_bytes() == whole


def test_beside_a_read_only_csv_the_table_goes_to_the_cache(tmp_path, monkeypatch):
    data = tmp_path / "data"
    path = webvid(data, (HEADER + "7,000001_000050,x\n").encode())
    settle(tmp_path)
    data.chmod(0o555)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    try:
        assert rows(WebVid(path)) == [("7.mp4", "x")]
        assert not (data / ".cmdvid").exists()
        (made,) = (tmp_path / "cache" / "cmdvid").glob("*.table")
        before = made.stat()
        assert rows(WebVid(path)) == [("7.mp4", "x")]
        assert made.stat() == before
        monkeypatch.setenv("XDG_CACHE_HOME", str(made))
        with pytest.raises(
            ValueError, match=r"made into the table .*; where .* XDG_CACHE_HOME says"
        ):
            WebVid(path)
    finally:
        data.chmod(0o755)


def test_pickle_carries_a_path_and_notices_another_table(tmp_path):
    text = HEADER + "7,000001_000050,x\n" * 3000
    path = webvid(tmp_path, text.encode())
    index = WebVid(path)
    data = pickle.dumps(index)
    assert len(data) < 1000
    assert list(pickle.loads(data).entries) == list(index.entries)
    webvid(tmp_path, (HEADER + "7,000001_000050,y\n").encode())
    assert len(WebVid(path)) == 1
    assert index[2999].condition == "x"  # what is mapped stays
    with pytest.raises(ValueError, match=r"made anew by another process"):
        pickle.loads(data)


def test_workers_that_share_nothing_read_the_same_rows(tmp_path):
    text = HEADER + "".join(f"7,000001_000050,caption {i}\n" for i in range(100))
    index = WebVid(webvid(tmp_path, text.encode()))
    options = {"num_workers": 1, "multiprocessing_context": "spawn", "collate_fn": list}
    loader = DataLoader(index, batch_size=50, **options)
    assert [entry.condition for batch in loader for entry in batch] == [
        f"caption {i}" for i in range(100)
    ]


CONVERT = """
import sys, time
from cmdvid.data.index import WebVid
print("ready", flush=True)
sys.stdin.readline()
print(len(WebVid(sys.argv[1])), flush=True)
"""


def test_processes_at_once_make_one_whole_table_and_a_killed_one_none(tmp_path):
    text = HEADER + "".join(f"7,000001_000050,caption {i}\n" for i in range(200_000))
    path = webvid(tmp_path, text.encode())
    settle(tmp_path)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CONVERT, path],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(3)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    killed, *others = processes
    killed.stdin.write("\n")
    killed.stdin.flush()
    part = table_of_part(tmp_path)
    killed.kill()
    killed.communicate()
    assert part.exists()
    assert not list((tmp_path / ".cmdvid").glob("*.table"))
    for process in others:
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate(timeout=60)[0] for process in others] == ["200000\n"] * 2
    assert not part.exists()
    made = table_of(tmp_path).stat()
    index = WebVid(path)
    assert table_of(tmp_path).stat() == made
    assert (len(index), index[-1].condition) == (200_000, "caption 199999")
    assert len(np.unique(index.path_keys)) == 1


def table_of_part(root):
    """Wait until a process has begun to write a table."""
    for _ in range(12_000):
        if found := list((root / ".cmdvid").glob("*.part")):
            return found[0]
        time.sleep(0.005)
    raise AssertionError("no process has begun a table")
