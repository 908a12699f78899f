"""Indexes find files and conditions as published, and say what is wrong with a data set."""

import logging
from pathlib import Path

import pytest

from cmdvid.data.index import UCF101, Prompts, VideoFolder

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


@pytest.mark.parametrize("line", ["Hammering", "1", "one Hammering"])
def test_ucf101_names_a_malformed_line_of_its_classes(ucf101, line):
    path = ucf101 / "ucfTrainTestlist" / "classInd.txt"
    path.write_text(f"1 Archery\n{line}\n")
    with pytest.raises(ValueError, match=rf"classInd.txt: each line needs .* got '{line}'"):
        UCF101(str(ucf101))


def test_ucf101_counts_repeated_lines_and_never_leaves_its_folder(ucf101, caplog):
    (ucf101 / "Hammering").mkdir()
    (ucf101 / "Hammering" / "1.avi").write_bytes(b"x")
    lines = ["Hammering/v_Hammering_g08_c01.avi 1"] * 3 + ["Hammering/../../Hammering/1.avi 1"]
    (ucf101 / "ucfTrainTestlist" / "trainlist03.txt").write_text("\n".join(lines))
    index = UCF101(str(ucf101), fold=3)
    assert (len(index), index.num_missing) == (3, 1)
    assert "2 rows name a video that another row names" in caplog.text
    assert "not a relative path with forward slashes" in caplog.text


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


def test_given_classes_number_the_folders_whichever_are_there(tmp_path):
    root = tree(tmp_path, "run/1.mp4", "jump/2.mp4")
    index = VideoFolder(root, classes=["swim", "run", "jump"])
    assert index.classes == ["swim", "run", "jump"]
    assert items(index, root) == [("jump/2.mp4", 2), ("run/1.mp4", 1)]
    with pytest.raises(ValueError, match=r"folders run are none of VideoFolder.classes, .* jump"):
        VideoFolder(root, classes=["swim", "jump"])
    with pytest.raises(ValueError, match="names run more than once"):
        VideoFolder(root, classes=["run", "jump", "run"])


def test_given_classes_go_before_captions(tmp_path):
    root = tree(tmp_path, "run/1.mp4")
    (tmp_path / "run" / "1.txt").write_text("a caption")
    (tmp_path / "metadata.csv").write_text("file_name,text\nrun/1.mp4,x\n")
    assert VideoFolder(root, classes=["run"])[0].condition == 0


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


def test_metadata_headers_may_have_spaces_and_captions_be_absent(tmp_path, caplog):
    root = tree(tmp_path, "1.mp4", "2.mp4")
    (tmp_path / "metadata.csv").write_text("caption , file_name \nnan,1.mp4\nb,2.mp4\n,1.mp4\n")
    assert items(VideoFolder(root), root) == [("1.mp4", ""), ("2.mp4", "b"), ("1.mp4", "")]
    assert "2 videos have no caption" in caplog.text
    assert "1 rows name a video that another row names" in caplog.text
    (tmp_path / "metadata.csv").unlink()
    lines = ['{"file_name": "1.mp4", "text": NaN}', '{"file_name": "2.mp4", "text": null}']
    (tmp_path / "metadata.jsonl").write_text("\r\n".join(lines))
    assert items(VideoFolder(root), root) == [("1.mp4", ""), ("2.mp4", "")]


def test_one_strange_row_does_not_cost_the_others(tmp_path):
    root = tree(tmp_path, "1.mp4", "2.mp4")
    (tmp_path / "metadata.csv").write_text(f"file_name,text\n{'x' * 300}.mp4,a\n1.mp4,b\n")
    index = VideoFolder(root)
    assert (items(index, root), index.num_missing) == ([("1.mp4", "b")], 1)
    (tmp_path / "metadata.csv").unlink()
    lines = [
        '{"file_name": "1.mp4", "text": "a\u2028b\x85c"}',
        '{"file_name": "2.mp4", "text": "\\ud83d"}',
    ]
    (tmp_path / "metadata.jsonl").write_text("\r\n".join(lines), encoding="utf-8")
    assert items(VideoFolder(root), root) == [("1.mp4", "a\u2028b\x85c"), ("2.mp4", "?")]


