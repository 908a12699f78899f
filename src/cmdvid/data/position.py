"""Where training stands in its data: what a checkpoint keeps, and where a resumed run goes on.

Counted in samples of all processes together, so that a run can go on with other batches or another
number of processes. Workers do not matter: what they read ahead was not trained on.
"""

import hashlib
import json
import logging
import math
import os
import warnings
from dataclasses import dataclass, field, replace
from typing import Any, cast

from lightning.pytorch import Trainer
from lightning.pytorch.loops.loop import _Loop

logger = logging.getLogger(__name__)

VIDEOS = "hash of names and conditions"
NUM_COMPARED = 1000  # rows, evenly spaced: enough to see that a data set is another one


@dataclass(frozen=True)
class Position:
    """A place between two optimizer steps.

    Attributes:
        epoch: Pass over the data, from 0.
        samples: Samples of it that all processes together have trained on.
        batches: The same in batches of one process, as Lightning counts them.
        complete: No batch of this epoch is left.
        size: Samples of the data set.
        batch_size: Samples in a batch of one process.
        world_size: Number of processes.
        source: What the order and its samples follow from; nothing in checkpoints of before.
    """

    epoch: int
    samples: int
    batches: int
    complete: bool
    size: int
    batch_size: int
    world_size: int
    source: dict[str, int | None] = field(default_factory=dict)


