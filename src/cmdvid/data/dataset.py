"""Clips from an index, and the order in which they come.

What a sample holds depends on (seed, epoch, row) and the files alone: never on the number of
workers or ranks, nor on what was read before.
"""

import math
import time
from collections.abc import Iterator, Sized
from functools import partial

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

from cmdvid.data.order import ShardWindows, random_order
from cmdvid.data.skipped import SkippedFiles, Unusable
from cmdvid.types import ClipBatch, PromptBatch, VideoEntry
from cmdvid.video import ClipSpec, VideoError, read_clip

MAX_TRIES = 100  # files tried for one sample: with all of a disk gone, the run has to end
WAITS = (0.1, 0.4, 1.0)  # seconds before a file that the disk did not give is tried again


class ClipDataset(Dataset[ClipBatch]):
    """One clip of each video of an index.

    A file that cannot give a clip is named in the log and the report once, counted in
    ``num_unusable``, and its place taken by another row, drawn from (seed, epoch, row). It is tried
    again whenever its turn comes, for a damaged file may give another window. A file that the disk
    does not give is first waited for, two seconds at most.

    Args:
        index: Any index of ``cmdvid.data.index``, or another data set of ``VideoEntry``.
        spec: The clip to cut.
        train: Draw a random window each epoch; otherwise take the middle one, and where the index
            names a file again (``Sample`` of several windows) a random one, always the same.
        flip: Mirror half of the training clips. Off by default: captions name directions.
        seed: Seed of windows, flips and replacements.
        strict: Raise at the first file that cannot give a clip, or is listed but missing or empty.
        max_bad_fraction: Raise when more than this share of the files tried so far (taken for 200
            at least) could not give a clip.
        report: Where such files are listed.

    Raises:
        ValueError: If the index is empty or the share no share; with ``strict``, if the index
            misses files.
    """

    def __init__(
        self,
        index: Dataset[VideoEntry],
        *,
        spec: ClipSpec,
        train: bool = False,
        flip: bool = False,
        seed: int = 0,
        strict: bool = False,
        max_bad_fraction: float = 0.2,
        report: SkippedFiles | None = None,
    ) -> None:
        self.index, self.spec, self.train = index, spec, train
        self.flip, self.seed, self.strict = flip, seed, strict
        self.num_missing: int = getattr(index, "num_missing", 0)
        # an index that names its files again and again does so in turn: row % num_files is a file
        self.num_files: int = getattr(index, "num_files", len(self))
        self.windows: ShardWindows | None = getattr(index, "windows", None)
        if len(self) == 0:
            raise ValueError(f"{type(index).__name__} holds no video")
        if strict and self.num_missing:
            raise ValueError(
                f"{type(index).__name__}: {self.num_missing} listed videos are missing or empty "
                "(named in the warning above) and strict is true; complete them, or set "
                "strict: false"
            )
        self.unusable = Unusable(
            self.num_files,
            max_fraction=max_bad_fraction,
            report=report,
            empty=getattr(index, "empty", ()),
            missing=getattr(index, "missing", {}),
        )

    @property
    def num_unusable(self) -> int:
        """Files met so far, in all workers, that could not give a clip."""
        return self.unusable.count

    def replaced(self, row: int) -> bool:
        """Whether another video took the place of a row, once it was read, by any worker."""
        return bool(self.unusable.marked[row % self.num_files])

    @property
    def num_partial(self) -> int:
        """Files met so far that gave a clip without some frames: they are damaged, or short."""
        return int(self.unusable.partial.sum())

    def __len__(self) -> int:
        assert isinstance(self.index, Sized)
        return len(self.index)

    def __getitem__(self, key: tuple[int, int] | int) -> ClipBatch:
        """Read a clip: uint8 "3 l h w".

        Args:
            key: ``(epoch, i)`` from ClipSampler; a bare row ``i``, as Lightning's
                ``overfit_batches`` gives it, is that of epoch 0.

        Raises:
            VideoError: With ``strict``, if the file cannot give a clip.
            ValueError: If too many files cannot, or none of those tried in its place.
        """
        epoch, i = key if isinstance(key, tuple) else (0, key)
        rng = np.random.default_rng([self.seed, epoch if self.train else 0, i])
        position = rng.random() if self.train or i >= self.num_files else 0.5
        flipped = self.train and self.flip and rng.random() < 0.5
        errors: list[VideoError] = []
        for row in self._candidates(i, rng):
            entry = self.index[row]
            try:
                clip = self._read(row % self.num_files, entry, position)
            except VideoError as error:
                if self.strict:
                    raise
                self.unusable.add(row % self.num_files, entry.path, error)
                errors.append(error)
                continue
            return ClipBatch(clip.flip(-1) if flipped else clip, entry.condition, i)
        raise ValueError(
            f"none of {len(errors)} videos tried (of {self.num_files}) can give a clip; the first:"
            + "".join(f"\n  {error}" for error in errors[:3])
        )

    def _candidates(self, i: int, rng: np.random.Generator) -> Iterator[int]:
        """Row ``i``, then other files: a random stride without common factor visits them all."""
        yield i
        size = self.num_files
        stride = int(rng.integers(1, size)) if size > 1 else 1
        while math.gcd(stride, size) > 1:
            stride += 1
        for step in range(1, min(size, MAX_TRIES)):
            yield (i + step * stride) % size

    def _read(self, file: int, entry: VideoEntry, position: float) -> UInt8[Tensor, "3 l h w"]:
        """Read a clip; a disk that does not answer may do so a little later."""
        self.unusable.tried[file] = True
        notice = partial(self.unusable.add_partial, file, entry.path)
        for wait in () if self.unusable.marked[file] else WAITS:
            try:
                return read_clip(entry.path, self.spec, position, entry.part, notice)
            except VideoError as error:
                if not _may_pass(error):
                    raise
            time.sleep(wait)
        return read_clip(entry.path, self.spec, position, entry.part, notice)


