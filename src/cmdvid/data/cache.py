"""The shards of a cache of encoded clips, by number: what each holds and which are missing.

``OUT/train/000000.safetensors`` holds the first rows of the training index with all their clips,
``000001`` the next ones; ``OUT/val`` likewise. What a shard holds depends on its number and the
settings alone, so that any number of processes makes the same, and a stopped run goes on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Sampler

from cmdvid.whole import whole


@dataclass(frozen=True)
class CacheSplit:
    """The clips of one split.

    Attributes:
        num_rows: Rows of the index.
        rows_per_shard: Rows of each shard but the last.
        index: SHA-256 of the index, see index_hash.
        clips_per_video: Clips of each row; clip k has the window of epoch k.
        flips: Whether each clip is there mirrored too, next to itself.
    """

    num_rows: int
    rows_per_shard: int
    index: str
    clips_per_video: int = 1
    flips: bool = False

    @property
    def num_shards(self) -> int:
        """The last one may have fewer rows."""
        return -(-self.num_rows // self.rows_per_shard)

    def rows(self, number: int) -> range:
        """The rows of a shard."""
        first = number * self.rows_per_shard
        return range(first, min(first + self.rows_per_shard, self.num_rows))


class CacheShards:
    """The shards of one split on disk.

    Args:
        folder: Where they are.
        split: Their number and content.
    """

    def __init__(self, folder: Path, split: CacheSplit):
        self.folder, self.split = folder, split

    @property
    def name(self) -> str:
        """Of the split."""
        return self.folder.name

    def path(self, number: int) -> Path:
        """The file of a shard."""
        return self.folder / f"{number:06d}.safetensors"

    def missing(self) -> list[int]:
        """Numbers of the shards that are not written yet."""
        return [n for n in range(self.split.num_shards) if not self.path(n).is_file()]

    def write(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        """Write a shard whole or not at all."""
        with whole(self.path(number)) as part:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part)

    def remove(self) -> None:
        """Remove all shards, also those of other settings and half-written ones."""
        for pattern in ("[0-9]*.safetensors", ".[0-9]*.safetensors.part"):
            for path in self.folder.glob(pattern):
                path.unlink()


class ShardKeys(Sampler[tuple[int, int]]):
    """Keys (clip, row) of some shards, in the order in which a shard holds them.

    Args:
        split: What shards hold.
        numbers: The shards.
    """

    def __init__(self, split: CacheSplit, numbers: Sequence[int]):
        self.split, self.numbers = split, numbers

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for number in self.numbers:
            for row in self.split.rows(number):
                for clip in range(self.split.clips_per_video):
                    yield clip, row

    def __len__(self) -> int:
        rows = sum(len(self.split.rows(number)) for number in self.numbers)
        return rows * self.split.clips_per_video
