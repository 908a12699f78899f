import numpy as np
import pytest
import torch

from cmdvid.data.clip_folder import ClipFolder
from cmdvid.data.index import UCF101, VideoFolder, WebVid
from cmdvid.data.msrvtt import MSRVTT
from cmdvid.data.real_source import check_sides, real_source
from cmdvid.video import ClipSpec, write_clip

SPEC = ClipSpec(2, (16, 16))


def video(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")


def webvid(folder, *names):
    for name in names:
        video(folder / "videos" / "0" / f"{name}.mp4")
        (folder / f"{name}.csv").write_text(f"videoid,page_dir,name\n{name},0,a caption\n")


def test_a_data_set_is_known_by_its_files(tmp_path):
    ucf = tmp_path / "ucf"
    video(ucf / "UCF-101" / "Biking" / "v_Biking_g01_c01.avi")
    (ucf / "ucfTrainTestlist").mkdir()
    (ucf / "ucfTrainTestlist" / "classInd.txt").write_text("1 Biking\n")
    (ucf / "ucfTrainTestlist" / "trainlist01.txt").write_text("Biking/v_Biking_g01_c01.avi 1\n")
    assert isinstance(real_source(str(ucf), SPEC, "train"), UCF101)
    with pytest.raises(ValueError, match="UCF-101 has the splits train and test, not val"):
        real_source(str(ucf), SPEC, "val")
    webvid(tmp_path / "web", "train", "val")
    found = real_source(str(tmp_path / "web"), SPEC, "val")
    assert isinstance(found, WebVid)
    assert found[0].path.endswith("val.mp4")
    with pytest.raises(ValueError, match=r"train.csv, val.csv all name videos, .* 'test'"):
        real_source(str(tmp_path / "web"), SPEC, "test")
    video(tmp_path / "msr" / "video1.mp4")
    (tmp_path / "msr" / "1k.csv").write_text("key,video_id,sentence\n0,video1,a cat\n")
    assert isinstance(real_source(str(tmp_path / "msr"), SPEC, "test"), MSRVTT)
    video(tmp_path / "plain" / "a" / "0.mp4")
    assert isinstance(real_source(str(tmp_path / "plain"), SPEC, "test"), VideoFolder)
    (tmp_path / "arrays").mkdir()
    np.savez(tmp_path / "arrays" / "a.npz", np.zeros((3, 2, 16, 16, 3), np.uint8))
    assert isinstance(real_source(str(tmp_path / "arrays"), SPEC, "test"), ClipFolder)
    with pytest.raises(ValueError, match="nowhere: no such folder of real videos"):
        real_source(str(tmp_path / "nowhere"), SPEC, "test")


def test_sides_that_are_the_same_or_exchanged_are_refused(tmp_path):
    webvid(tmp_path / "real", "val")
    made = tmp_path / "made"
    write_clip(made / "0.mp4", torch.zeros(3, 2, 16, 16))
    real, generated = str(tmp_path / "real"), str(made)
    check_sides(real, generated)
    for one, other in ((real, real), (real, f"{real}/videos"), (f"{real}/videos", real)):
        with pytest.raises(ValueError, match="must be in folders of their own"):
            check_sides(one, other)
    with pytest.raises(ValueError, match=r"real: looks like a data set.* exchanged\?"):
        check_sides(generated, real)
    (made / "contact_sheet.png").touch()
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match=r"made: holds contact_sheet.png.* exchanged\?"):
        check_sides(generated, str(tmp_path / "other"))
