"""Scripts to Slurm: printed, checked, submitted, with what they wait for."""

import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cmdvid.slurm.cluster import Cluster
from cmdvid.slurm.job import Job
from cmdvid.whole import write_text


@dataclass(frozen=True)
class Queued:
    """A job and the jobs whose success it waits for: ours, or ids of earlier ones."""

    job: Job
    after: tuple[Job | str, ...] = ()


def show(queue: Sequence[Queued], cluster: Cluster) -> None:
    """Print the scripts and, where Slurm is at hand, what it says of them.

    Raises:
        ValueError: If Slurm would refuse one, or two have one name.
    """
    _refuse_doubles(queue)
    for each in queue:
        names = [job if isinstance(job, str) else job.name for job in each.after]
        print(f"# {each.job.name}" + (f", after {', '.join(names)}" if names else ""))
        print(each.job.script(cluster))
    if shutil.which("sbatch"):
        check(queue, cluster)


def check(queue: Sequence[Queued], cluster: Cluster) -> None:
    """Let Slurm look at all scripts, so that no part of a pipeline is queued if one is refused.

    Raises:
        ValueError: If one is refused.
    """
    for each in queue:
        print(_sbatch(each.job, cluster, "--test-only"))


def submit(queue: Sequence[Queued], cluster: Cluster) -> None:
    """Submit the jobs; a job of which another fails to be submitted is cancelled again.

    Each script stays beside its log, under the job's number.

    Raises:
        ValueError: If there is no Slurm here, or it refuses a job, or two have one name.
    """
    _refuse_doubles(queue)
    if not shutil.which("sbatch"):
        raise ValueError(
            "sbatch is not on this machine: run this on the cluster's login node, or give --dry-run"
        )
    check(queue, cluster)
    numbers: dict[str, str] = {}
    try:
        for each in queue:
            _submit(each, cluster, numbers)
    except BaseException:
        if numbers:
            subprocess.run(["scancel", *numbers.values()], check=False)
        raise


def _refuse_doubles(queue: Sequence[Queued]) -> None:
    """See that jobs can be told apart, for by name others wait for them."""
    counts = Counter(each.job.name for each in queue)
    if doubles := [name for name, count in counts.items() if count > 1]:
        raise ValueError(f"several jobs have the name {doubles[0]}; nothing was submitted")


def _submit(each: Queued, cluster: Cluster, numbers: dict[str, str]) -> None:
    ids = [job if isinstance(job, str) else numbers[job.name] for job in each.after]
    options = ["--parsable"]
    if ids:
        options += [f"--dependency=afterok:{':'.join(ids)}", "--kill-on-invalid-dep=yes"]
    name, folder = each.job.name, Path(cluster.folder)
    folder.mkdir(parents=True, exist_ok=True)  # Slurm does not, and drops the log
    numbers[name] = number = _sbatch(each.job, cluster, *options).split(";")[0]
    script = folder / f"{name}-{number}.sbatch"
    write_text(script, each.job.script(cluster))
    wait = f", after {', '.join(ids)}" if ids else ""
    print(f"{name}: job {number}{wait}; script and log: {script.with_suffix('')}*")


def _sbatch(job: Job, cluster: Cluster, *options: str) -> str:
    done = subprocess.run(
        ["sbatch", *options], input=job.script(cluster), text=True, capture_output=True, check=False
    )
    if done.returncode:
        raise ValueError(f"Slurm refuses {job.name}: {done.stderr.strip()}")
    return (done.stdout + done.stderr).strip() if "--test-only" in options else done.stdout.strip()
