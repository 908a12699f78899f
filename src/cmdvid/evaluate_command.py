"""``cmdvid evaluate``: clips of any model from a folder, against real ones, by a protocol."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from torch import Tensor
from torch.utils.data import Subset

from cmdvid.data.clip_captions import read_captions
from cmdvid.data.clip_folder import ClipFolder
from cmdvid.data.real_source import check_sides, real_source
from cmdvid.data.sampling import sample_rows
from cmdvid.draws import draw, files_of
from cmdvid.evaluation import GENERATED, REAL
from cmdvid.evaluator import Evaluator, check_captions
from cmdvid.manifest import commit, versions
from cmdvid.protocols import Protocol, read_protocol
from cmdvid.report import Report, compare, log_scores, read_report
from cmdvid.report_html import Shown, write_page
from cmdvid.vectors import Weights

NUM_SHOWN = 12  # clips of each side on the page


def main(args: Sequence[str]) -> None:
    """Evaluate a folder, or compare two reports.

    Raises:
        ValueError: If the folders or the reports do not fit the protocol, or each other.
    """
    options: dict[str, Any] = {"allow_abbrev": False, "exit_on_error": False}
    if args[:1] != ["compare"]:
        auto_cli(evaluate, args=list(args), as_positional=False, prog="cmdvid evaluate", **options)
    elif len(args) != 3:
        raise ValueError(f"compare needs two reports or their folders, got {len(args) - 1}")
    else:
        print(compare(read_report(args[1]), read_report(args[2])))


def evaluate(  # one argument for each option
    generated: str,
    protocol: str,
    *,
    real: str | None = None,
    out: str = "runs/evaluate",
    captions: str | None = None,
    i3d: str = "i3d.pt",
    c3d: str = "c3d.pt",
    clip: str = "openai",
    cache: str | None = None,
    device: str | None = None,
    num_workers: int = 2,
) -> None:
    """Score generated clips against real ones; an interrupted run goes on where it was.

    Args:
        generated: Folder of the clips: videos, pictures in a folder for each clip, or npz.
        protocol: A preset, such as ucf101-2048, or a YAML file.
        real: Folder of the real videos: UCF-101, MSR-VTT or WebVid as published, or any videos.
        out: Folder of the report.
        captions: Text file with the caption of each generated clip, one a line, in the order of
            the clips' names. Without it captions stand in text files beside the clips, or in
            metadata.csv (file_name, text).
        i3d: I3D for FVD, TorchScript or state dict; a file, or URL#sha256=HASH.
        c3d: C3D for the Inception Score, TorchScript; a file, or URL#sha256=HASH.
        clip: CLIP for CLIPSIM, a tag of open_clip's or a file.
        cache: Folder where features of real clips are kept (default: ~/.cache/cmdvid/evaluation).
        device: Where networks run (default: the GPU if there is one).
        num_workers: Processes that read clips.
    """
    wanted, place = read_protocol(protocol), Path(out)
    if real is not None:
        check_sides(real, generated)
    elif wanted.needs_reals:
        raise ValueError(f"{wanted.name} compares with real clips: give --real DIR")
    size = wanted.spec.image_size
    folder = ClipFolder(generated, num_frames=wanted.spec.num_frames, image_size=size)
    parts = _parts(folder, wanted)
    spoken = captions is not None or "clipsim" in wanted.metrics
    said = read_captions(folder, captions) if spoken else None
    check_captions(wanted, said)
    source = real_source(real, wanted.spec, wanted.split) if real else None
    kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    weights = Weights(i3d=i3d, c3d=c3d, clip=clip)
    evaluator = Evaluator(wanted, weights, device=kind, cache=cache, num_workers=num_workers)
    reals = evaluator.real(source) if source is not None else None
    repeats = [_vectors(evaluator, folder, rows, said, place) for rows in parts]
    scores = {REAL: evaluator.floor(reals)} if reals else {}
    scores |= {GENERATED: evaluator.scores(reals, repeats)}
    made = {"folder": generated, "found": len(folder), **files_of(folder, range(len(folder)))}
    settings = evaluator.settings(reals) | {
        "generated": made | {"captions": captions},
        "versions": versions(),
        "commit": commit(),
    }
    notes = evaluator.unmeasured() + (reals.notes() if reals else [])
    if (guidance := wanted.guidance_scale) is not None:
        notes.append(f"{wanted.name} wants guidance {guidance}; no folder tells it: not checked")
    report = Report(settings, {wanted.name: scores}, notes)
    samples = {GENERATED: _shown(Subset(folder, parts[0]), [folder.names[r] for r in parts[0]])}
    if source is not None:
        first = draw(source, wanted)
        samples |= {REAL: _shown(first.clips, first.captions or [])}
    paths = [*report.write(place), write_page(place / "report.html", report, samples)]
    log_scores(report, place)
    print(f"\n{report.printed()}\nwrote {', '.join(map(str, paths))}")


def _parts(folder: ClipFolder, protocol: Protocol) -> list[list[int]]:
    """Rows of the generated clips of each repeat, if there are enough for more than one."""
    num = protocol.num_samples
    if len(folder) < num:
        raise ValueError(
            f"{folder.folder}: {protocol.name} needs {num} generated clips, found {len(folder)}; "
            "generate more, or write a protocol with fewer"
        )
    count = min(protocol.repeats, len(folder) // num)
    # a sample, for names are often sorted by class
    rows = sample_rows([""] * len(folder), count * num, seed=protocol.seed)
    return [sorted(rows[r * num : (r + 1) * num]) for r in range(count)]


def _vectors(
    evaluator: Evaluator,
    folder: ClipFolder,
    rows: Sequence[int],
    captions: Sequence[str] | None,
    out: Path,
) -> dict[str, Tensor]:
    # names, sizes and times of files may be those of another folder's
    made_of = files_of(folder, rows) | {"place": str(folder.folder.resolve())}
    made_of |= {"size": list(folder.spec.image_size)}
    made_of |= {"frames": folder.spec.num_frames}
    said = [captions[row] for row in rows] if captions is not None else None
    return evaluator.clips(Subset(folder, rows), out / "vectors", made_of=made_of, captions=said)


def _shown(clips: Any, captions: Sequence[str]) -> list[Shown]:
    said = [*captions[:NUM_SHOWN], *[""] * NUM_SHOWN]
    return [Shown(said[i], {"": clips[i].clip}) for i in range(min(NUM_SHOWN, len(clips)))]
