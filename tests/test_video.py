"""Clips from real files: the right frames, upright, in the right colours; bad files are named."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from cmdvid import video
from cmdvid.video import ClipSpec, VideoError, frame_size, read_clip, write_clip


def numbered(num_frames, height=48, width=64):
    """Frames whose grey tells their number, with a dark left third to show orientation."""
    frames = np.zeros((num_frames, height, width, 3), np.uint8)
    frames[:, :, width // 3 :] = (20 + 4 * np.arange(num_frames))[:, None, None, None]
    return frames


def numbers(clip):
    """Read the numbers back from the clip's right edge."""
    grey = clip[:, :, :, -clip.shape[-1] // 4 :].float().mean((0, 2, 3))
    return ((grey - 20) / 4).round().int().tolist()


def write(
    path, frames, codec="libx264", pix_fmt="yuv420p", rate=25, gop=12, b_frames=2, pts=None, x264=""
):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pix_fmt
        stream.gop_size, stream.max_b_frames = gop, b_frames
        if codec == "libx264":
            stream.options = {"crf": "10"} | ({"x264-params": x264} if x264 else {})
        if codec == "mpeg4":
            stream.bit_rate = 4_000_000
        stream.codec_context.time_base = Fraction(1, 1000) if pts else Fraction(1, rate)
        for i, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts = pts[i] if pts else i
            frame.time_base = stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


SIZE = (24, 32)
SPEC = ClipSpec(num_frames=8, image_size=SIZE)


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (121, 161)])
def test_a_clip_survives_writing_and_reading(tmp_path, size):
    ramp = torch.linspace(-0.8, 0.8, size[1]).expand(3, 6, *size).clone()
    ramp[0] *= -1
    write_clip(tmp_path / "new" / "clip.mp4", ramp, fps=12.5)
    even = (size[0] + size[0] % 2, size[1] + size[1] % 2)
    clip = read_clip(tmp_path / "new" / "clip.mp4", ClipSpec(6, even))
    assert clip.dtype == torch.uint8
    error = clip[:, :, : size[0], : size[1]].float() / 127.5 - 1 - ramp
    assert error.abs().mean() < 0.02
    assert error.mean((1, 2, 3)).abs().max() < 2 / 127.5  # FFmpeg's conversions round down


def test_uint8_and_float_clips_give_the_same_video(tmp_path):
    clip = torch.randint(0, 256, (3, 4, 32, 48), dtype=torch.uint8)
    write_clip(tmp_path / "a.mp4", clip)
    write_clip(tmp_path / "b.mp4", clip.float() / 127.5 - 1)
    spec = ClipSpec(4, (32, 48))
    a, b = (read_clip(tmp_path / name, spec).float() for name in ("a.mp4", "b.mp4"))
    assert (a - b).abs().mean() < 0.5  # not the same bytes: x264's assembly rounds as it likes


@pytest.mark.parametrize(
    ("name", "codec", "b_frames"),
    [
        ("a.mp4", "libx264", 2),
        ("a.mkv", "libx264", 2),  # counts 0 frames in its header, rounds stamps to 1 ms
        ("a.ts", "libx264", 2),  # starts at a late time, seeks by decoding time
        ("a.avi", "mpeg4", 0),  # as UCF-101
        ("b.avi", "mpeg4", 2),
        ("c.avi", "libx264", 2),  # frames leave the decoder stamped 1, 3, 4, 2, as packed B-frames
        ("a.h264", "libx264", 2),  # no stamps at all
        ("a.webm", "libvpx-vp9", 0),
    ],
)
def test_the_window_holds_the_right_frames(tmp_path, name, codec, b_frames):
    path = write(tmp_path / name, numbered(40), codec, b_frames=b_frames)
    for start in range(0, 33, 4):
        clip = read_clip(path, SPEC, position=(start + 0.5) / 33)
        assert numbers(clip) == list(range(start, start + 8)), start
    assert numbers(read_clip(path, SPEC, 0)) == list(range(8))
    assert numbers(read_clip(path, SPEC, 1)) == list(range(32, 40))
    for start in range(40):  # no frame after it that could tell a false stamp
        assert numbers(read_clip(path, ClipSpec(1, SIZE), (start + 0.5) / 40)) == [start]
    strided = ClipSpec(num_frames=4, image_size=SIZE, stride=5)
    assert numbers(read_clip(path, strided, 0.5)) == [12, 17, 22, 27]