def test_what_is_not_there_is_named_for_the_report(tmp_path):
    root = tree(tmp_path, "1.mp4")
    (tmp_path / "metadata.csv").write_text("file_name,text\n1.mp4,a\n2.mp4,b\n")
    assert VideoFolder(root).missing == {f"{root}/2.mp4": "listed, but not there"}
    lines = [f"{number}.mp4,a\n" for number in range(1, 1200)]
    (tmp_path / "metadata.csv").write_text("file_name,text\n" + "".join(lines))
    missing = VideoFolder(root).missing
    assert len(missing) == 1001
    assert missing[f"{root}/metadata.csv"] == "198 more videos that it lists are not there"


def test_metadata_names_stay_below_the_folder(tmp_path, caplog):
    root = tree(tmp_path / "data", "1.mp4")
    tree(tmp_path, "out.mp4")
    names = ["1.mp4", "../out.mp4", str(tmp_path / "out.mp4"), "a\\1.mp4"]
    table = tmp_path / "data" / "metadata.csv"
    table.write_text("file_name,text\n" + "".join(f"{name},x\n" for name in names))
    index = VideoFolder(root)
    assert (items(index, root), index.num_missing) == ([("1.mp4", "x")], 3)
    assert f"{tmp_path / 'out.mp4'} (not a relative path" in caplog.text
    assert caplog.text.count("not a relative path with forward slashes and without '..'") == 3


def test_metadata_without_the_needed_columns_is_an_error(tmp_path):
    root = tree(tmp_path, "1.mp4")
    (tmp_path / "metadata.csv").write_text("file,text\n1.mp4,x\n")
    with pytest.raises(ValueError, match=r"metadata.csv: needs the columns .* lacks file_name"):
        VideoFolder(root)
    (tmp_path / "metadata.csv").write_text("file_name;text\n1.mp4;x\n")
    with pytest.raises(ValueError, match=r"metadata.csv: .* commas, .* found file_name;text$"):
        VideoFolder(root)
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "1.mp4"}\n')
    with pytest.raises(
        ValueError, match=r"metadata.jsonl: each line needs .* got '\{\"file_name.* 1$"
    ):
        VideoFolder(root)


def test_a_folder_without_videos_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"no video in this folder or below \(looked for .3gp"):
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


def test_files_of_no_byte_are_found_by_their_size(tmp_path, caplog):
    root = tree(tmp_path, "a/1.mp4", "a/2.mp4", "b/3.mp4")
    (tmp_path / "a" / "2.mp4").write_bytes(b"")
    index = VideoFolder(root)
    assert items(index, root) == [("a/1.mp4", 0), ("b/3.mp4", 1)]
    assert (index.empty, index.num_missing) == ([f"{root}/a/2.mp4"], 1)
    assert "1 of 3 listed videos are missing or empty: " in caplog.text
    assert "a/2.mp4 (empty)" in caplog.text
    (tmp_path / "metadata.csv").write_text("file_name,text\na/1.mp4,x\na/2.mp4,y\nc.mp4,z\n")
    index = VideoFolder(root)
    assert items(index, root) == [("a/1.mp4", "x")]
    assert (index.empty, index.num_missing) == ([f"{root}/a/2.mp4"], 2)
    (tmp_path / "a" / "1.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of its 3 videos is there; .*c.mp4, .* \(empty\)"):
        VideoFolder(root)


def test_ucf101_files_of_no_byte_are_found_by_their_size(ucf101):
    path = ucf101 / "UCF-101" / "JumpRope" / "v_JumpRope_g08_c01.avi"
    path.write_bytes(b"")
    index = UCF101(str(ucf101))
    assert (len(index), index.num_missing, index.empty) == (3, 8, [str(path)])
