"""`cmdvid slurm`: the same command lines, as jobs of a cluster."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cmdvid.slurm.cluster import DEFAULT, Cluster, read_cluster
from cmdvid.slurm.pipeline import Configs, plan_pipeline
from cmdvid.slurm.plan import VERBS, plan, read, spread
from cmdvid.slurm.submit import Queued, show, submit

PIPELINE = "pipeline"
STAGES = ("autoencoder", "content", "motion", "generate")
PARTS = (*STAGES, "encode")


def main(args: Sequence[str]) -> None:
    """Submit one stage or the whole pipeline, or print its scripts.

    Args:
        args: A verb or ``pipeline``, options of the launcher, and any option of the verb.

    Raises:
        ValueError: If anything is wrong or missing; then nothing is in the queue.
    """
    known, words = _options().parse_known_args(list(args))
    cluster = read_cluster(known.cluster)
    changed = {name: getattr(known, name) for name in ("time", "partition")}
    changed = {name: value for name, value in changed.items() if value is not None}
    cluster: Cluster = replace(cluster, **changed)
    if known.nodes is not None:
        words += ["--trainer.num_nodes", str(known.nodes)]
    plan_ = _pipeline if known.what == PIPELINE else _stage
    queue = plan_(known, words, cluster.auto)
    (show if known.dry_run else submit)(queue, cluster)


def _options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="cmdvid slurm",
        allow_abbrev=False,
        exit_on_error=False,
        epilog="Any other option is the stage's own: --config FILE, --ckpt PATH, --trainer.KEY ...",
    )
    options.add_argument("what", choices=(*VERBS, PIPELINE), metavar="STAGE", help="a verb")
    options.add_argument("--cluster", help=f"YAML of the cluster (default: {DEFAULT})")
    options.add_argument("--nodes", type=int, help="trainer.num_nodes")
    options.add_argument("--time", help="limit of each start, instead of the YAML's")
    options.add_argument("--partition", help="instead of the YAML's")
    options.add_argument("--name", help="of the job")
    options.add_argument("--after", help="ids of jobs that must end well before, joined by colons")
    options.add_argument("--seeds", help="predict once for each of these seeds, as in 0-7")
    options.add_argument("--parts", type=int, help="share out the prompts among so many tasks")
    options.add_argument("--dry_run", action="store_true", help="print the scripts and stop")
    for part in PARTS:
        help_ = "pipeline: a YAML of this stage; again for another on top"
        options.add_argument(f"--{part}", action="append", default=[], help=help_)
    options.add_argument("--prompts", help="file of captions to make videos of")
    help_ = "pipeline: go on with what an earlier, failed one has left"
    options.add_argument("--resume", action="store_true", help=help_)
    return options


def _stage(known: Any, words: list[str], auto: int | None) -> list[Queued]:
    """One command line."""
    if unused := [part for part in PARTS if getattr(known, part)]:
        raise ValueError(f"--{unused[0]}: only pipeline takes it; give --config FILE")
    if known.resume:
        raise ValueError("--resume: only pipeline takes it; give --ckpt PATH")
    if known.prompts is not None:
        words = [*words, "--prompts", known.prompts]
    job = plan(known.what, words, read(known.what, words), name=known.name, auto=auto)
    after = tuple(known.after.split(":")) if known.after else ()
    return [Queued(spread(job, seeds=known.seeds, parts=known.parts), after)]


def _pipeline(known: Any, words: Sequence[str], auto: int | None) -> list[Queued]:
    """All stages."""
    if missing := [part for part in STAGES if not getattr(known, part)]:
        raise ValueError(f"pipeline: give --{missing[0]} FILE, the YAML of that stage")
    if known.name or known.after:
        raise ValueError("pipeline: its jobs have names and an order of their own")
    configs = Configs(**{part: getattr(known, part) for part in PARTS})
    if known.prompts is None and (known.seeds is not None or known.parts is not None):
        raise ValueError("pipeline: --seeds and --parts are of the videos; give --prompts FILE")
    how = {"prompts": known.prompts, "seeds": known.seeds, "parts": known.parts}
    return plan_pipeline(configs, words=words, auto=auto, resume=known.resume, **how)