def source_of(dataset: Any, seed: int) -> dict[str, int | None]:
    """What the order of training follows from, as far as that is told at once.

    Args:
        dataset: Clips of an index, or cached ones.
        seed: Seed of the order.
    """
    windows = getattr(dataset, "windows", None)
    said = {"data.seed": seed, "window": windows.window if windows else None}
    if (split := getattr(dataset, "split", None)) is not None:
        return said | {VIDEOS: int(split.index[:12], 16)}
    digest, size = hashlib.sha256(), len(dataset)
    for row in range(0, size, -(-size // NUM_COMPARED)):
        path, condition, _ = dataset.index[row]
        digest.update(json.dumps([os.path.basename(path), condition]).encode())
    return said | {VIDEOS: int(digest.hexdigest()[:12], 16)}


def reached(trainer: Trainer, start: Position, epoch: int) -> Position:
    """Where training stands now.

    Batches that no optimizer step has used yet, under ``accumulate_grad_batches``, count as not
    read: their gradients are in no checkpoint.

    Args:
        trainer: It counts batches.
        start: Where this run began to read.
        epoch: Epoch that is being read.
    """
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    batches = progress.processed
    complete = batches >= trainer.num_training_batches
    if not complete:
        batches -= batches % trainer.accumulate_grad_batches
    samples, first = (start.samples, start.batches) if epoch == start.epoch else (0, 0)
    batches = max(batches, first)  # a run resumed with other batches may begin within a step
    samples += (batches - first) * start.batch_size * start.world_size
    sizes = start.size, start.batch_size, start.world_size
    return Position(epoch, samples, batches, complete, *sizes, start.source)


def begin(
    trainer: Trainer | None,
    saved: Position | None,
    *,
    size: int,
    batch_size: int,
    source: dict[str, int | None],
) -> Position:
    """Where to begin to read: at the start of an epoch, or where a resumed run was saved.

    Lightning itself starts an interrupted epoch anew, and after a checkpoint at an epoch's end
    lets the workers read the same epoch again.

    Args:
        trainer: A resumed one has its counts of batches set to where reading goes on.
        saved: What the checkpoint holds.
        size: Samples of the data set.
        batch_size: Samples in a batch of one process.
        source: What they follow from, see ``source_of``.
    """
    if saved is None or trainer is None or not trainer.fit_loop.is_resuming:
        epoch, world_size = (trainer.current_epoch, trainer.world_size) if trainer else (0, 1)
        return Position(epoch, 0, 0, False, size, batch_size, world_size, source)
    # its warning that this loader cannot be resumed would be wrong
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
    start = replace(_shared_anew(trainer, saved, size, batch_size), source=source)
    whole = _batches_of_an_epoch(trainer, size, batch_size)
    is_over = start.epoch > saved.epoch
    _count(trainer, whole if is_over else start.batches, is_last=is_over)
    progress: Any = trainer.fit_loop.epoch_progress.current
    if is_over and progress.processed == progress.started:
        # a run of max_steps would else give the next epoch the last batch's number, and end it
        cast(Any, _Loop.restarting).fset(trainer.fit_loop, False)
    if trainer.is_global_zero:
        _tell(saved, start)
    return start


def epochs_ahead(trainer: Trainer | None, start: Position) -> int:
    """Epochs that Lightning's count is ahead of the data's.

    It takes an epoch that ``max_steps`` cut short for over, and a resumed run finishes it.
    """
    progress: Any = trainer.fit_loop.epoch_progress.current if trainer else None
    return max(0, progress.processed - start.epoch) if progress else 0


def _shared_anew(trainer: Trainer, saved: Position, size: int, batch_size: int) -> Position:
    """Share out the rest of an epoch; exact with the same batches and processes as before.

    With others none of its samples comes twice (beyond what makes ranks even), and what fills no
    batch on all processes is left out, as at the end of each epoch.
    """
    world_size = trainer.world_size
    total = _batches_of_an_epoch(trainer, size, batch_size)
    rest = math.ceil((size - saved.samples) / world_size) // batch_size
    left = 0 if saved.complete else min(total - saved.samples // (batch_size * world_size), rest)
    if left <= 0:
        return Position(saved.epoch + 1, 0, 0, False, size, batch_size, world_size)
    sizes = size, batch_size, world_size
    return Position(saved.epoch, saved.samples, total - left, False, *sizes)


def _batches_of_an_epoch(trainer: Trainer, size: int, batch_size: int) -> int:
    """What Lightning will find when it has the loader; it has to be known before."""
    total = math.ceil(size / trainer.world_size) // batch_size
    limit = trainer.limit_train_batches
    return min(limit, total) if isinstance(limit, int) else int((limit or 0) * total)


def _count(trainer: Trainer, batches: int, *, is_last: bool) -> None:
    """Let Lightning take so many batches of this epoch for trained on."""
    loop: Any = trainer.fit_loop.epoch_loop
    current, total = loop.batch_progress.current, loop.batch_progress.total
    shift = batches - current.processed
    for count in (current, total):
        for name in ("ready", "started", "processed", "completed"):  # their differences matter
            setattr(count, name, getattr(count, name) + shift)
    loop.batch_progress.is_last_batch = is_last
    if shift:  # the step that logs get: Lightning adds one for a step whose end it did not see
        unseen = is_last or current.ready % trainer.accumulate_grad_batches == 0
        unseen = unseen and current.ready > current.completed
        loop._batches_that_stepped = loop.global_step - unseen


def _tell(saved: Position, start: Position) -> None:
    """Say what differs from before, and what that means."""
    if (start.batch_size, start.world_size) != (saved.batch_size, saved.world_size):
        logger.warning(
            "resumed with batches of %d on %d processes, where it had %d on %d: goes on after "
            "sample %d of epoch %d; less than one batch of all processes (%d samples) is left out "
            "at the end of that epoch, and none comes twice but to make processes even",
            *(start.batch_size, start.world_size, saved.batch_size, saved.world_size),
            *(saved.samples, saved.epoch, start.batch_size * start.world_size),
        )
    if start.size != saved.size:
        logger.warning(
            "resumed on %d samples, where there were %d: the order of epoch %d is another one, and "
            "samples of it may come twice or not at all",
            *(start.size, saved.size, saved.epoch),
        )
    shared = start.source.keys() & saved.source.keys()
    changed = sorted(key for key in shared if start.source[key] != saved.source[key])
    if changed and start.size == saved.size:
        logger.warning(
            "resumed with another source of data (%s): the order of epoch %d is another one, and "
            "samples of it may come twice or not at all",
            "; ".join(f"{k} was {saved.source[k]}, is now {start.source[k]}" for k in changed),
            saved.epoch,
        )