def _may_pass(error: VideoError) -> bool:
    """Whether the disk failed, not the file: a network disk may come back."""
    lasting = PermissionError, IsADirectoryError, NotADirectoryError
    return isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, lasting)


class PromptDataset(Dataset[PromptBatch]):
    """Prompts to generate from, with the rows that name the files and seed the noise.

    Args:
        prompts: An index of captions.
    """

    def __init__(self, prompts: Dataset[str]) -> None:
        self.prompts = prompts

    def __len__(self) -> int:
        return len(self.prompts)  # type: ignore[arg-type]

    def __getitem__(self, key: tuple[int, int] | int) -> PromptBatch:
        """The prompt of ``key = (epoch, i)`` or of a bare row ``i``."""
        i = key[1] if isinstance(key, tuple) else key
        return PromptBatch(self.prompts[i], i)


class ClipSampler(DistributedSampler):
    """Keys (epoch, i) of one rank's share of a data set; a function of (seed, epoch) alone.

    It is torch's DistributedSampler in name, so Lightning neither replaces nor wraps it, and calls
    ``set_epoch`` on it.

    Args:
        dataset: What is sampled; only its length is used, and how its rows lie in shards, if any.
        shuffle: Another order each epoch; otherwise the given one.
        even: Give all ranks the same number by repeating some rows, as training needs. Otherwise
            each row comes once over all ranks (unless there are more ranks than rows).
        seed: Seed of the order.
        rank: This process.
        world_size: Number of processes.
        epoch: The first epoch, for workers start to read before Lightning calls ``set_epoch``.
        start: Samples, of all ranks, to leave out in that epoch: a resumed run had them.
        ahead: Epochs that Lightning's count is ahead: it takes one that ``max_steps`` cut short
            for over, and a resumed run finishes it.
    """

    def __init__(
        self,
        dataset: Sized,
        *,
        shuffle: bool = False,
        even: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        epoch: int = 0,
        start: int = 0,
        ahead: int = 0,
    ) -> None:
        size = len(dataset)
        order = torch.empty(size)  # DistributedSampler asks for a Dataset, but only for its length
        super().__init__(order, world_size, rank, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]
        self.even = even or size < world_size  # a rank without data would hang the others
        if not self.even:
            self.num_samples = len(range(rank, size, world_size))
        self.size = size
        self.windows: ShardWindows | None = getattr(dataset, "windows", None)
        self.epoch = self.first_epoch = epoch
        self.start, self.ahead = start, ahead
        self.is_read = False  # until Lightning begins an epoch, which it may never do

    def set_epoch(self, epoch: int) -> None:
        """Set Lightning's count of epochs, when it begins one."""
        self.is_read = True
        self.epoch = epoch - self.ahead

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch  # of this pass, also if set_epoch announces the next one meanwhile
        order = torch.arange(self.size)
        if self.shuffle:
            order = random_order(self.size, seed=self.seed, epoch=epoch, shards=self.windows)
        start = self.start if epoch == self.first_epoch else 0
        left = math.ceil((self.size - start) / self.num_replicas) if start else self.num_samples
        for n in range(left):
            yield epoch, int(order[(start + self.rank + n * self.num_replicas) % self.size])
