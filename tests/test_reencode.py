"""Videos written anew look as before, keep their times, and are read from near key frames."""

import struct
import tracemalloc
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from cmdvid.container import VideoError, list_frames, opened_video
from cmdvid.reencode import reencode, video_info
from cmdvid.video import ClipSpec, read_clip


def write(path, num_frames=40, size=(96, 128), codec="libx264", pts=None):
    """A moving gradient whose brightness tells the frame, with few key frames."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(30000, 1001))
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.gop_size = 250
        base = Fraction(1, 1000) if pts else Fraction(1001, 30000)
        stream.codec_context.time_base = base
        image = np.zeros((*size, 3), np.uint8)
        image[..., 0] = np.linspace(0, 80, size[1])
        image[: size[0] // 2, ..., 1] = 60
        for i in range(num_frames):
            frame = av.VideoFrame.from_ndarray(image + np.uint8(3 * i), format="rgb24")
            frame.pts = pts[i] if pts else i
            frame.time_base = base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def psnr(a, b):
    return 10 * torch.log10(255**2 / (a.float() - b.float()).square().mean()).item()


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.avi", "mpeg4")])
def test_clips_look_as_before_at_every_place(tmp_path, name, codec):
    path = write(tmp_path / name, codec=codec)
    small = tmp_path / "small.mp4"
    small.write_bytes(reencode(str(path), short_side=48, gop=8).data)
    spec = ClipSpec(num_frames=8, image_size=(48, 64))
    for position in (0, 0.3, 0.7, 1):
        assert psnr(read_clip(small, spec, position), read_clip(path, spec, position)) > 35


def test_any_frame_is_near_a_key_frame_and_none_waits_for_a_later_one(tmp_path):
    path = write(tmp_path / "a.mp4")
    data = reencode(str(path), short_side=48, gop=8).data
    with opened_video(str(path)) as opened:
        assert list(list_frames(*opened).keys) == [0]
    with opened_video("small", data) as opened:
        keys = list(list_frames(*opened).keys)
        assert max(np.diff([*keys, 40])) <= 8
        assert opened[1].codec_context.has_b_frames == 0


def test_rate_and_times_are_kept(tmp_path):
    path = write(tmp_path / "a.mp4")
    info = video_info("small", reencode(str(path), short_side=48).data)
    assert info == (64, 48, 29.97, 40, 1.335)
    assert video_info(str(path)) == (128, 96, 29.97, 40, 1.335)
    pts = [*range(1000, 2000, 50), *range(2000, 4000, 100)]  # starts late, then runs slower
    varied = reencode(str(write(tmp_path / "b.mp4", pts=pts)), short_side=48).data
    with opened_video("varied", varied) as opened:
        seconds = list_frames(*opened).seconds
    assert seconds == pytest.approx([(stamp - 1000) / 1000 for stamp in pts], abs=1e-4)


def test_frames_are_upright_small_and_even(tmp_path):
    path = write(tmp_path / "a.mp4", num_frames=8, size=(98, 130))
    data = bytearray(path.read_bytes())  # as a phone writes it: turn clockwise to view
    matrix = (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, data.index(b"tkhd") + 44, *matrix)
    path.write_bytes(data)
    small = tmp_path / "small.mp4"
    small.write_bytes(reencode(str(path), short_side=48).data)
    assert video_info(str(small))[:2] == (48, 64)
    spec = ClipSpec(8, (64, 48))
    assert psnr(read_clip(small, spec), read_clip(path, spec)) > 30
    # never larger
    assert video_info("same", reencode(str(small), short_side=480).data)[:2] == (48, 64)


def test_frames_are_not_kept_in_memory(tmp_path):
    path = write(tmp_path / "a.mp4", num_frames=60, size=(192, 250))  # padded rows: copied
    tracemalloc.start()
    reencode(str(path), short_side=192)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * 192 * 250 * 3  # ten frames


def test_frames_before_damage_are_kept_and_none_at_all_is_an_error(tmp_path):
    path = write(tmp_path / "a.avi", codec="mpeg4")
    data = path.read_bytes()
    start, end = data.index(b"movi"), data.index(b"idx1")
    for cut in ((start + 3 * end) // 4, (start + end) // 2):
        small, frames_lost = reencode("cut", data[:cut], short_side=48)
        num_frames = video_info("cut", small).num_frames
        assert 1 < num_frames < 40
        assert frames_lost == 40 - num_frames  # though no packet of most of them is there
    assert reencode("whole", data, short_side=48).frames_lost == 0
    with pytest.raises(VideoError, match=r"text\.mp4: cannot be read as video"):
        reencode("text.mp4", b"no video at all", short_side=48)
    head = data[: data.index(b"movi") + 4]
    with pytest.raises(VideoError, match=r"head\.avi: "):
        reencode("head.avi", head, short_side=48)
    with pytest.raises(VideoError, match=r"head\.avi: "):
        video_info("head.avi", head)
