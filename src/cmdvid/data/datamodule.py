"""One data module for every data set and stage: loaders, sharding, uint8 to float."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader, Dataset

from cmdvid.data.cache import CacheShards, ShardKeys
from cmdvid.data.dataset import ClipDataset, ClipSampler, PromptDataset
from cmdvid.data.index import Prompts
from cmdvid.data.latents import LatentDataset
from cmdvid.data.leakage import refuse_leakage
from cmdvid.data.msrvtt import MSRVTTPrompts
from cmdvid.data.order import check_same_size
from cmdvid.data.position import Position, begin, epochs_ahead, reached, source_of
from cmdvid.data.precision import to_float
from cmdvid.data.skipped import SkippedFiles
from cmdvid.signals import LISTENER
from cmdvid.video import ClipSpec

logger = logging.getLogger(__name__)


class VideoDataModule(LightningDataModule):
    """Batches for each verb, from indexes of video files or from cached latents.

    Training draws random windows in a random order, evaluation the middle window in the given
    order. Stages receive ClipBatch (float "b 3 l h w" in [-1, 1]), LatentBatch, FramesBatch or
    PromptBatch. Workers hand over uint8. All is sharded here: use_distributed_sampler=False.

    Thirteen arguments, though eight are the limit: each is a line of the user's config.

    Args:
        train: Index for ``fit``.
        val: Index for validation in ``fit``, and for ``validate``.
        predict: Index for ``predict``, or Prompts; by default ``val``, clips if there are any.
        test: Named indexes for ``test``; by default ``val``.
        spec: The clip to cut from each video.
        latents: Folder of cached latents, or of frames for the autoencoder stage, whose ``train``
            and ``val`` then stand in for the clips.
        batch_size: Clips in a batch, per process.
        num_workers: Processes that read, per process.
        seed: Seed of order, windows and flips.
        flip: Mirror half of the training clips; wrong for captions that name directions.
        strict: Raise at a file that cannot give a clip, instead of taking another.
        allow_leakage: Let ``val`` and ``test`` hold videos of ``train``, which is refused else.
        max_bad_fraction: Stop when more than this share of the files tried so far, of 200 at least,
            could not give a clip. They are listed in ``skipped.jsonl`` in the folder of the logs,
            or where ``encode`` and ``predict`` write.
    """

    def __init__(
        self,
        train: Dataset | None = None,
        *,
        val: Dataset | None = None,
        predict: Dataset | None = None,
        test: dict[str, Dataset] | None = None,
        spec: ClipSpec = ClipSpec(),  # noqa: B008, frozen
        latents: str | None = None,
        batch_size: int = 8,
        num_workers: int = 2,
        seed: int = 0,
        flip: bool = False,
        strict: bool = False,
        allow_leakage: bool = False,
        max_bad_fraction: float = 0.2,
    ) -> None:
        super().__init__()
        if batch_size < 1 or num_workers < 0:
            raise ValueError(
                f"data.batch_size must be at least 1 and data.num_workers at least 0, "
                f"got {batch_size} and {num_workers}"
            )
        self.train, self.val, self.predict, self.test = train, val, predict, test
        self.spec, self.latents = spec, latents
        self.batch_size, self.num_workers = batch_size, num_workers
        self.seed, self.flip, self.strict = seed, flip, strict
        self.allow_leakage = allow_leakage
        self.max_bad_fraction = max_bad_fraction
        self.report: SkippedFiles | None = None
        self.encoding: list[CacheShards] = []  # what `encode` makes, reading through predict
        self.clips: dict[str, ClipDataset] = {}  # in use, by name, to report bad files at the end
        self.saved: Position | None = None  # where the checkpoint was written,
        self.start: Position | None = None  # and where this run began to read
        self.sampler: ClipSampler | None = None  # of training
        # not to the logger, which refuses a name that the stage has too, with another value
        self.save_hyperparameters(logger=False)
        for name in ("train", "val", "predict", "test", "spec"):
            if not isinstance(self.hparams[name], dict):  # built in Python, not by the CLI, which
                self.hparams.pop(name)  # gives plain settings: checkpoints hold no objects

    def latents_for(self, verb: str) -> str | None:
        """The folder of cached latents that a verb reads: ``predict`` does for want of clips."""
        has_clips = self.predict is not None or self.val is not None
        return None if verb == "predict" and has_clips else self.latents

    def spec_for(self, verb: str) -> ClipSpec | None:
        """The clips that a verb reads; None if it reads latents or prompts."""
        prompted = verb == "predict" and isinstance(self.predict, Prompts | MSRVTTPrompts)
        return None if prompted or self.latents_for(verb) is not None else self.spec

    def check_split(self, split: str) -> None:
        """See that ``encode`` can read ``train`` or ``val``."""
        if getattr(self, split) is None:
            raise ValueError(f"encode needs data.{split}, an index of videos")

    def setup(self, stage: str) -> None:
        """Check that the indexes which this verb reads are given, and share no video.

        Learns the folder of the logs, for the report of files that gave no clip.
        """
        if trainer := self.trainer:
            folder = trainer.log_dir or trainer.default_root_dir  # a broadcast: on every process
            self.report_in(Path(folder))
        have_val = self.val is not None or self.latents is not None
        if stage == "fit" and self.train is None and self.latents is None:
            raise ValueError("fit needs data.train, an index of videos, or data.latents")
        if stage in ("fit", "test") and self.train is not None and not self.allow_leakage:
            tests = {f"test.{name}": index for name, index in (self.test or {}).items()}
            others = ({} if self.val is None else {"val": self.val}) | tests
            refuse_leakage(self.train, others)
        if stage == "test" and self.test:
            return
        if stage in ("validate", "test") and not have_val:
            verb = TrainerFn(stage).value
            raise ValueError(f"{verb} needs data.val, an index of videos, or data.latents")
        if stage == "predict" and self.predict is None and not have_val:
            raise ValueError(
                "predict needs data.predict, an index of videos or Prompts, data.val or "
                "data.latents"
            )

    def report_in(self, folder: Path) -> None:
        """List files that give no clip in this folder; to be said before there are loaders."""
        self.report = SkippedFiles(folder / "skipped.jsonl")

    def train_dataloader(self) -> DataLoader:
        """Random windows in a random order, the same number on each rank."""
        dataset = self._source("train", self.train)
        world_size = self.trainer.world_size if self.trainer else 1
        if len(dataset) < self.batch_size * world_size:
            raise ValueError(
                f"data.train has {len(dataset)} samples, too few for one batch of "
                f"{self.batch_size} on each of {world_size} processes: lower data.batch_size"
            )
        return self._loader(dataset, train=True)

    def val_dataloader(self) -> DataLoader | list:
        """Middle windows in order; no loader if ``fit`` goes without validation."""
        if self.val is None and self.latents is None:
            return []
        return self._loader(self._source("val", self.val))

    @property
    def test_names(self) -> list[str]:
        """What each loader of ``test`` reads."""
        return list(self.test or ["val"])

    def test_dataloader(self) -> list[DataLoader]:
        """Middle windows of each test set in order."""
        if not self.test:
            return [self._loader(self._source("val", self.val))]
        return [self._loader(self._clips(name, index)) for name, index in self.test.items()]

    def predict_dataloader(self) -> DataLoader | list[DataLoader]:
        """Prompts, clips of ``predict`` or ``val``, or cached latents; what encode still lacks."""
        if self.encoding:
            self.encoding = [shards for shards in self.encoding if shards.missing()]
            return [self._encoding_loader(shards) for shards in self.encoding]
        if isinstance(self.predict, Prompts | MSRVTTPrompts):
            return self._loader(PromptDataset(self.predict))
        if self.latents_for("predict") is not None:
            return self._loader(self._source("val", None))
        name = "val" if self.predict is None else "predict"
        return self._loader(self._clips(name, self.predict or self.val))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Bring uint8 clips to float in [-1, 1], on the device."""
        return to_float(batch)

    def state_dict(self) -> dict[str, Any]:
        """Where training stands in its data, for a checkpoint."""
        if self.trainer and self.start and self.sampler and self.sampler.is_read:
            return asdict(reached(self.trainer, self.start, self.sampler.epoch))
        return asdict(self.saved) if self.saved else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember where training stood; the loader of training, made later, goes on there."""
        self.saved = Position(**state_dict)

    def teardown(self, stage: str) -> None:
        """Show how many files gave no clip."""
        self._report()
        self.clips.clear()

    def on_exception(self, exception: BaseException) -> None:
        """Show it also when a run is interrupted, for Lightning leaves out ``teardown`` then."""
        self._report()

    def _source(self, name: str, index: Dataset | None) -> ClipDataset | LatentDataset:
        """Cached latents if there are any, else the clips of an index."""
        if self.latents is None:
            return self._clips(name, index)
        return LatentDataset(self.latents, name, flip=self.flip and name == "train", seed=self.seed)

    def _clips(self, name: str, index: Dataset | None) -> ClipDataset:
        assert index is not None, "setup() checks it"
        if name not in self.clips:
            train = name == "train"
            self.clips[name] = ClipDataset(
                index,
                spec=self.spec,
                train=train,
                flip=train and self.flip,
                seed=self.seed,
                strict=self.strict,
                max_bad_fraction=self.max_bad_fraction,
                report=self.report,
            )
        return self.clips[name]

    def _encoding_loader(self, shards: CacheShards) -> DataLoader:
        """This rank's share of the missing shards, each in whole batches."""
        assert self.trainer is not None
        numbers = shards.missing()[self.trainer.global_rank :: self.trainer.world_size]
        return DataLoader(
            self._clips(shards.name, getattr(self, shards.name)),
            batch_size=self.batch_size,
            sampler=ShardKeys(shards.split, numbers),
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=LISTENER.ignore_in_worker,
        )

    def _loader(
        self, dataset: ClipDataset | LatentDataset | PromptDataset, *, train: bool = False
    ) -> DataLoader:
        check_same_size(len(dataset))
        trainer = self.trainer
        reader = trainer if train else None  # only training is resumed
        sizes = {"size": len(dataset), "batch_size": self.batch_size}
        source = source_of(dataset, self.seed) if train else {}
        start = begin(reader, self.saved, **sizes, source=source)
        sampler = ClipSampler(
            dataset,
            shuffle=train,
            # in fit, DDP synchronises in each step of validation too
            even=trainer is None or trainer.state.fn == TrainerFn.FITTING,
            seed=self.seed,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            epoch=start.epoch,
            start=start.samples,
            ahead=epochs_ahead(reader, start),
        )
        if train:
            self.start, self.sampler = start, sampler
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
            drop_last=train,
            worker_init_fn=LISTENER.ignore_in_worker,
        )

    def _report(self) -> None:
        """Log the files that gave no clip; each rank speaks of those that it met."""
        rank = f" (rank {self.trainer.global_rank})" if self.trainer else ""
        where = f"; see {self.report.path}" if self.report else ""
        for name, clips in self.clips.items():
            if clips.num_unusable or clips.num_missing:
                logger.warning(
                    "data.%s%s: %d of %d videos could not give a clip and were replaced; "
                    "%d more were listed but missing or empty%s",
                    *(name, rank, clips.num_unusable, clips.num_files, clips.num_missing, where),
                )
            if clips.num_partial:
                logger.warning(
                    "data.%s%s: %d of %d videos are damaged in part, or short and stood still%s",
                    *(name, rank, clips.num_partial, clips.num_files, where),
                )