def test_a_late_window_is_reached_by_seeking(tmp_path):
    path = write(tmp_path / "a.avi", numbered(48), "mpeg4", b_frames=0)
    data = bytearray(path.read_bytes())
    first = data.index(b"movi")
    # frames 2 to 10 destroyed: whoever decodes all frames stumbles
    chunks = [i for i in range(first, len(data) - 4) if data[i : i + 4] == b"00dc"][2:10]
    for chunk in chunks:
        length = struct.unpack_from("<I", data, chunk + 4)[0]
        data[chunk + 8 : chunk + 8 + length] = bytes(length)
    path.write_bytes(data)
    assert numbers(read_clip(path, SPEC, 1)) == list(range(40, 48))


def test_frames_before_the_window_that_no_other_needs_are_not_decoded(tmp_path):
    # without these x264 finds that frames of one colour need no B-frames
    path = write(tmp_path / "a.mp4", numbered(48), gop=48, x264="b-adapt=0:scenecut=0")
    spec = ClipSpec(8, (48, 64))
    whole = read_clip(path, spec, 1)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    early = sorted(packets, key=lambda packet: packet.pts)[:30]
    data = bytearray(path.read_bytes())
    # four bytes of length, then a type whose middle bits tell whether a frame is needed by others
    places = [(p.pos + 5, p.pos + p.size) for p in early[1:] if not data[p.pos + 4] & 0x60]
    assert len(places) > 5
    for begin, end in places:
        data[begin:end] = bytes(end - begin)
    path.write_bytes(data)
    assert torch.equal(read_clip(path, spec, 1), whole)


def test_fps_follows_the_time_stamps_of_a_variable_rate(tmp_path):
    # one second at 20 fps, then two seconds at 10, then one at 20
    pts = [*range(0, 1000, 50), *range(1000, 3000, 100), *range(3000, 4000, 50)]
    path = write(tmp_path / "vfr.mp4", numbered(60), pts=pts)
    spec = ClipSpec(num_frames=16, image_size=SIZE, fps=5)
    assert [pts[n] for n in numbers(read_clip(path, spec, 0))] == list(range(0, 3200, 200))
    # at 20 fps the slow part shows each of its frames twice
    spec = ClipSpec(num_frames=8, image_size=SIZE, fps=20)
    start = pts.index(1000)
    clip = read_clip(path, spec, position=1000 / (pts[-1] - 350))
    assert numbers(clip) == [start, start, start + 1, start + 1, *[start + 2] * 2, *[start + 3] * 2]


def test_fps_is_right_where_the_container_rounds_time_stamps(tmp_path):
    path = write(tmp_path / "a.mkv", numbered(45), rate=30)  # 33, 67, 100 ms
    spec = ClipSpec(num_frames=15, image_size=SIZE, fps=15)
    assert numbers(read_clip(path, spec, 0)) == list(range(0, 30, 2))
    spec = ClipSpec(num_frames=30, image_size=SIZE, fps=30)
    assert numbers(read_clip(path, spec, 0)) == list(range(30))


