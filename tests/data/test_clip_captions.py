import numpy as np
import pytest

from cmdvid.data.clip_captions import read_captions
from cmdvid.data.clip_folder import ClipFolder


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "clips").mkdir(exist_ok=True)
        np.savez(tmp_path / "clips" / f"{name}.npz", np.zeros((2, 16, 16, 3), np.uint8))
    return tmp_path / "clips"


def read(folder, file=None):
    return read_captions(ClipFolder(folder, num_frames=2, image_size=(16, 16)), file)


def test_captions_come_from_a_list_a_table_or_beside_the_clips(folder, tmp_path):
    assert read(folder) is None
    (folder / "a.txt").write_text("a cat\n")
    with pytest.raises(ValueError, match="1 of 2 clips have no caption, the first is clip 2"):
        read(folder)
    (folder / "b.txt").write_text("a\n dog")
    assert read(folder) == ["a cat", "a dog"]
    (folder / "metadata.csv").write_text("text,file_name\na car,b.npz\na bus,a.npz\n")
    assert read(folder) == ["a bus", "a car"]
    (tmp_path / "list.txt").write_text("one\ntwo\n")
    assert read(folder, str(tmp_path / "list.txt")) == ["one", "two"]


def test_captions_without_clips_are_told(folder, tmp_path):
    (tmp_path / "list.txt").write_text("one\ntwo\nthree\n")
    with pytest.raises(ValueError, match="3 captions for 2 clips"):
        read(folder, str(tmp_path / "list.txt"))
    (folder / "metadata.csv").write_text("file_name,text\na.npz,one\nb.npz,two\nc.npz,three\n")
    with pytest.raises(ValueError, match=r"captions without videos: 1 of 3 rows .* c\.npz"):
        read(folder)


def test_a_text_beside_an_array_of_clips_is_the_caption_of_none(folder):
    np.savez(folder / "a.npz", np.zeros((2, 2, 16, 16, 3), np.uint8))
    for name in ("a", "b"):
        (folder / f"{name}.txt").write_text("a cat\na dog\n")
    assert read(folder) is None
    rows = "a.npz:000000,a cat\na.npz:000001,a dog\nb.npz,a bus\n"
    (folder / "metadata.csv").write_text(f"file_name,text\n{rows}")
    assert read(folder) == ["a cat", "a dog", "a bus"]
