"""Where noise starts: seeds that name what the noise is for, not the batch or process it is in."""

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor


def mix(*numbers: int) -> int:
    """One seed of several numbers, 0 or more; NumPy's SeedSequence makes neighbours unrelated."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def sample_generators(seed: int, index: Tensor) -> list[torch.Generator]:
    """A generator for each sample, whatever batch or process it is in.

    The generators are the CPU's on every device, so that all devices start from the same noise.
    """
    return [torch.Generator().manual_seed(mix(seed, i)) for i in index.tolist()]


def seed_batch(stage: LightningModule, seed: int, *place: int) -> None:
    """Seed all that a step draws by the run's seed, the process, and the step's place in the run.

    Lightning seeds all processes alike, which would then draw the same noise; and a resumed run
    would draw that of its beginning again, for checkpoints hold no state of random numbers.
    """
    torch.manual_seed(mix(seed, stage.global_rank, *place))