@pytest.mark.parametrize(
    ("matrix", "turns"),
    [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1), ((0.8, 0.6, -0.6, 0.8), 0)],
)
def test_frames_are_turned_upright(tmp_path, matrix, turns):
    path = write(tmp_path / "a.mp4", numbered(8))
    plain = read_clip(path, ClipSpec(8, (48, 64)))
    data = bytearray(path.read_bytes())
    # the first of these matrices is what a phone held upright writes: turn clockwise to view
    a, b, c, d = (int(x * 65536) for x in matrix)
    struct.pack_into(">9i", data, data.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    size = (64, 48) if turns % 2 else (48, 64)
    turned = read_clip(path, ClipSpec(8, size))
    assert torch.equal(turned, torch.rot90(plain, turns, dims=(2, 3)))


@pytest.mark.parametrize(
    ("pix_fmt", "codec", "suffix"),
    [
        ("yuv420p", "libx264", "mp4"),
        ("yuvj420p", "mjpeg", "avi"),  # full range
        ("yuv422p", "libx264", "mp4"),
        ("yuv444p", "libx264", "mp4"),
        ("yuv420p10le", "libx265", "mp4"),
        ("rgb24", "libx264rgb", "mp4"),  # decodes to planar gbrp
        ("rgb24", "png", "mov"),
        ("rgba", "png", "mov"),
        ("yuva420p", "ffv1", "mkv"),
        ("pal8", "gif", "gif"),
    ],
)
def test_every_pixel_format_gives_full_range_rgb(tmp_path, pix_fmt, codec, suffix):
    colours = [(255, 255, 255), (0, 0, 0), (230, 30, 20), (20, 40, 220)]
    frames = np.zeros((4, 36, 96, 3), np.uint8)
    for i, colour in enumerate(colours):
        frames[:, :, 24 * i : 24 * i + 24] = colour
    if pix_fmt == "pal8":
        pix_fmt = "rgb8"  # what the encoder takes; the file has a palette
    path = write(tmp_path / f"a.{suffix}", frames, codec, pix_fmt, gop=4, b_frames=0)
    clip = read_clip(path, ClipSpec(4, (36, 96))).float()
    tolerance = 40 if codec == "gif" else 8  # 8 bits a pixel
    for i, colour in enumerate(colours):
        middle = clip[:, :, 6:30, 24 * i + 6 : 24 * i + 18].mean((1, 2, 3))
        assert (middle - torch.tensor(colour)).abs().max() < tolerance, (colour, middle)


def test_the_size_is_read_from_the_header(tmp_path):
    assert frame_size(write(tmp_path / "a.mp4", numbered(2))) == (48, 64)
    with pytest.raises(VideoError, match="cannot be read"):
        frame_size(tmp_path / "none.mp4")


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p"])
@pytest.mark.parametrize("height", [47, 48])
@pytest.mark.parametrize("width", [64, 66, 72, 74])
def test_frames_that_are_only_cropped_have_the_pixels_of_packed_rgb(
    tmp_path, width, height, pix_fmt
):
    """FFmpeg's planar conversion, which is quicker, is wrong at some of these sizes."""
    coarse = np.random.default_rng(0).integers(0, 256, (4, 12, 19, 3), dtype=np.uint8)
    frames = coarse.repeat(4, axis=1).repeat(4, axis=2)[:, :height, :width]
    path = write(tmp_path / "a.mkv", np.ascontiguousarray(frames), "ffv1", pix_fmt, b_frames=0)
    with av.open(str(path)) as container:
        decoded = [
            frame.reformat(format="rgb24", dst_color_range="JPEG").to_ndarray()
            for frame in container.decode(video=0)
        ]
    packed = torch.from_numpy(np.stack(decoded)).permute(3, 0, 1, 2)
    assert torch.equal(read_clip(path, ClipSpec(4, (height, width))), packed)
    left = (width - 32) // 2
    assert torch.equal(read_clip(path, ClipSpec(4, (height, 32))), packed[..., left : left + 32])


def test_odd_sizes_are_not_sheared(tmp_path):
    frames = np.zeros((4, 121, 161, 3), np.uint8)
    frames[:, :, 80:] = 200
    frames[:, :60, :, 0] = 150
    path = write(tmp_path / "a.mkv", frames, "ffv1", "yuv444p", b_frames=0)
    clip = read_clip(path, ClipSpec(4, (121, 161)))
    assert (clip.float() - torch.from_numpy(frames).permute(3, 0, 1, 2)).abs().max() <= 4


def test_damage_in_mid_file_leaves_the_frames_before_it(tmp_path):
    path = write(tmp_path / "cut.avi", numbered(40), "mpeg4", b_frames=0)
    data = path.read_bytes()
    chunks = [i for i in range(len(data)) if data[i : i + 4] == b"00dc"]
    path.write_bytes(data[: chunks[25] + 12])  # the header still promises 40 frames
    clip = read_clip(path, SPEC, 1)
    assert numbers(clip)[0] < 32
    assert numbers(clip) == list(range(numbers(clip)[0], numbers(clip)[0] + 8))
    with pytest.raises(VideoError, match=r"cut.avi: a clip of 39 frames .* but the video has \d+"):
        read_clip(path, ClipSpec(39, SIZE))


def destroy(path, chunks):
    """Zero some frames of an avi, which its index still lists."""
    data = bytearray(path.read_bytes())
    first = data.index(b"movi")
    starts = [i for i in range(first, len(data) - 4) if data[i : i + 4] == b"00dc"]
    for chunk in starts[chunks]:
        length = struct.unpack_from("<I", data, chunk + 4)[0]
        data[chunk + 8 : chunk + 8 + length] = bytes(length)
    path.write_bytes(data)


def test_it_is_told_how_many_frames_damage_has_cost(tmp_path):
    path = write(tmp_path / "a.avi", numbered(40), "mpeg4", b_frames=0)
    destroy(path, slice(20, 40))
    said = []
    assert numbers(read_clip(path, SPEC, 0, notice=said.append)) == list(range(8))
    assert not said  # all of this clip is good
    clip = read_clip(path, SPEC, 1, notice=said.append)
    assert numbers(clip) == list(range(12, 20))
    assert said == [f"{path}: damaged, 20 of 40 frames are lost; the clip is of the others"]
    with pytest.raises(VideoError, match="the video has 20 and 20 damaged ones"):
        read_clip(path, ClipSpec(24, SIZE))


@pytest.mark.parametrize("name", ["a.mp4", "a.h264"])
def test_a_short_video_stands_still_at_its_end_if_that_is_asked_for(tmp_path, name):
    path = write(tmp_path / name, numbered(5))
    said = []
    for position in (0, 0.5, 1):
        spec = ClipSpec(8, SIZE, repeat_last=True)
        clip = read_clip(path, spec, position, notice=said.append)
        assert numbers(clip) == [0, 1, 2, 3, 4, 4, 4, 4]
    assert said == [f"{path}: shorter than a clip (5 frames), its last frame is repeated"] * 3
    strided = ClipSpec(4, SIZE, stride=2, repeat_last=True)
    assert numbers(read_clip(path, strided)) == [0, 2, 4, 4]
    timed = ClipSpec(5, SIZE, fps=12.5, repeat_last=True)
    assert numbers(read_clip(path, timed)) == [0, 2, 4, 4, 4]
    said.clear()
    assert numbers(read_clip(path, ClipSpec(5, SIZE, repeat_last=True), notice=said.append)) == [
        *range(5)
    ]
    assert not said


def test_interlaced_frames_are_taken_as_they_are(tmp_path):
    """Both fields in one frame, whatever the file says, so that all files are read alike."""
    frames = numbered(8)
    frames[:, ::2] //= 2  # lines of the other field
    clips = []
    for options in ({"qp": "0"}, {"qp": "0", "x264-params": "interlaced=1"}):
        path = tmp_path / f"{len(options)}.mkv"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25, options=options)
            stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv444p"
            for array in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
            container.mux(stream.encode())
        clips.append(read_clip(path, ClipSpec(8, (48, 64))))
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).interlaced_frame
    assert torch.equal(*clips)
    lines = clips[0].float().mean((0, 1, 3))
    assert (lines[1::2] > 1.5 * lines[::2]).all()


