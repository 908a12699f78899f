"""A video in two splits is found by where it lies, whatever names it."""

import pytest

from cmdvid.data.index import VideoFolder, WebVid
from cmdvid.data.leakage import refuse_leakage


@pytest.fixture
def root(tmp_path):
    for name in ("a/1.mp4", "a/2.mp4", "b/3.mp4"):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


def webvid(root, name, *rows):
    path = root / f"{name}.csv"
    path.write_text("videoid,page_dir,name\n" + "".join(f"{row},x\n" for row in rows))
    return WebVid(str(path))


def test_disjoint_splits_pass(root):
    train = webvid(root, "train", "1,a", "2,a")
    refuse_leakage(train, {"val": webvid(root, "val", "3,b")})
    refuse_leakage(train, {})
    refuse_leakage(
        VideoFolder(str(root / "videos/b")), {"val": VideoFolder(str(root / "videos/a"))}
    )


def test_a_shared_video_is_named(root):
    train = webvid(root, "train", "1,a", "2,a")
    splits = {"val": webvid(root, "val", "3,b"), "test.seen": webvid(root, "test", "3,b", "2,a")}
    with pytest.raises(ValueError, match=r"1 of 2 videos of data.test.seen .*a/2.mp4\. .*allow_le"):
        refuse_leakage(train, splits)


def test_links_and_other_kinds_of_index_do_not_hide_it(root):
    (root / "mine").mkdir()
    (root / "mine" / "other.mp4").symlink_to(root / "videos" / "a" / "1.mp4")
    (root / "b2").symlink_to(root / "videos" / "b")
    train = webvid(root, "train", "1,a", "3,b")
    with pytest.raises(ValueError, match=r"1 of 1 videos of data.val .*mine/other.mp4"):
        refuse_leakage(train, {"val": VideoFolder(str(root / "mine"))})
    with pytest.raises(ValueError, match=r"1 of 1 videos of data.val .*b2/3.mp4"):
        refuse_leakage(train, {"val": VideoFolder(str(root / "b2"))})
