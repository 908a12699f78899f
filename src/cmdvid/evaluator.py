"""Clips of any model against real ones by a protocol, with the floor and all that made a score."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cmdvid.draws import Draw, RealSource, draw, halves
from cmdvid.evaluation import averaged, frechet_scores, single_scores
from cmdvid.protocols import Protocol
from cmdvid.report import Interval
from cmdvid.types import ClipBatch
from cmdvid.vectors import REPLACED, Share, Weights, load_networks, read_vectors

logger = logging.getLogger(__name__)

PREPROCESSING = "scaled until it covers image_size, bilinear antialiased, centre crop, 8 bits"


class Reals(NamedTuple):
    """What is known of the real clips: vectors by metric."""

    draws: list[dict[str, Tensor]]  # of each repeat
    floor: tuple[dict[str, Tensor], dict[str, Tensor]] | None  # two sets without a common video
    settings: dict[str, Any]
    videos: frozenset[str]  # that the draws are cut from

    def notes(self) -> list[str]:
        """What the real clips lack."""
        found, asked, read = [], self.settings["asked"], self.settings["read"]
        if lost := sum(asked - each for each in read):
            found.append(
                f"{lost} of {asked * len(read)} real clips could not be read, and clips of other "
                "videos took their places"
            )
        if absent := self.settings["absent"]:
            found.append(f"{absent} real videos are listed, but missing")
        return found


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
        self.networks, self.missing = load_networks(protocol.metrics, weights, device)
        if not share.rank:
            for note in self.unmeasured():
                logger.warning(note)

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
            others = draw(source, protocol, skip=num) if len(source) >= 2 * num else None  # type: ignore[arg-type]
            if others and not set(others.videos) & set(draws[0].videos):
                floor = vectors[0], self._vectors(others, self.cache, "real clips, floor")
            else:
                floor = halves(vectors[0], draws[0].videos)
        settings = {
            "data": [each.made_of["data"] for each in draws],
            "preprocessing": PREPROCESSING,
            "asked": num,
            "read": [num - int(each[REPLACED].sum()) for each in vectors],
            "absent": getattr(source, "num_missing", 0),
        }
        videos = frozenset(video for each in draws for video in each.videos)
        return Reals(vectors, floor, settings, videos)

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
        found = averaged([single_scores(_rightly_said(vectors)) for vectors in real.draws])
        return found | (frechet_scores(self.protocol, *real.floor) if real.floor else {})

    def unmeasured(self) -> list[str]:
        """The metrics of the protocol whose weights are not there, and what they need."""
        return [f"{name} is not measured; {needed}" for name, needed in self.missing.items()]

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
            replaced=getattr(drawn.clips, "replaced", lambda row: False),
        )


def _rightly_said(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Vectors without CLIPSIM of videos that took others' places, whose captions they kept."""
    kept = dict(vectors)
    if "clipsim" in kept and len(own := kept.pop("clipsim")[vectors[REPLACED][:, 0] == 0]):
        kept["clipsim"] = own
    return kept


def check_captions(protocol: Protocol, captions: Sequence[str] | None) -> None:
    """See that generated clips have captions if the protocol reads them."""
    if "clipsim" in protocol.metrics and captions is None:
        raise ValueError(
            f"{protocol.name} measures CLIPSIM, which needs the caption of each generated clip: "
            "`cmdvid evaluate --captions FILE` reads one a line, in the order of the clips' names"
        )


def default_cache() -> Path:
    """Where the vectors of real clips are kept: ``$XDG_CACHE_HOME/cmdvid/evaluation``."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "cmdvid" / "evaluation"
