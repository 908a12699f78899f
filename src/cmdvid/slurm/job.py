"""One job: from what it runs and where to a batch script."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import cast

from cmdvid.slurm.cluster import Cluster
from cmdvid.slurm.step import FAILED, INTERACTIVE


class Script(Template):
    """A batch script with gaps; a shell needs ``$`` for itself."""

    delimiter = "@@"


@dataclass(frozen=True)
class Array:
    """Tasks of one job that differ by $SLURM_ARRAY_TASK_ID.

    Attributes:
        tasks: Their numbers, as in ``0-7``.
        words: Shell text, further words of the command.
        lines: Shell text that runs before it.
    """

    tasks: str
    words: str
    lines: str = ""


@dataclass(frozen=True)
class Job:
    """A command of cmdvid as a job.

    Attributes:
        name: Of job, script and log.
        words: The verb and its options.
        nodes: How many.
        devices: Processes on each node, one for each device.
        gpus: Whether the devices are GPUs.
        last: Checkpoint that a training writes and goes on from; none for other verbs.
        cache: Folder of shards that `encode` writes, and goes on with; none for other verbs.
        array: If the job is one.
    """

    name: str
    words: tuple[str, ...]
    nodes: int = 1
    devices: int = 1
    gpus: bool = True
    last: str | None = None
    cache: str | None = None
    array: Array | None = None

    def __post_init__(self) -> None:
        if self.name in INTERACTIVE:
            raise ValueError(
                f"a job must not be named {self.name!r}: Lightning takes such a job for a shell, "
                "and each process would train alone; give --name"
            )

    def script(self, cluster: Cluster) -> str:
        """The whole batch script."""
        srun, command = cluster.start
        words, lines = shlex.join(self.words), cluster.lines
        if self.array is not None:
            words, lines = f"{words} {self.array.words}", f"{lines}\n{self.array.lines}".strip()
        number = "%j" if self.array is None else "%A_%a"
        template = Script((Path(__file__).parent / "job.sbatch").read_text())
        text = template.substitute(
            name=shlex.quote(self.name),
            nodes=self.nodes,
            devices=self.devices,
            cpus=cluster.cpus_per_task,
            time=cluster.time,
            log=shlex.quote(f"{cluster.folder}/%x-{number}.out"),
            options="\n".join(f"#SBATCH {option}" for option in self._options(cluster)),
            setup=lines,
            last=shlex.quote(self.last or ""),
            growing=shlex.join(self._growing),
            srun=f" {srun}" if srun else "",
            command=f"{command} {words}",
            failed=f"{FAILED}={shlex.quote(cluster.folder)}",
            max_restarts=cluster.max_restarts,
        )
        return text.replace("\n\n\n", "\n\n")

    @property
    def _growing(self) -> list[str]:
        """Files and folders that change as the job gets further; none if it would begin anew."""
        if self.cache is not None:
            return [f"{self.cache}/train", f"{self.cache}/val"]
        return [] if self.last is None else [self.last]

    def _options(self, cluster: Cluster) -> list[str]:
        options = []
        if self._growing:  # others would do all of it again
            options.append(f"--signal=USR1@{cluster.warning}")
        named = {"partition": cluster.partition, "account": cluster.account}
        options += [f"--{name}={value}" for name, value in named.items() if value is not None]
        if self.gpus and cluster.gpus is not None:
            options.append(Template(cluster.gpus).substitute(devices=self.devices))
        if self.array is not None:
            options.append(f"--array={self.array.tasks}")
        bare = (None, "", "true")  # such as --exclusive
        return options + [
            f"--{name}" if value in bare else f"--{name}={shlex.quote(cast(str, value))}"
            for name, value in cluster.sbatch.items()
        ]