def write_audio(path, cover=None):
    with av.open(str(path), "w") as container:
        audio = container.add_stream("mp3" if path.suffix == ".mp3" else "aac", rate=44100)
        if cover is not None:
            picture = container.add_stream("png")
            picture.width, picture.height, picture.pix_fmt = 32, 32, "rgb24"
            picture.disposition = av.stream.Disposition.attached_pic
            container.mux(picture.encode(av.VideoFrame.from_ndarray(cover, format="rgb24")))
        for _ in range(20):
            sound = av.AudioFrame.from_ndarray(np.zeros((2, 1152), np.float32), "fltp", "stereo")
            sound.sample_rate = 44100
            container.mux(audio.encode(sound))
        container.mux(audio.encode())


def lying(path):
    """A file whose frames are all there by its index, while none decodes."""
    data = bytearray(write(path, numbered(20)).read_bytes())
    start = data.index(b"mdat") + 4
    stop = data.index(b"moov") - 4
    data[start:stop] = bytes(stop - start)
    path.write_bytes(data)


def bomb(path, size=9000):
    """A few kilobytes that claim frames of many megapixels."""
    write(path.with_suffix(".gif"), numbered(8), "gif", "rgb8", gop=8, b_frames=0)
    data = bytearray(path.with_suffix(".gif").read_bytes())
    struct.pack_into("<HH", data, 6, size, size)
    path.write_bytes(data)


