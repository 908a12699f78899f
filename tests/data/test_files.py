"""Files are found without looking at them, and a folder that cannot be listed is an error."""

import os
import tempfile
from pathlib import Path

import pytest

from cmdvid.data.files import files_below
from cmdvid.data.index import VideoFolder, WebVid


@pytest.fixture
def locked():
    """A data set with a folder that this process may not list, not even as root."""
    with tempfile.TemporaryDirectory() as name:  # not below pytest's folder, which is root's alone
        root = Path(name)
        (root / "videos" / "a").mkdir(parents=True)
        (root / "videos" / "a" / "1.mp4").write_bytes(b"x")
        (root / "list.csv").write_text("videoid,page_dir,name\n1,a,x\n")
        for path in (root, root / "videos"):
            path.chmod(0o777)
        (root / "videos" / "a").chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        yield root
        os.seteuid(user)
        (root / "videos" / "a").chmod(0o755)


@pytest.mark.parametrize("kind", [files_below, lambda path: VideoFolder(str(path))])
def test_an_unreadable_folder_is_named(locked, kind):
    with pytest.raises(ValueError, match=r"videos/a: the folder cannot be read \(Permission"):
        kind(locked)


def test_an_unreadable_page_is_named(locked):
    with pytest.raises(ValueError, match=r"videos/a: the folder cannot be read \(Permission"):
        WebVid(str(locked / "list.csv"))


def test_a_link_to_itself_is_only_a_file_that_cannot_be_opened(tmp_path):
    (tmp_path / "a.mp4").symlink_to(tmp_path / "a.mp4")
    (tmp_path / "b").symlink_to(tmp_path / "b")
    assert files_below(tmp_path) == [tmp_path / "a.mp4"]
