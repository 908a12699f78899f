"""Which readers give the right frames of files that are awkward: clips from the whole length each.

The files are drawn with their frame numbers in the frames. A video in avi has one time stamp a
frame, which tells its place in the file and not that on screen; a raw stream has none.
"""

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from data import NUM_FRAMES, Reader, readers_here
from numbered import LENGTH, RATE, Video, is_right, write_numbered

SIZE = (120, 160)
FILES = {  # name: file, codec, B-frames
    "H.264, mp4": ("a.mp4", "libx264", 2),
    "H.264, mkv": ("a.mkv", "libx264", 2),
    "H.264, ts": ("a.ts", "libx264", 2),
    "H.264 with B-frames, avi": ("b.avi", "libx264", 2),
    "H.264, raw": ("a.h264", "libx264", 2),
    "MPEG-4, avi": ("a.avi", "mpeg4", 0),
    "MPEG-4 with B-frames, avi": ("c.avi", "mpeg4", 2),
}


def outcomes(reader: Reader, video: Video) -> str:
    """Count clips that are right, wrong, and refused with an error."""
    counts: Counter[str] = Counter()
    for start in range(0, video.num_frames - NUM_FRAMES, 20):
        try:
            right = is_right(video, start, reader(video, start, NUM_FRAMES))
        except Exception:  # each library has errors of its own
            counts["refused"] += 1
        else:
            counts["right" if right else "wrong"] += 1
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))


def main() -> None:
    torch.set_num_threads(1)
    readers = readers_here()
    print(f"| | {' | '.join(readers)} |\n|{'---|' * (len(readers) + 1)}")
    with TemporaryDirectory() as folder:
        for name, (file, codec, b_frames) in FILES.items():
            path = Path(folder) / file
            write_numbered(path, *SIZE, codec, 12, b_frames)
            video = Video(str(path), SIZE, LENGTH, RATE, None)
            row = (outcomes(reader, video) for reader in readers.values())
            print(f"| {name} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
