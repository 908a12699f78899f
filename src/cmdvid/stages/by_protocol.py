"""A protocol's scores of what ``test`` generates, at every level."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from cmdvid.data.sampling import Sample
from cmdvid.evaluation import LEVELS, REAL
from cmdvid.evaluator import Evaluator, Reals
from cmdvid.protocols import Protocol, read_protocol
from cmdvid.report import Interval
from cmdvid.sheet import captions_of
from cmdvid.stages.level_clips import LevelClips, StoredClips
from cmdvid.stages.test_sets import loaders_of
from cmdvid.types import ClipBatch, Condition
from cmdvid.vectors import Share, Weights


@dataclass(frozen=True)
class ByProtocol:
    """How ``test`` measures beside its judge.

    Attributes:
        protocol: A preset, such as ucf101-2048, or a YAML file.
        weights: Files of the networks that its metrics need.
        cache: Folder where features of real clips are kept (default: ~/.cache/cmdvid/evaluation).
    """

    protocol: str
    weights: Weights = Weights()  # noqa: RUF009, frozen
    cache: str | None = None


class ProtocolTest:
    """Measures one run of ``test``.

    The real clips are drawn from the test set's index as the protocol says, not from the batches;
    the first samples are those generated.

    Args:
        how: The protocol, and what it needs.
        trainer: Of the run, whose processes share the work.
        device: Of this process.
        sampling: Settings that clips are generated with.

    Raises:
        ValueError: If the run cannot make what the protocol needs; before anything is generated.
    """

    def __init__(
        self, how: ByProtocol, trainer: Trainer, device: torch.device, sampling: Mapping[str, Any]
    ):
        self.protocol = protocol = read_protocol(how.protocol)
        module = cast(Any, trainer).datamodule
        self.indexes: dict[str, Any]
        self.indexes = getattr(module, "test", None) or {"val": getattr(module, "val", None)}
        _check_guidance(protocol, sampling)
        spec = getattr(module, "spec", protocol.spec)
        if (spec.stride, spec.fps) != (protocol.spec.stride, protocol.spec.fps):
            raise ValueError(
                f"{protocol.name} has clips of stride {protocol.spec.stride} and fps "
                f"{protocol.spec.fps}, data.spec of {spec.stride} and {spec.fps}: make them equal"
            )
        limits = trainer.num_test_batches
        for name, loader, batches in zip(self.indexes, loaders_of(trainer), limits, strict=True):
            most = int(batches * (loader.batch_size or 1) * trainer.world_size)
            if (count := min(len(cast(Any, loader.dataset)), most)) < protocol.num_samples:
                raise ValueError(
                    f"{protocol.name} needs {protocol.num_samples} generated clips, but test set "
                    f"{name} makes {count}: give more videos, raise trainer.limit_test_batches, or "
                    "write a protocol with fewer"
                )
            if "clipsim" in protocol.metrics:
                index = self.indexes[name]
                rows = range(min(protocol.num_samples, len(cast(Any, index))))
                _check_said(protocol, name, [index[row].condition for row in rows], rows)
        share = Share(trainer.global_rank, trainer.world_size, trainer.strategy.barrier)
        self.evaluator = Evaluator(
            protocol, how.weights, device=device, cache=how.cache, share=share
        )
        self.seen: dict[str, dict[int, tuple[str, str]]] = {name: {} for name in self.indexes}
        self.reals: dict[str, Reals] = {}
        self.shared: dict[str, int] = {}  # measured clips of videos that are in the real draw too

    def add(self, name: str, batch: ClipBatch, files: list[str]) -> None:
        """Take note of the samples of a batch.

        Raises:
            ValueError: If they have too few frames, or no caption where the protocol reads it.
        """
        if (length := batch.clip.shape[2]) < (needed := self.protocol.spec.num_frames):
            raise ValueError(
                f"{self.protocol.name} measures clips of {needed} frames, but data.spec.num_frames "
                f"is {length}"
            )
        condition = cast(Condition, batch.condition)
        captions = [""] * len(files) if isinstance(condition, Tensor) else captions_of(condition)
        rows = torch.as_tensor(batch.index).tolist()
        if "clipsim" in self.protocol.metrics:  # of a video that took another's place, perhaps
            _check_said(self.protocol, name, captions, rows)
        self.seen[name] |= dict(zip(rows, zip(files, captions, strict=True), strict=True))

    def scores(self, name: str, clips: LevelClips, folder: Path) -> dict[str, dict[str, Interval]]:
        """The scores of a test set by level; each process must call this."""
        samples, index = self._samples(name), self.indexes[name]
        files, captions = zip(*samples.values(), strict=True)
        said = captions if all(captions) else None
        evaluator = self.evaluator
        real = self.reals[name] = evaluator.real(_whole(index))
        self.shared[name] = sum(index[row].path in real.videos for row in samples)
        vectors = {}
        for level in LEVELS[1:]:
            stored = StoredClips(clips, level, files, self.protocol.spec)
            made_of = {"files": files, "place": str(clips.folders[level].resolve())}
            spec = self.protocol.spec
            made_of |= {"size": list(spec.image_size), "frames": spec.num_frames}
            vectors[level] = evaluator.clips(
                stored, folder / "vectors", made_of=made_of, captions=said, label=level
            )
        if evaluator.share.rank > 0:  # the first process writes the report
            return {}
        found = {level: evaluator.scores(real, [each]) for level, each in vectors.items()}
        return {REAL: evaluator.floor(real)} | found

    def notes(self) -> list[str]:
        """What the numbers lack."""
        lost = [f"{name}: {note}" for name, real in self.reals.items() for note in real.notes()]
        near = [
            f"{name}: {count} of {self.protocol.num_samples} clips are made from videos that are "
            "among the real clips too, so a level may lie below the floor, whose sides share none"
            for name, count in self.shared.items()
            if count and self.protocol.needs_reals
        ]
        return self.evaluator.unmeasured() + lost + near

    def settings(self) -> dict[str, Any]:
        """What a reader needs to make the scores again."""
        found = self.evaluator.settings(None)
        real = {name: real.settings for name, real in self.reals.items()}
        return found | {"real": real, "shared_videos": dict(self.shared)}

    def _samples(self, name: str) -> dict[int, tuple[str, str]]:
        """File and caption of the first samples of all processes, by row."""
        seen = self.seen[name]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            shares: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(shares, seen)
            seen = {row: sample for share in shares for row, sample in share.items()}
        return {row: seen[row] for row in sorted(seen)[: self.protocol.num_samples]}


def _whole(index: Any) -> Any:
    """The index that a sample was drawn from."""
    return index.index if isinstance(index, Sample) else index


def _check_guidance(protocol: Protocol, sampling: Mapping[str, Any]) -> None:
    """See that both models are guided as the protocol says."""
    for name in ("guidance_scale", "motion_guidance_scale"):
        wanted, given = protocol.guidance_scale, sampling[name]
        if wanted is not None and wanted != given:
            raise ValueError(
                f"{protocol.name} wants guidance {wanted}, but model.{name} is {given}: "
                "set it, or write a protocol of your own"
            )


def _check_said(
    protocol: Protocol, name: str, conditions: Sequence[int | str], rows: Sequence[int]
) -> None:
    """See that CLIPSIM has a caption for each row."""
    for row, condition in zip(rows, conditions, strict=True):
        if not isinstance(condition, str) or not condition.strip():
            given = f"the label {condition}" if isinstance(condition, int) else "no caption"
            raise ValueError(
                f"{protocol.name} measures CLIPSIM, but row {row} of test set {name} (from 0) has "
                f"{given}: give it a caption, leave it out, or write a protocol without clipsim"
            )
