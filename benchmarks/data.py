"""Clips a CPU second from video files: our reader beside other decoders and the ffmpeg program.

Every reader opens the file anew for each clip, decodes in one thread and by exact frame numbers,
and gives RGB, one plane after the other as batches need it; all but ours, which has that built in,
are brought to size and order here. CPU seconds also count on a busy machine, if less exactly.
Generated files have their frame numbers drawn into the frames; of given ones each frame is compared
with what decoding from the start gives. A reader that gives a wrong frame is shown as such.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from multiprocessing import active_children
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from einops import rearrange
from jaxtyping import UInt8
from numbered import LENGTH, RATE, Video, given, is_right, write_numbered
from torch import Tensor
from tqdm import tqdm

from cmdvid.data.datamodule import VideoDataModule
from cmdvid.data.index import VideoFolder
from cmdvid.frames import resize_and_crop
from cmdvid.video import ClipSpec, read_clip

NUM_FRAMES = 16
KINDS = {  # name: codec, key frames so far apart
    "H264-gop250.mp4": ("libx264", 250),
    "H264-gop16.mp4": ("libx264", 16),
    "MPEG4-gop12.avi": ("mpeg4", 12),
}


Reader = Callable[[Video, int, int], UInt8[Tensor, "l h w c"]]


def cmdvid_reader(video: Video, start: int, count: int) -> UInt8[Tensor, "l h w c"]:
    position = (start + 0.5) / (video.num_frames - count + 1)
    return rearrange(
        read_clip(video.path, ClipSpec(count, video.size), position), "c l h w -> l h w c"
    )


def torchcodec_reader(video: Video, start: int, count: int) -> UInt8[Tensor, "l h w c"]:
    from torchcodec.decoders import VideoDecoder  # type: ignore[import-not-found]

    decoder = VideoDecoder(video.path, num_ffmpeg_threads=1, dimension_order="NHWC")
    return decoder.get_frames_in_range(start, start + count).data


def decord_reader(video: Video, start: int, count: int) -> UInt8[Tensor, "l h w c"]:
    import decord  # type: ignore[import-not-found]

    reader = decord.VideoReader(video.path, num_threads=1)
    return torch.from_numpy(reader.get_batch(range(start, start + count)).asnumpy())


def opencv_reader(video: Video, start: int, count: int) -> UInt8[Tensor, "l h w c"]:
    import cv2  # type: ignore[import-not-found]

    capture = cv2.VideoCapture(video.path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    capture.set(cv2.CAP_PROP_POS_FRAMES, start)
    frames = [cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB) for _ in range(count)]
    return torch.from_numpy(np.stack(frames))


READERS: dict[str, Reader] = {
    "cmdvid": cmdvid_reader,
    "torchcodec": torchcodec_reader,
    "decord": decord_reader,
    "OpenCV": opencv_reader,
}


def cpu_seconds(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """What this thread takes, the better of two times: other processes only make it slower."""
    best = float("inf")
    for _ in range(2):
        start = time.process_time()
        result = work()
        best = min(best, time.process_time() - start)
    return best, result


def read_at_size(
    reader: Reader, video: Video, start: int, count: int, size: tuple[int, int]
) -> UInt8[Tensor, "3 l h w"]:
    frames = reader(video._replace(size=size), start, count)
    sized = resize_and_crop(rearrange(frames, "l h w c -> l c h w"), size)
    return rearrange(sized, "l c h w -> c l h w").contiguous()


def rate_of(
    reader: Reader, clips: list[tuple[Video, int, int]], size: tuple[int, int] | None
) -> tuple[float, int]:
    """Frames a CPU second, and clips with a wrong frame; the first clip loads libraries before."""
    read_at_size(reader, *clips[0], size or clips[0][0].size)
    total, wrong = 0.0, 0
    for video, start, count in clips:
        wanted = partial(read_at_size, reader, video, start, count, size or video.size)
        seconds, frames = cpu_seconds(wanted)
        total += seconds
        wrong += not is_right(video, start, rearrange(frames, "c l h w -> l h w c"))
    return sum(count for _, _, count in clips) / total, wrong


def ffmpeg_seconds(video: Video, passes: int, options: list[str]) -> float:
    """CPU seconds of the program for decoding a whole video so often, to nothing."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = ["ffmpeg", "-v", "error", "-threads", "1", "-filter_threads", "1"]
    command += ["-stream_loop", str(passes - 1), "-i", video.path, "-an", *options]
    subprocess.run([*command, "-f", "null", "-"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def limit(video: Video, *options: str) -> float:
    """Frames a CPU second of the ffmpeg program, without its start."""
    passes = 1 + max(2, 1500 // video.num_frames)
    once = min(ffmpeg_seconds(video, 1, list(options)) for _ in range(2))
    often = min(ffmpeg_seconds(video, passes, list(options)) for _ in range(2))
    return (passes - 1) * video.num_frames / max(often - once, 1e-3)


def data_module_rate(videos: list[Video], folder: Path, size: tuple[int, int] | None) -> float:
    """Clips a CPU second of one worker of the whole data module, from the files to batches."""
    folder.mkdir()
    for copy in range(24):
        source = Path(videos[copy % len(videos)].path)
        (folder / f"{copy:02d}{source.suffix}").symlink_to(source.absolute())
    spec = ClipSpec(NUM_FRAMES, size or videos[0].size)
    data = VideoDataModule(VideoFolder(str(folder)), spec=spec, batch_size=4, num_workers=1)
    batches = iter(data.train_dataloader())
    next(batches)
    (worker,) = active_children()
    used = partial(worker_seconds, worker.pid or 0)
    start = used()
    clips = sum(len(batch.clip) for batch in batches)
    return clips / (used() - start)


def worker_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def readers_here() -> dict[str, Reader]:
    """The readers that can be imported; the others are named on stderr."""
    modules = {"cmdvid": "cmdvid", "torchcodec": "torchcodec", "decord": "decord", "OpenCV": "cv2"}
    found = {name: READERS[name] for name, module in modules.items() if find_spec(module)}
    if missing := sorted(set(READERS) - set(found)):
        print(f"not installed, left out: {', '.join(missing)}", file=sys.stderr)
    return found


def head(heading: str, columns: list[str]) -> None:
    print(f"\n{heading}\n\n| | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}", flush=True)


def measured(
    readers: dict[str, Reader],
    clips: list[tuple[Video, int, int]],
    size: tuple[int, int] | None,
    per: int,
) -> list[str]:
    """Each reader's rate in units of ``per`` frames."""
    row = []
    for reader in readers.values():
        rate, wrong = rate_of(reader, clips, size)
        row.append(f"{rate / per:.1f}" + (f" ({wrong} of {len(clips)} wrong)" if wrong else ""))
    return row


def report(groups: dict[str, list[Video]], num_clips: int, folder: Path) -> None:
    """Print the tables: random clips in both sizes with the data module, then whole videos."""
    readers = readers_here()
    for size in (None, (256, 256)):
        shown = "as stored" if size is None else f"of {size[1]}x{size[0]}"
        heading = f"Clips of {NUM_FRAMES} frames {shown}, a CPU second"
        head(heading, [*readers, "data module"])
        rng = np.random.default_rng(0)
        for name, videos in tqdm(groups.items(), desc=heading):
            chosen = [videos[i % len(videos)] for i in range(num_clips)]
            starts = [int(rng.integers(video.num_frames - NUM_FRAMES + 1)) for video in chosen]
            clips = [(v, start, NUM_FRAMES) for v, start in zip(chosen, starts, strict=True)]
            row = measured(readers, clips, size, NUM_FRAMES)
            there = folder / f"{name.replace(' ', '-')}-{size is None}"
            row.append(f"{data_module_rate(videos, there, size):.1f}")
            print(f"| {name} | {' | '.join(row)} |", flush=True)
    head("Whole videos, frames a CPU second", [*readers, "ffmpeg", "ffmpeg to RGB"])
    for name, videos in tqdm(groups.items(), desc="whole videos"):
        row = measured(readers, [(videos[0], 0, videos[0].num_frames)], None, 1)
        row += [f"{limit(videos[0]):.0f}", f"{limit(videos[0], '-pix_fmt', 'rgb24'):.0f}"]
        print(f"| {name} | {' | '.join(row)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--given", nargs="*", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--clips", type=int, default=6, help="random clips of each kind")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as made:
        groups = {}
        for height, width in ((240, 320), (720, 1280)):
            for kind, (codec, gop) in KINDS.items():
                path = Path(made) / f"{width}x{height}-{kind}"
                write_numbered(path, height, width, codec, gop)
                name = f"drawn, {width}x{height}, {kind.split('.')[0]}"
                groups[name] = [Video(str(path), (height, width), LENGTH, RATE, None)]
        for name, _, root in (pair.partition("=") for pair in args.given):
            groups[name] = [given(Path(entry.path)) for entry in VideoFolder(root).entries[:6]]
        report(groups, args.clips, Path(made))


if __name__ == "__main__":
    main()
