"""Indexes find files and conditions as published, and say what is wrong with a data set."""

import logging
from pathlib import Path

import pytest

from cmdvid.data.index import UCF101, Prompts, VideoFolder, WebVid

CLASSES = ["Hammering", "HammerThrow", "HandstandPushups", "JumpingJack", "JumpRope"]


@pytest.fixture
def ucf101(tmp_path):
    """UCF-101 in small: official order of classes, CRLF, no labels in test lists, absent files."""
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    lists.joinpath("classInd.txt").write_bytes(
        b"".join(b"%d %s\r\n" % (i, name.encode()) for i, name in enumerate(CLASSES, start=1))
    )
    train = [
        "Hammering/v_Hammering_g08_c01.avi 1",
        "HammerThrow/v_HammerThrow_g08_c01.avi 2",
        "HandstandPushups/v_HandStandPushups_g08_c01.avi 3",
        "JumpRope/v_JumpRope_g08_c01.avi 5",
        *[f"JumpingJack/v_JumpingJack_g08_c{n:02d}.avi 4" for n in range(1, 8)],
    ]
    lists.joinpath("trainlist01.txt").write_bytes("\r\n".join(train).encode() + b"\r\n")
    lists.joinpath("trainlist02.txt").write_bytes(b"Hammering/v_Hammering_g01_c01.avi 1\r\n")
    lists.joinpath("testlist01.txt").write_bytes(b"Hammering/v_Hammering_g01_c01.avi\r\n")
    for name in [line.split()[0] for line in train[:4]] + ["Hammering/v_Hammering_g01_c01.avi"]:
        path = tmp_path / "UCF-101" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    # on disk in another case than in the list
    folder = tmp_path / "UCF-101" / "HandstandPushups"
    folder.joinpath("v_HandStandPushups_g08_c01.avi").rename(
        folder / "v_HandstandPushups_g08_c01.avi"
    )
    return tmp_path


def test_ucf101_labels_follow_class_ind_and_not_sorted_folders(ucf101):
    index = UCF101(str(ucf101))
    assert index.classes == CLASSES
    assert {Path(e.path).parent.name: e.condition for e in index.entries} == {
        "Hammering": 0,
        "HammerThrow": 1,
        "HandstandPushups": 2,
        "JumpRope": 4,
    }
    assert all(Path(entry.path).is_file() for entry in index.entries)
    assert len(index) == 4
    assert index[1] == index.entries[1]


def test_ucf101_says_which_listed_files_are_missing(ucf101, caplog):
    with caplog.at_level(logging.WARNING):
        index = UCF101(str(ucf101))
    assert index.num_missing == 7
    assert "7 of 11 listed videos are missing" in caplog.text
    assert caplog.text.count("v_JumpingJack") == 5


def test_ucf101_test_lists_and_folds(ucf101):
    test = UCF101(str(ucf101), split="test")
    assert [(Path(e.path).name, e.condition) for e in test.entries] == [
        ("v_Hammering_g01_c01.avi", 0)
    ]
    assert UCF101(str(ucf101), fold=2)[0] == test[0]
    with pytest.raises(ValueError, match=r"testlist03.txt: cannot be read"):
        UCF101(str(ucf101), split="test", fold=3)


