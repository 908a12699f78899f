"""Two models side by side: caption accuracy, CPU seconds and FLOPs per generated clip."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from cmdvid.data.index import WebVid
from cmdvid.evaluation import COLUMNS, PERCENT, fraction
from cmdvid.metrics.shapes import ShapesAccuracy

TEST_SETS = {"seen": "val.csv", "heldout": "heldout.csv"}
BATCH_SIZE = 64  # as in configs/generate_shapes.yaml
Sampler = Callable[[Sequence[str], Int[Tensor, " b"]], Float[Tensor, "b 3 l h w"]]
Rows = dict[str, dict[str, str]]  # of the table: by what is measured, by model
CONVENTION = """\
Accuracies with 95 % intervals (Wilson). CPU seconds on one thread, the models taking turns, in
batches of 64. A FLOP count has 2 for each multiply-accumulate of matrix products (attention's too)
and convolutions, over all sampling steps with guidance, text towers and decoder included.
"""


def read_prompts(folder: str, num: int) -> dict[str, list[str]]:
    """The first ``num`` captions of each test set of a data folder."""
    indexes = {name: WebVid(f"{folder}/{file}") for name, file in TEST_SETS.items()}
    return {
        name: [cast(str, index[i].condition) for i in range(min(num, len(index)))]
        for name, index in indexes.items()
    }


def count_flops(sample: Sampler, caption: str) -> int:
    """FLOPs of one clip: matrix products and convolutions, 2 for each multiply-accumulate.

    Attention runs as matrix products meanwhile, for the counter does not know the fused kernels
    of the CPU.
    """
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            sample([caption], torch.zeros(1, dtype=torch.long))
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    return counter.get_total_flops()


def report(
    samplers: Mapping[str, Sampler],
    prompts: Mapping[str, list[str]],
    *,
    flops: Mapping[str, int],
    sizes: Mapping[str, int],
) -> str:
    """A Markdown table of what the oracle and the clock measure, and of what is known already.

    The models take turns batch by batch, so that whatever else the machine does slows both alike.
    """
    judges = {name: {model: ShapesAccuracy() for model in samplers} for name in prompts}
    seconds = dict.fromkeys(samplers, 0.0)
    num_clips = sum(map(len, prompts.values()))
    with tqdm(total=num_clips * len(samplers), desc="generate", unit="clip") as bar:
        for name, captions in prompts.items():
            for index in torch.arange(len(captions)).split(BATCH_SIZE):
                batch = [captions[i] for i in index.tolist()]
                for model, sample in samplers.items():
                    start = time.process_time()
                    generated = sample(batch, index)
                    seconds[model] += time.process_time() - start
                    judges[name][model].update(generated, batch)
                    bar.update(len(batch))
    found = {n: {m: judge.compute() for m, judge in of.items()} for n, of in judges.items()}
    rows = {
        f"{name}: {COLUMNS[score]}, %": {m: percent(values, score) for m, values in of.items()}
        for name, of in found.items()
        for score in PERCENT
    }
    rows |= {
        "CPU seconds per clip": {m: f"{spent / num_clips:.3f}" for m, spent in seconds.items()},
        "GFLOP per clip": {m: f"{count / 1e9:.2f}" for m, count in flops.items()},
        "parameters, million": {m: f"{size / 1e6:.2f}" for m, size in sizes.items()},
    }
    return f"{table(rows)}\n{CONVENTION}"


def percent(values: Mapping[str, float], score: str) -> str:
    value, low, high, _ = fraction(values[score], int(values["count"]))
    return f"{100 * value:.1f} ({100 * cast(float, low):.0f} to {100 * cast(float, high):.0f})"


def table(rows: Rows) -> str:
    models = list(next(iter(rows.values())))
    lines = [["", *models], ["---"] * (1 + len(models))]
    lines += [[name, *(values[model] for model in models)] for name, values in rows.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def num_parameters(*networks: nn.Module) -> int:
    return sum(p.numel() for network in networks for p in network.parameters())
