"""The tables of ``cmdvid profile``: what the configs' stages cost, and ours beside the paper's."""

from collections.abc import Mapping, Sequence

from cmdvid.profiling import (
    PAPER,
    PAPER_MEMORY,
    PAPER_MODELSCOPE_SAMPLING,
    PAPER_PARAMETERS,
    PAPER_SAMPLING,
    Cost,
    Part,
    forward_cost,
    num_parameters,
    paper_parts,
    peak_memory,
    training_cost,
)

T = 1e12
CONVENTION = """\
FLOPs: real operations, 2 per multiply-accumulate, attention included.
paper's counting: multiply-accumulates of a forward pass, attention's products left out.
memory: an estimate of a training step's peak on one device in fp32 (GB = 1e9 bytes); see
cmdvid.profiling.peak_memory for what it leaves out.
No codec; a training step is without the encoding of clips that are not cached."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def training_table(parts: Sequence[Part]) -> str:
    """One row a stage: parameters, FLOPs of a pass and of a step, memory."""
    head = "stage, parameters (M), trained (M), forward (TFLOPs), paper's counting (T), "
    head += "clips a step, training step (TFLOPs), memory (GB)"
    rows = []
    for part in parts:
        forward, step = forward_cost(part), training_cost(part) * part.batch_size
        sizes = [num_parameters(part.network, trained=trained) / 1e6 for trained in (False, True)]
        costs = [forward.flops / T, forward.paper / T]
        rows.append(
            [
                part.name,
                *(f"{x:.2f}" for x in sizes),
                *(f"{x:.4g}" for x in costs),
                str(part.batch_size),
                f"{step.flops / T:.4g}",
                f"{peak_memory(part) / 1e9:.2f}",
            ]
        )
    return table(head.split(", "), rows)


def sampling_cost(
    parts: Mapping[str, Part], decode: Cost, *, steps: tuple[int, int], guided: tuple[bool, bool]
) -> Cost:
    """A sample as we make it: content and motion steps, twice each if guided, and one decoding."""
    passes = zip(("content", "motion"), steps, guided, strict=True)
    costs = (forward_cost(parts[name]) * (n * (1 + twice)) for name, n, twice in passes)
    return sum(costs, decode)


def paper_report() -> str:
    """The paper's setting in our code, beside CMD Tables 8, 9 and 10."""
    square, wide = paper_parts(512, 512), paper_parts(512, 1024)
    costs = {name: forward_cost(part).paper / T for name, part in wide.items()}
    training = [
        [
            name,
            f"{forward_cost(part).paper / T:.3f}",
            str(PAPER[name]),
            f"{peak_memory(part) / 1e9:.1f}",
            str(PAPER_MEMORY[name]),
        ]
        for name, part in square.items()
    ]
    sampling = [
        [
            f"CMD, {n} steps of each",
            str(paper),
            f"{n * (costs['content'] + costs['motion']) + costs['autoencoder']:.2f}",
        ]
        for n, paper in PAPER_SAMPLING.items()
    ]
    modelscope = 50 * costs["ModelScope"]
    sampling.append(["ModelScope, 50 steps", str(PAPER_MODELSCOPE_SAMPLING), f"{modelscope:.1f}"])
    counts = {name: num_parameters(part.network) / 1e9 for name, part in square.items()}
    cmd = sum(counts[name] for name in ("autoencoder", "content", "motion"))
    owned = {"CMD": cmd, "ModelScope": counts["ModelScope"]}
    parameters = [[k, f"{PAPER_PARAMETERS[k] / 1e9}", f"{v:.2f}"] for k, v in owned.items()]
    head = ["model", "ours (T)", "paper (T)", "ours, estimated, fp32 (GB)", "paper, fp16 (GB)"]
    return "\n\n".join(
        [
            "The paper's setting (SD 2.1-base), in the paper's counting",
            "Training at 512x512x16, batch 1 (Table 8)",
            table(head, training),
            "Sampling at 512x1024x16, batch 1 (Table 9): content, motion, one autoencoder pass",
            table(["model", "paper (T)", "ours (T)"], sampling),
            "Parameters (Table 10), ours without text encoders and VAE",
            table(["model", "paper (billion)", "ours (billion)"], parameters),
        ]
    )
