import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image

from cmdvid.data.clip_folder import ClipFolder
from cmdvid.video import write_clip

L, H, W = 4, 24, 32


@pytest.fixture
def clips():
    """Three clips "3 l h w" that differ."""
    return torch.randint(0, 256, (3, 3, L, H, W), dtype=torch.uint8)


def read(folder, num_frames=L, size=(H, W)):
    return ClipFolder(folder, num_frames=num_frames, image_size=size)


def frames_of(clip):
    return rearrange(clip, "c l h w -> l h w c").numpy()


def write_pictures(clip, name):
    for i, frame in enumerate(frames_of(clip)):
        path = name(i)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame).save(path)


def test_pictures_in_folders_or_numbered_are_the_same_clips(clips, tmp_path):
    for n, clip in enumerate(clips):
        write_pictures(clip, lambda i, n=n: tmp_path / "folders" / f"clip {n}" / f"{i + 8}.png")
        write_pictures(clip, lambda i, n=n: tmp_path / "numbered" / f"{n}_{i + 8}.png")
    for kind in ("folders", "numbered"):
        found = read(tmp_path / kind)
        assert len(found) == 3
        for n, clip in enumerate(clips):  # 9 before 10, whatever the letters say
            assert torch.equal(found[n].clip, clip)
    assert read(tmp_path / "folders").names == ["clip 0", "clip 1", "clip 2"]
    assert read(tmp_path / "numbered").names == ["0", "1", "2"]


def test_arrays_hold_one_clip_or_several(clips, tmp_path):
    several = rearrange(clips, "n c l h w -> n l h w c").numpy()
    np.savez(tmp_path / "a.npz", several[:2])
    np.savez_compressed(tmp_path / "b.npz", clip=several[2])
    found = read(tmp_path)
    assert found.names == ["a.npz:000000", "a.npz:000001", "b.npz"]
    assert all(torch.equal(found[n].clip, clip) for n, clip in enumerate(clips))


def test_videos_are_read_from_their_first_frame_and_sheets_left_out(tmp_path):
    ramp = torch.linspace(-1, 1, 8)[None, :, None, None].expand(3, 8, H, W)
    for i in (10, 9):
        write_clip(tmp_path / f"{i}-a-clip.mp4", ramp)
    write_clip(tmp_path / "contact_sheet.mp4", torch.zeros(3, 2, 64, 64))
    Image.new("RGB", (W, H)).save(tmp_path / "9-a-clip-content.png")
    found = read(tmp_path)
    assert found.names == ["9-a-clip.mp4", "10-a-clip.mp4"]
    levels = found[0].clip.float().mean((0, 2, 3)) / 127.5 - 1
    torch.testing.assert_close(levels, ramp[0, :L, 0, 0], atol=0.05, rtol=0)


def test_frames_are_resized_as_those_of_real_videos(tmp_path):
    write_clip(tmp_path / "videos" / "clip.mp4", torch.rand(3, L, H, W) * 2 - 1)
    as_video = read(tmp_path / "videos")[0].clip
    np.savez(tmp_path / "clip.npz", frames_of(as_video))
    small = read(tmp_path / "videos", size=(12, 20))[0].clip
    assert torch.equal(read(tmp_path, size=(12, 20))[0].clip, small)
    assert small.shape == (3, L, 12, 20)


def test_bad_folders_are_told_apart(clips, tmp_path):
    with pytest.raises(ValueError, match="none: no such folder"):
        read(tmp_path / "none")
    with pytest.raises(ValueError, match="no clips in this folder or below; looked for videos"):
        read(tmp_path)
    np.savez(tmp_path / "0.npz", frames_of(clips[0]))
    with pytest.raises(ValueError, match=r"16 frames are needed, but 0\.npz has 4"):
        read(tmp_path, num_frames=16)
    np.savez(tmp_path / "1.npz", frames_of(clips[1])[:, :, :30])
    with pytest.raises(ValueError, match=r"one size, but 0\.npz has frames of 24x32 .* 24x30"):
        read(tmp_path)
    np.savez(tmp_path / "0.npz", frames_of(clips[0]).astype(np.float32) / 255)
    with pytest.raises(ValueError, match=r"RGB from 0 to 255; found 1 arrays, the first float32"):
        read(tmp_path)
    (tmp_path / "0.npz").write_bytes(b"no array")
    with pytest.raises(ValueError, match="no npz file"):
        read(tmp_path)


def test_short_or_damaged_videos_are_named(tmp_path):
    write_clip(tmp_path / "short.mp4", torch.zeros(3, 2, H, W))
    with pytest.raises(ValueError, match=r"short\.mp4: a clip of 4 frames .* the video has 2"):
        read(tmp_path)[0]
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty\.mp4: the file is empty"):
        read(tmp_path)
