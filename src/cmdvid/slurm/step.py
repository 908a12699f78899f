"""What Slurm started this process as, and whether the trainer was told the same.

Each mistake caught here hangs, or trains the wrong number of models, if it is not.
"""

import contextlib
import os
from pathlib import Path

INTERACTIVE = ("bash", "interactive")  # Lightning ignores Slurm's ranks in jobs of these names
FIRST_PORT, NUM_PORTS = 15000, 15000
FAILED = "CMDVID_FAILED"  # where a job's script looks for a failure of any of its processes


def in_job() -> bool:
    """Whether this process is of a job of Slurm, and torchrun has not started it there."""
    return "SLURM_JOB_ID" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ


def started_by_slurm() -> bool:
    """Whether Slurm has started a process for each device of the job, and not a shell.

    Also gives each step a port of its own, for two of one job may run side by side.

    Raises:
        ValueError: If the job is not as it must be for that.
    """
    tasks = _number("SLURM_NTASKS")
    alone = _number("SLURM_STEP_NUM_TASKS") == 1 or "SLURM_STEP_ID" not in os.environ
    if alone and os.environ.get("SLURM_JOB_NAME") in INTERACTIVE:
        return False  # the shell of `srun --pty bash` or `salloc`: Lightning starts the processes
    if "SLURM_STEP_ID" not in os.environ:
        if tasks > 1:
            raise ValueError(
                f"the job has {tasks} tasks, but this process was started without srun and would "
                "wait for the others for ever: put `srun` before `cmdvid`"
            )
        return False
    if tasks > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise ValueError(
            f"the job was submitted with --ntasks={tasks}, which does not say how many run on each "
            "node: give --nodes and --ntasks-per-node instead"
        )
    if tasks > 1 and "SLURM_GPUS_PER_TASK" in os.environ:
        raise ValueError(
            "the job was submitted with --gpus-per-task, so that each process sees one GPU only: "
            "give --gpus-per-node or --gres=gpu:N instead"
        )
    step = 10 * _number("SLURM_JOB_ID") + _number("SLURM_STEP_ID")
    os.environ.setdefault("MASTER_PORT", str(FIRST_PORT + step % NUM_PORTS))
    return True


def tell_failure() -> None:
    """Leave a file for the script of the job, which sees no more than srun's exit code.

    That is 128 + 9 after an error as well as after a kill: srun kills the others because of it.
    """
    if path := os.environ.get(FAILED):
        with contextlib.suppress(OSError):  # the folder may not be in the container
            Path(path).touch()


def lost_another(error: BaseException | None) -> bool:
    """Whether an error says no more than that another process is gone, perhaps killed.

    By names and words, for this has to work before torch is imported: gloo raises RuntimeErrors.
    """
    while error is not None:
        names = {kind.__name__ for kind in type(error).__mro__}
        if "DistError" in names or "gloo/transport" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def check_alone(num_nodes: int) -> None:
    """See that a process which Slurm has not started waits for no other machine.

    Raises:
        ValueError: If the trainer has several, and nothing says which of them this is.
    """
    if num_nodes > 1 and "NODE_RANK" not in os.environ:
        raise ValueError(
            f"trainer.num_nodes is {num_nodes}, but srun did not start this process, which would "
            "wait for the other machines for ever: put `srun` before `cmdvid`"
        )


def check_ranks(num_devices: int, num_nodes: int) -> None:
    """See that the trainer expects the processes that Slurm has started.

    Raises:
        ValueError: If it expects others.
    """
    tasks, nodes = _number("SLURM_NTASKS"), _number("SLURM_NNODES")
    per_node = _number("SLURM_NTASKS_PER_NODE", default=tasks // nodes)
    if (num_devices, num_nodes) == (per_node, nodes) and num_devices * num_nodes == tasks:
        return
    cure = f"give srun --nodes={num_nodes} --ntasks-per-node={num_devices}, or "
    cure += f"--trainer.num_nodes {nodes} --trainer.devices {per_node}"
    if tasks == 1 and num_nodes == 1:
        cure += "; in an interactive shell put SLURM_JOB_NAME=bash before the command"
    raise ValueError(
        f"Slurm started {tasks} processes, {per_node} on each of {nodes} nodes, but the trainer "
        f"has trainer.devices {num_devices} on trainer.num_nodes {num_nodes}: {cure}"
    )


def _number(name: str, *, default: int = 1) -> int:
    return int(os.environ.get(name, default))
