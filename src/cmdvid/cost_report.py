"""The tables of ``cmdvid profile``: what the configs' stages cost, and ours beside the paper's."""

from collections.abc import Mapping, Sequence

from cmdvid.cost_parts import paper_parts
from cmdvid.memory import sampling_memory, training_memory
from cmdvid.profiling import (
    Call,
    Cost,
    Part,
    calls_cost,
    forward_cost,
    num_parameters,
    training_cost,
)

T, GB = 1e12, 1e9
# CMD Tables 8 (512x512x16, one forward) and 9 (512x1024x16; 50 and 100 steps), TFLOPs; Table 10
PAPER = {"autoencoder": 0.77, "content": 0.34, "motion": 0.14, "ModelScope": 9.41}
PAPER_SAMPLING = {50: 46.8, 100: 92.1}
PAPER_MODELSCOPE_SAMPLING = 939.0
PAPER_PARAMETERS = {"CMD": 1.6, "ModelScope": 1.7}
PAPER_MEMORY = {"autoencoder": 8.93, "content": 21.5, "motion": 18.7, "ModelScope": 69.6}  # GB
CONVENTION = """\
FLOPs: real operations, 2 per multiply-accumulate, attention included. A step is the optimizer's, on
one device, with all its accumulated passes.
paper's counting: multiply-accumulates of a forward pass, attention's products left out.
memory: the estimated peak on one device (GB = 1e9 bytes), by torch's MemTracker on fake tensors;
nothing was measured on a GPU. docs/profile.md says what is left out."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def training_table(parts: Sequence[Part]) -> str:
    """One row a stage: parameters, and operations of a pass and of a step."""
    head = "stage, parameters (M), trained (M), forward (TFLOPs), paper's counting (T), "
    head += "clips a step, passes and their backward (TFLOPs), encoding (TFLOPs)"
    rows = []
    for part in parts:
        clips = part.batch_size * part.accumulate
        forward, step = forward_cost(part), training_cost(part) * clips
        sizes = [num_parameters(part.network, trained=trained) / 1e6 for trained in (False, True)]
        encoding = calls_cost(part.before) * clips
        costs = (forward.flops, forward.paper, step.flops, encoding.flops)
        figures = [f"{cost / T:.4g}" for cost in costs]
        counted = [f"{part.batch_size} x {part.accumulate}"]
        rows.append([part.name, *(f"{x:.2f}" for x in sizes), *figures[:2], *counted, *figures[2:]])
    return table(head.split(", "), rows)


def memory_table(parts: Sequence[Part]) -> str:
    """One row a stage: where the memory of a training step goes."""
    head = "stage, precision, weights and optimizer (GB), frozen networks, activations, "
    head += "or encoding / Adam's step / previews, peak (GB)"
    rows = []
    for part in parts:
        memory = training_memory(part)
        bytes_ = (memory.states, memory.frozen, memory.activations, memory.other, memory.peak)
        rows.append([part.name, part.precision, *(f"{x / GB:.2f}" for x in bytes_)])
    return table(head.split(", "), rows)


def sampling_report(calls: Mapping[str, Call], precision: str) -> str:
    """A table of all that one sample calls, and the memory that it takes."""
    head = ["one sample", "parameters (M)", "times", "TFLOPs"]
    rows, total = [], Cost()
    for name, call in calls.items():
        cost = calls_cost([call])
        total = total + cost
        size = num_parameters(call.network) / 1e6
        rows.append([name, f"{size:.2f}", f"{call.times:g}", f"{cost.flops / T:.4g}"])
    sizes = sum(num_parameters(call.network) for call in calls.values()) / 1e6
    rows.append(["in all", f"{sizes:.2f}", "", f"{total.flops / T:.4g}"])
    memory = sampling_memory(calls.values(), precision)
    return f"{table(head, rows)}\n\nMemory of a sample in {precision}: {memory / GB:.2f} GB"


def paper_report() -> str:
    """The paper's setting in our code, beside CMD Tables 8, 9 and 10."""
    square, wide = paper_parts(512, 512), paper_parts(512, 1024)
    costs = {name: forward_cost(part).paper / T for name, part in wide.items()}
    training = [
        [
            name,
            f"{forward_cost(part).paper / T:.3f}",
            str(PAPER[name]),
            f"{training_memory(part).peak / GB:.1f}",
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
    parameters = [[k, str(PAPER_PARAMETERS[k]), f"{v:.2f}"] for k, v in owned.items()]
    head = ["model", "ours (T)", "paper (T)", "ours, estimated (GB)", "paper (GB)"]
    return "\n\n".join(
        [
            "The paper's setting (SD 2.1-base), in the paper's counting",
            "Training at 512x512x16, batch 1, fp16 (Table 8)",
            table(head, training),
            "Sampling at 512x1024x16, batch 1 (Table 9): content, motion, one autoencoder pass",
            table(["model", "paper (T)", "ours (T)"], sampling),
            "Parameters (Table 10), ours without text encoders and VAE",
            table(["model", "paper (billion)", "ours (billion)"], parameters),
        ]
    )
