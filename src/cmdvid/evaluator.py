"""Clips of any model against real ones by a protocol, with the floor and all that made a score."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from cmdvid.data.clip_folder import ClipFolder
from cmdvid.data.dataset import ClipDataset
from cmdvid.data.sampling import Sample, sample_rows
from cmdvid.evaluation import averaged, frechet_scores, single_scores
from cmdvid.manifest import data_digest
from cmdvid.protocols import Protocol
from cmdvid.report import Interval
from cmdvid.types import ClipBatch, VideoEntry
from cmdvid.vectors import Share, Weights, load_networks, read_vectors

RealSource: TypeAlias = Dataset[VideoEntry] | ClipFolder
"""Videos to cut clips from, or clips that are cut already."""


class Draw(NamedTuple):
    """Real clips drawn by a protocol."""

    clips: Dataset[ClipBatch]
    made_of: dict[str, Any]
    captions: list[str] | None


class Reals(NamedTuple):
    """What is known of the real clips: vectors by metric."""

    draws: list[dict[str, Tensor]]  # of each repeat
    floor: tuple[dict[str, Tensor], dict[str, Tensor]] | None  # two sets without a common video
    settings: dict[str, Any]


class Evaluator:
    """Measures sets of clips by a protocol.

    Args:
        protocol: What is measured, and how.
        weights: Files of the networks that the protocol's metrics need.
        device: Where they run.
        cache: Folder where the vectors of real clips are kept for other evaluations.
        share: The processes that share the work.
        num_workers: Processes that read clips, per process.

    Raises:
        ValueError: If weights are missing or of another kind.
    """

    def __init__(
        self,
        protocol: Protocol,
        weights: Weights,
        *,
        device: torch.device,
        cache: str | None = None,
        share: Share = Share(),  # noqa: B008, frozen
        num_workers: int = 0,
    ):
        self.protocol, self.device = protocol, device
        self.share, self.num_workers = share, num_workers
        self.cache = Path(cache) if cache else default_cache()
        self.networks = load_networks(protocol.metrics, weights, device)

    def real(self, source: RealSource) -> Reals:
        """Read the real clips of each repeat, and more of them for the floor.

        Raises:
            ValueError: If there are fewer than the protocol needs.
        """
        protocol, num = self.protocol, self.protocol.count_reals
        draws = [draw(source, protocol, repeat=r) for r in range(protocol.repeats)]
        vectors = [self._vectors(each, self.cache, "real clips") for each in draws]
        floor = None
        if not protocol.first_by_path:  # the next videos by path would be of other classes
            if len(source) >= 2 * num:  # type: ignore[arg-type]
                others = draw(source, protocol, skip=num)
                floor = vectors[0], self._vectors(others, self.cache, "real clips, floor")
            else:
                one, other = (
                    {name: values[half] for name, values in vectors[0].items()}
                    for half in (slice(0, num // 2), slice(num // 2, None))
                )
                floor = one, other
        return Reals(vectors, floor, {"data": [each.made_of["data"] for each in draws]})

    def clips(
        self,
        clips: Dataset[ClipBatch],
        folder: Path,
        *,
        made_of: Mapping[str, Any],
        captions: Sequence[str] | None = None,
        label: str = "generated clips",
    ) -> dict[str, Tensor]:
        """Read generated clips, whose vectors are kept in ``folder``.

        Raises:
            ValueError: If CLIPSIM has no captions to compare with.
        """
        check_captions(self.protocol, captions)
        said = list(captions) if captions is not None else None
        return self._vectors(Draw(clips, dict(made_of), said), folder, label)

    def scores(
        self, real: Reals | None, repeats: Sequence[Mapping[str, Tensor]]
    ) -> dict[str, Interval]:
        """The scores of a set of clips.

        Args:
            real: What they are compared with; none for a protocol that compares with nothing.
            repeats: Their vectors, of each repeat; a single one stands for all.
        """
        if real is None:
            return averaged([single_scores(vectors) for vectors in repeats])
        pairs = [(draw, repeats[r % len(repeats)]) for r, draw in enumerate(real.draws)]
        return averaged(
            [single_scores(v) | frechet_scores(self.protocol, draw, v) for draw, v in pairs]
        )

    def floor(self, real: Reals) -> dict[str, Interval]:
        """The scores of real clips, with the distance of two sets of them."""
        found = averaged([single_scores(vectors) for vectors in real.draws])
        return found | (frechet_scores(self.protocol, *real.floor) if real.floor else {})

    def settings(self, real: Reals | None) -> dict[str, Any]:
        """What a reader needs to make such scores again."""
        return {
            "protocol": self.protocol.settings(),
            "networks": {name: network.made_by for name, network in self.networks.items()},
            "real": real.settings if real else None,
        }

    def _vectors(self, drawn: Draw, folder: Path, label: str) -> dict[str, Tensor]:
        networks = self.networks
        if drawn.captions is None:
            networks = {name: x for name, x in networks.items() if name != "clipsim"}
        return read_vectors(
            drawn.clips,
            networks,
            folder,
            made_of=drawn.made_of | {"captions": drawn.captions},
            captions=drawn.captions,
            share=self.share,
            device=self.device,
            num_workers=self.num_workers,
            label=label,
        )


def check_captions(protocol: Protocol, captions: Sequence[str] | None) -> None:
    """See that generated clips have captions if the protocol reads them."""
    if "clipsim" in protocol.metrics and captions is None:
        raise ValueError(
            f"{protocol.name} measures CLIPSIM, which needs the caption of each generated clip: "
            "`cmdvid evaluate --captions FILE` reads one a line, in the order of the clips' names"
        )


def draw(source: RealSource, protocol: Protocol, *, repeat: int = 0, skip: int = 0) -> Draw:
    """Draw real clips as the protocol says.

    Args:
        source: Videos, or clips that are cut already.
        protocol: Says how many, from which windows, by which seed.
        repeat: Each repeat draws anew.
        skip: Clips of the draw to leave out, for another set without a common video.

    Raises:
        ValueError: If there are too few.
    """
    num, seed = protocol.count_reals, protocol.seed + repeat
    how = {"spec": asdict(protocol.spec), "seed": seed, "random_window": protocol.random_window}
    if isinstance(source, ClipFolder):
        if (needed := num + skip) > len(source):
            raise ValueError(f"{source.folder}: {needed} clips are needed, found {len(source)}")
        order = sample_rows([""] * len(source), len(source), seed=seed)
        rows = list(range(len(source))) if protocol.first_by_path else order
        return Draw(Subset(source, rows[skip : skip + num]), files_of(source, rows) | how, None)
    sample = Sample(
        source,
        num=num,
        seed=seed,
        first_by_path=protocol.first_by_path,
        several_windows=protocol.several_windows and not skip,
        skip=skip,
    )
    spec, window = protocol.spec, protocol.random_window
    clips = ClipDataset(sample, spec=spec, train=window, seed=seed)
    said = [entry.condition for entry in sample.entries]
    captions = [text for text in said if isinstance(text, str) and text]
    return Draw(clips, listing(sample.entries) | how, captions if len(captions) == num else None)


def listing(entries: Sequence[VideoEntry]) -> dict[str, Any]:
    """What tells a list of files from another, and from itself before it was changed."""
    root = os.path.commonpath([os.path.dirname(os.path.abspath(entry.path)) for entry in entries])
    files = {entry.part.url if entry.part else entry.path for entry in entries}
    changed = max((os.stat(file).st_mtime_ns for file in files if "://" not in file), default=0)
    return {"data": data_digest(entries, root), "changed": changed}


def files_of(folder: ClipFolder, rows: Sequence[int]) -> dict[str, Any]:
    """The same of some clips of a folder."""
    entries = [VideoEntry(str(folder.clips[row].files[0]), folder.names[row]) for row in rows]
    return listing(entries)


def default_cache() -> Path:
    """Where the vectors of real clips are kept: ``$XDG_CACHE_HOME/cmdvid/evaluation``."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "cmdvid" / "evaluation"