def test_ucf101_without_any_file_or_with_a_strange_class_is_an_error(ucf101):
    lists = ucf101 / "ucfTrainTestlist"
    lists.joinpath("trainlist03.txt").write_text("JumpRope/v_JumpRope_g99_c01.avi 5\n")
    with pytest.raises(ValueError, match=r"none of its 1 videos is there; tried .*g99_c01.avi"):
        UCF101(str(ucf101), fold=3)
    lists.joinpath("trainlist03.txt").write_text("Juggling/v_Juggling_g01_c01.avi 5\n")
    with pytest.raises(ValueError, match=r"class 'Juggling' is not in classInd.txt"):
        UCF101(str(ucf101), fold=3)


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
    assert index.entries == [
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
    assert elsewhere.entries == index.entries


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


def tree(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return str(root)


def items(index, root):
    return [(Path(e.path).relative_to(root).as_posix(), e.condition) for e in index.entries]


def test_folders_are_classes(tmp_path):
    root = tree(tmp_path, "b/1.mp4", "a/deep/2.AVI", "a/3.webm", "a/._3.webm", "a/notes.md")
    index = VideoFolder(root)
    assert index.classes == ["a", "b"]
    assert items(index, root) == [("a/3.webm", 0), ("a/deep/2.AVI", 0), ("b/1.mp4", 1)]
    flat = VideoFolder(tree(tmp_path / "flat", "1.mp4"))
    assert (flat.classes, flat[0].condition) == (["flat"], 0)


def test_text_files_beside_the_videos_are_captions(tmp_path, caplog):
    root = tree(tmp_path, "a/1.mp4", "a/2.mp4", "3.mov")
    (tmp_path / "a" / "1.txt").write_bytes("\ufeffEin Café\r\n am See\r\n".encode())
    (tmp_path / "3.txt").write_text("a dog")
    index = VideoFolder(root)
    assert items(index, root) == [
        ("3.mov", "a dog"),
        ("a/1.mp4", "Ein Café am See"),
        ("a/2.mp4", ""),
    ]
    assert index.classes is None
    assert "1 videos have no caption file" in caplog.text


@pytest.mark.parametrize("key", ["text", "caption"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_metadata_files_are_captions(tmp_path, caplog, kind, key):
    root = tree(tmp_path, "a/1.mp4", "2.mp4", "unlisted.mp4")
    rows = [("a/1.mp4", "one"), ("2.mp4", "two, or more"), ("3.mp4", "three")]
    if kind == "csv":
        lines = [f"{key},n,file_name", *[f'"{text}",0,{name}' for name, text in rows]]
    else:
        lines = [f'{{"file_name": "{name}", "{key}": "{text}"}}' for name, text in rows]
    (tmp_path / f"metadata.{kind}").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    index = VideoFolder(root)
    assert items(index, root) == [("a/1.mp4", "one"), ("2.mp4", "two, or more")]
    assert index.num_missing == 1
    assert "3.mp4" in caplog.text


def test_metadata_without_the_needed_columns_is_an_error(tmp_path):
    root = tree(tmp_path, "1.mp4")
    (tmp_path / "metadata.csv").write_text("file,text\n1.mp4,x\n")
    with pytest.raises(ValueError, match=r"metadata.csv: needs the columns .* lacks file_name"):
        VideoFolder(root)
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "1.mp4"}\n')
    with pytest.raises(ValueError, match=r"metadata.jsonl: each line needs .* got '\{\"file_name"):
        VideoFolder(root)


def test_a_folder_without_videos_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"no video in this folder or below \(looked for .avi"):
        VideoFolder(tree(tmp_path, "a/readme.txt"))
    with pytest.raises(ValueError, match="nowhere: no video"):
        VideoFolder(str(tmp_path / "nowhere"))


def test_links_are_followed_and_loops_end(tmp_path):
    tree(tmp_path / "other", "1.mp4")
    root = tree(tmp_path / "root", "b/2.mp4")
    (tmp_path / "root" / "a").symlink_to(tmp_path / "other")
    (tmp_path / "root" / "b" / "loop").symlink_to(tmp_path / "root")
    assert items(VideoFolder(root), root) == [("a/1.mp4", 0), ("b/2.mp4", 1)]


def test_prompts_come_from_a_file_or_one_by_one(tmp_path):
    (tmp_path / "prompts.txt").write_bytes(b"\xef\xbb\xbfa red circle\r\n\r\na blue star\r\n")
    prompts = Prompts(str(tmp_path / "prompts.txt"), num_samples=2)
    assert [prompts[i] for i in range(len(prompts))] == ["a red circle"] * 2 + ["a blue star"] * 2
    assert Prompts(prompt="")[0] == ""
    with pytest.raises(ValueError, match="either a file of prompts or a prompt"):
        Prompts()
    with pytest.raises(ValueError, match="either a file of prompts or a prompt"):
        Prompts("a.txt", prompt="b")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"empty.txt: the file holds no line"):
        Prompts(str(tmp_path / "empty.txt"))
