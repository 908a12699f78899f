"""What millions of captioned videos cost as WebVid's memory-mapped table, and as a Python list.

Writes a csv of synthetic rows in WebVid's format and random order, then measures each way in
processes of its own: the first use (for the table, its conversion), a later one, and workers of a
DataLoader that read rows at random.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from multiprocessing import active_children
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from torch.utils.data import DataLoader, Dataset, RandomSampler
from tqdm import tqdm

from cmdvid.data.index import WebVid
from cmdvid.data.tables import csv_rows
from cmdvid.types import VideoEntry

KINDS = {
    "table": "table, `check_files: false`",
    "checked": "table, files looked for",
    "list": "Python list, files not looked for",
}
HEADINGS = (
    "",
    "rows kept",
    "first use: CPU s (clock)",
    "later use: CPU s (clock)",
    "peak of first use, MiB",
    "process, MiB (without index)",
    "worker's own, MiB",
    "worker's share, MiB",
)
PAGES = 4000  # folders, as many as WebVid-10M has, about
WORDS = (
    "a",
    "young",
    "woman",
    "walking",
    "along",
    "the",
    "beach",
    "at",
    "sunset",
    "aerial",
    "view",
)
CHUNK = 10_000
SAMPLES = 200_000  # rows that all workers read together


class EntryList(Dataset[VideoEntry]):
    """The plain way: every row a Python object."""

    def __init__(self, path: str) -> None:
        videos = str(Path(path).parent / "videos")
        self.entries = [
            VideoEntry(f"{videos}/{page_dir}/{video_id}.mp4", name)
            for video_id, page_dir, name in csv_rows(Path(path), "videoid", "page_dir", "name")
        ]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> VideoEntry:
        return self.entries[index]


def write_csv(path: Path, num_rows: int) -> None:
    """Rows of WebVid's usual length: 13 words of caption, a long address."""
    rng = np.random.default_rng(0)
    captions = [" ".join(rng.choice(WORDS, 13)) for _ in range(CHUNK)]
    tails = [f"{said.replace(' ', '-')}.mp4" for said in captions]
    with path.open("w") as file, tqdm(total=num_rows, desc="csv") as bar:
        file.write("videoid,name,page_idx,page_dir,duration,contentUrl\n")
        for start in range(0, num_rows, CHUNK):
            pages = rng.integers(PAGES, size=CHUNK).tolist()
            rows = zip(range(start, num_rows), captions, pages, tails, strict=False)
            file.writelines(
                f"{row},{said} {row},{page * 50},{page_dir(page)},PT00H00M17S,"
                f"https://example.org/videos/{row}/preview/{tail}\n"
                for row, said, page, tail in rows
            )
            bar.update(min(CHUNK, num_rows - start))


def page_dir(page: int) -> str:
    return f"{page * 50 + 1:06d}_{page * 50 + 50:06d}"


def write_files(path: Path, num_files: int) -> None:
    """All page folders, and files of one byte for the first rows of the csv."""
    videos = path.parent / "videos"
    for page in range(PAGES):
        (videos / page_dir(page)).mkdir(parents=True, exist_ok=True)
    rows = csv_rows(path, "videoid", "page_dir")
    for _, (video_id, page) in zip(range(num_files), rows, strict=False):
        (videos / page / f"{video_id}.mp4").write_bytes(b"x")


def make(kind: str, path: str) -> Dataset[VideoEntry]:
    return EntryList(path) if kind == "list" else WebVid(path, check_files=kind == "checked")


def measure(kind: str, path: str, num_workers: int) -> dict[str, float]:
    """Seconds and MiB of one use, in this process and its workers."""
    found = {"before": memory("self")["Rss"]}
    start, start_cpu = time.perf_counter(), time.process_time()
    index = make(kind, path)
    found |= {"seconds": time.perf_counter() - start, "cpu": time.process_time() - start_cpu}
    found |= {"rows": len(index), "parent": memory("self")["Rss"]}  # type: ignore[arg-type]
    if num_workers:
        loader = DataLoader(
            index,
            batch_size=100,
            sampler=RandomSampler(index, replacement=True, num_samples=SAMPLES),  # type: ignore
            num_workers=num_workers,
            persistent_workers=True,
        )
        for _ in loader:
            pass
        workers = [memory(str(child.pid)) for child in active_children()]
        found["own"] = max(w["Private_Clean"] + w["Private_Dirty"] for w in workers)
        found["share"] = max(w["Pss"] for w in workers)
    return found | {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def memory(process: str) -> dict[str, float]:
    """What Linux says of a process's memory, in MiB by name."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}


def in_process(kind: str, path: Path, num_workers: int = 0) -> dict[str, float]:
    words = ["--measure", kind, "--csv", str(path), "--workers", str(num_workers)]
    command = [sys.executable, __file__, *words]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def report(path: Path, kinds: list[str], num_workers: int) -> None:
    """Print a Markdown table of all ways."""
    print(f"{path.stat().st_size / 1e9:.2f} GB of csv\n")
    print(f"| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}")
    for kind in kinds:
        first, later = in_process(kind, path), in_process(kind, path, num_workers)
        cells = [KINDS[kind], f"{later['rows']:,}"]
        cells += [f"{use['cpu']:.2f} ({use['seconds']:.2f})" for use in (first, later)]
        cells += [f"{first['peak']:.0f}", f"{later['parent']:.0f} ({later['before']:.0f})"]
        cells += [f"{later.get(key, float('nan')):.0f}" for key in ("own", "share")]
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_700_000)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--files", type=int, default=100_000, help="videos that are there")
    parser.add_argument("--out", help="folder for csv and table; by default one that is removed")
    parser.add_argument("--measure", choices=list(KINDS), help=argparse.SUPPRESS)
    parser.add_argument("--csv", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        return print(json.dumps(measure(args.measure, args.csv, args.workers)))
    with TemporaryDirectory(dir=args.out) as folder:
        path = Path(folder) / "rows.csv"
        write_csv(path, args.rows)
        if "checked" in args.kinds:
            write_files(path, args.files)
        report(path, args.kinds, args.workers)


if __name__ == "__main__":
    main()
