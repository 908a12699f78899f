"""What differs between clusters: the one YAML that a user edits."""

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

import yaml
from jsonargparse import ArgumentError, ArgumentParser

DEFAULT = "configs/cluster/slurm.yaml"


@dataclass(frozen=True)
class Cluster:
    """Settings of a cluster; each is a line of the YAML, so they are more than eight.

    Attributes:
        partition: Where jobs go; the cluster's default if none.
        account: Who pays.
        time: Limit of one start, as sbatch takes it.
        warning: Seconds before that limit at which a training is told to save.
        max_restarts: How often a job may be started again.
        cpus_per_task: Cores of each process; a process has one device.
        gpus: sbatch's option for the GPUs of a node, with ``$devices``; none without GPUs.
        gpus_per_node: What ``trainer.devices: auto`` means; without it that is refused.
        sbatch: Further options of sbatch; one without a value has none or ``true``.
        modules: Environment modules to load.
        environment: Variables to set.
        setup: Further lines of shell before srun.
        container: ``none``, ``pyxis:IMAGE`` or ``apptainer:IMAGE``.
        mounts: Folders that a container sees besides the working folder.
        command: What starts cmdvid; this Python, or ``cmdvid`` in a container.
        folder: Where scripts and logs go.
    """

    partition: str | None = None
    account: str | None = None
    time: str = "1-00:00:00"
    warning: int = 120
    max_restarts: int = 100
    cpus_per_task: int = 8
    gpus: str | None = "--gpus-per-node=$devices"
    gpus_per_node: int | None = None
    sbatch: dict[str, str | None] = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    setup: list[str] = field(default_factory=list)
    container: str = "none"
    mounts: list[str] = field(default_factory=list)
    command: str | None = None
    folder: str = "runs/slurm"

    def __post_init__(self) -> None:
        kind, _, image = self.container.partition(":")
        if self.container != "none" and (kind not in ("pyxis", "apptainer") or not image):
            raise ValueError(
                f"container must be none, pyxis:IMAGE or apptainer:IMAGE, got {self.container!r}"
            )
        least = {"warning": 0, "max_restarts": 0, "cpus_per_task": 1, "gpus_per_node": 1}
        for name, bound in least.items():
            if (value := getattr(self, name)) is not None and value < bound:
                raise ValueError(f"{name} must be at least {bound}, got {value}")
        try:
            Template(self.gpus or "").substitute(devices=1)
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"gpus: after a dollar sign only `devices` may stand, as in "
                f"--gpus-per-node=$devices, got {self.gpus!r}"
            ) from error

    @property
    def auto(self) -> int | None:
        """Devices of a node where a config leaves their number open; none if nothing says it."""
        return 1 if self.gpus is None else self.gpus_per_node

    @property
    def start(self) -> tuple[str, str]:
        """Options of srun, and the words that start cmdvid after them, both as shell text."""
        python = f"{shlex.quote(sys.executable)} -m cmdvid"
        if self.container == "none":
            return "", self.command or python
        kind, _, image = self.container.partition(":")
        command, image = self.command or "cmdvid", shlex.quote(image)
        mounts = [shlex.quote(mount) for mount in self.mounts]
        if kind == "apptainer":
            bind = ",".join(['"$PWD"', *mounts])
            return "", f'apptainer exec --nv --bind {bind} --pwd "$PWD" {image} {command}'
        # pyxis mounts with an explicit place inside
        seen = ",".join(['"$PWD:$PWD"', *(m if ":" in m else f"{m}:{m}" for m in mounts)])
        options = f"--container-image={image} --container-mounts={seen}"
        return f'{options} --container-workdir="$PWD" --no-container-mount-home', command

    @property
    def lines(self) -> str:
        """What the job's shell does first."""
        lines = [f"module load {shlex.quote(name)} || exit 1" for name in self.modules]
        lines += [f"export {k}={shlex.quote(v)}" for k, v in self.environment.items()]
        return "\n".join([*lines, *self.setup])


def read_cluster(file: str | None) -> Cluster:
    """Read the YAML; without one the defaults count, unless it was asked for by name.

    Raises:
        ValueError: If it is missing or wrong; the message names file and key.
    """
    if file is None and not Path(DEFAULT).is_file():
        return Cluster()
    file = file or DEFAULT
    if not Path(file).is_file():
        raise ValueError(f"{file}: no such file; configs/cluster/slurm.yaml is one to start from")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Cluster)
    try:
        # scalars as they are written: YAML would make seconds of 12:00:00, a number of an account
        settings = yaml.load(Path(file).read_text(), Loader=yaml.BaseLoader) or {}
        if not isinstance(settings, dict):
            raise ValueError("must hold lines of the form `key: value`")
        settings = {key: None if value == "" else value for key, value in settings.items()}
        return Cluster(**parser.parse_object(settings).as_dict())
    except (ArgumentError, ValueError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{file}: {' '.join(str(error).split())}") from error