BAD_FILES = {
    "missing": (lambda path: None, "cannot be read .No such file"),
    "folder": (lambda path: path.mkdir(), "cannot be read"),
    "empty": (lambda path: path.write_bytes(b""), "the file is empty"),
    "noise": (lambda path: path.write_bytes(bytes(range(256)) * 99), "cannot be read as video"),
    "lfs": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "LFS"),
    "html": (lambda path: path.write_text("\n<!DOCTYPE html><p>404"), "an HTML or XML page"),
    "playlist": (lambda path: path.write_text("#EXTM3U\nhttp://localhost/a.ts\n"), "a playlist"),
    "cut": (
        lambda path: path.write_bytes(write(path, numbered(20)).read_bytes()[:600]),
        "cannot be read as video",
    ),
    "audio": (write_audio, r"no video stream \(found: audio\)"),
    "lying": (lying, "no frame can be decoded"),
    "bomb": (bomb, "frames of 9000x9000 pixels are too large, the limit is 67108864 pixels"),
    "larger bomb": (  # FFmpeg's own refusal
        lambda path: bomb(path, 60000),
        "a huge one are too large, the limit is 67108864 pixels",
    ),
    "short": (lambda path: write(path, numbered(7)), "spans 8 frames, but the video has 7"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_named_with_its_reason(tmp_path, kind):
    make, reason = BAD_FILES[kind]
    path = tmp_path / "bad.mp4"
    make(path)
    with pytest.raises(VideoError, match=rf"bad\.mp4: .*{reason}"):
        read_clip(path, SPEC)


def test_a_cover_picture_is_no_video(tmp_path):
    write_audio(tmp_path / "a.mp3", cover=np.zeros((32, 32, 3), np.uint8))
    with av.open(str(tmp_path / "a.mp3")) as container:
        assert len(container.streams.video) == 1
    with pytest.raises(VideoError, match="no video stream"):
        read_clip(tmp_path / "a.mp3", ClipSpec(1, SIZE))


def test_too_short_for_the_frame_rate_says_seconds(tmp_path):
    path = write(tmp_path / "a.mp4", numbered(20))
    with pytest.raises(VideoError, match=r"16 frames at 4.* lasts 3.75 s, .* last 0.76 s"):
        read_clip(path, ClipSpec(16, SIZE, fps=4))


def test_metadata_that_is_not_utf8_does_not_matter(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        container.metadata["title"] = "TITLE"
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for array in numbered(8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode())
    data = (tmp_path / "a.mp4").read_bytes()
    assert b"TITLE" in data
    (tmp_path / "a.mp4").write_bytes(data.replace(b"TITLE", b"\xff\xfe\xe4\xc3("))
    assert numbers(read_clip(tmp_path / "a.mp4", SPEC)) == list(range(8))


def test_pyav_19_is_opened_without_the_argument_that_it_lost(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", numbered(8))

    def open_19(file, mode=None, *, options=None):
        return av_open(file, mode, options=options)

    av_open = av.open
    monkeypatch.setattr(video.av, "open", open_19)
    monkeypatch.setattr(video.av, "__version__", "19.0.2")
    assert numbers(read_clip(path, SPEC)) == list(range(8))


def test_pixels_are_taken_as_square(tmp_path):
    """Whatever the file says of them, so that all files are read alike."""
    clips = []
    for aspect in (1, 2):
        path = tmp_path / f"{aspect}.mkv"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"qp": "0"})
            stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv444p"
            stream.codec_context.sample_aspect_ratio = Fraction(aspect)
            for array in numbered(8):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
            container.mux(stream.encode())
        clips.append(read_clip(path, SPEC))
    with av.open(str(path)) as container:
        assert container.streams.video[0].sample_aspect_ratio == 2
    assert torch.equal(*clips)


def test_of_several_video_streams_the_first_is_read(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        streams = [container.add_stream("libx264", rate=25) for _ in range(2)]
        for stream, size in zip(streams, [(48, 64), (96, 128)], strict=True):
            stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for array in numbered(10):
            container.mux(streams[0].encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
            white = np.full((96, 128, 3), 255, np.uint8)
            container.mux(streams[1].encode(av.VideoFrame.from_ndarray(white, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode())
    assert numbers(read_clip(tmp_path / "a.mkv", SPEC, 0)) == list(range(8))


@pytest.mark.parametrize("name", ["a:b & 'ü'.mp4", "-x.mp4", "http:x.mp4", "%03d.mp4"])
def test_any_file_name_will_do(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clip(name, torch.zeros(3, 8, 24, 32))
    assert read_clip(name, SPEC).shape == (3, 8, *SIZE)
