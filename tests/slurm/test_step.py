"""Mistakes in how a job is started: each is told with its cure, for it would hang or go unseen."""

import os
import warnings
from pathlib import Path

import pytest

from cmdvid.__main__ import main
from cmdvid.slurm.step import check_alone, check_ranks, in_job, lost_another, started_by_slurm

STEP = {
    "SLURM_JOB_ID": "20001",
    "SLURM_JOB_NAME": "fit-ae",
    "SLURM_NTASKS": "4",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
}


@pytest.fixture
def environment(monkeypatch):
    """A function that sets the variables of a step, with changes; None removes one."""

    def set_(**changes: str | None) -> None:
        for name in ("MASTER_PORT", "TORCHELASTIC_RUN_ID", "SLURM_GPUS_PER_TASK"):
            monkeypatch.delenv(name, raising=False)
        for name, value in (STEP | changes).items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)

    return set_


def test_a_step_with_a_process_for_each_device_is_right(environment):
    environment()
    assert started_by_slurm()
    check_ranks(2, 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"SLURM_STEP_ID": None}, "without srun .* put `srun` before `cmdvid`"),
        ({"SLURM_NTASKS_PER_NODE": None}, "--ntasks=4.* --nodes and --ntasks-per-node"),
        ({"SLURM_GPUS_PER_TASK": "1"}, "--gpus-per-task.* --gpus-per-node"),
    ],
    ids=["no srun", "ntasks", "gpus per task"],
)
def test_a_job_that_was_submitted_wrongly(environment, changes, words):
    environment(**changes)
    with pytest.raises(ValueError, match=words):
        started_by_slurm()


@pytest.mark.parametrize(("devices", "nodes"), [(4, 1), (2, 1), (1, 4)])
def test_a_trainer_that_expects_other_processes(environment, devices, nodes):
    environment()
    with pytest.raises(ValueError, match=r"started 4 processes, 2 on each of 2 nodes.* give srun"):
        check_ranks(devices, nodes)


@pytest.mark.parametrize("name", ["bash", "interactive"])
def test_a_job_name_that_lightning_takes_for_a_shell_does_not_split_a_training(environment, name):
    environment(SLURM_JOB_NAME=name)
    assert started_by_slurm()


@pytest.mark.parametrize("step", [None, "0"])
def test_in_a_shell_lightning_starts_the_processes(environment, step):
    one = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_ID": step}
    environment(SLURM_JOB_NAME="bash", **one)
    assert in_job()
    assert not started_by_slurm()


def test_a_shell_of_another_name_is_told_the_name(environment):
    one = dict.fromkeys(("SLURM_NTASKS", "SLURM_NNODES", "SLURM_STEP_NUM_TASKS"), "1")
    environment(SLURM_NTASKS_PER_NODE=None, **one)
    assert started_by_slurm()
    with pytest.raises(ValueError, match="SLURM_JOB_NAME=bash"):
        check_ranks(2, 1)


def test_torchrun_is_left_alone(environment):
    environment(TORCHELASTIC_RUN_ID="1")
    assert not in_job()


def test_steps_side_by_side_have_ports_of_their_own(environment, monkeypatch):
    ports = set()
    for job, step in (("20001", "0"), ("20001", "1"), ("20002", "0"), ("10001", "0")):
        environment(SLURM_JOB_ID=job, SLURM_STEP_ID=step)
        started_by_slurm()
        ports.add(int(os.environ["MASTER_PORT"]))
        monkeypatch.delenv("MASTER_PORT")
    assert len(ports) == 4
    assert all(1024 < port < 32768 for port in ports)


def test_one_process_does_not_wait_for_other_machines(environment, monkeypatch):
    """As after `salloc -N2` and no srun, in a job that is named `interactive`."""
    environment(SLURM_JOB_NAME="interactive", SLURM_STEP_ID=None)
    assert not started_by_slurm()
    with pytest.raises(ValueError, match=r"num_nodes is 2, but srun did not start .* put `srun`"):
        check_alone(2)
    check_alone(1)
    monkeypatch.setenv("NODE_RANK", "1")  # somebody starts each of them by hand
    check_alone(2)


def test_an_error_that_follows_from_a_kill_is_known():
    cause = RuntimeError("[/x/gloo/transport/tcp/pair.cc:538] Connection closed by peer")
    error = ValueError("in backward")
    error.__cause__ = cause
    assert lost_another(error)
    assert lost_another(type("DistBackendError", (type("DistError", (Exception,), {}),), {})())
    assert not lost_another(ValueError("no such file"))


def test_a_run_beside_an_unused_srun_is_not_warned(project, monkeypatch):
    """With warnings as errors, each trainer on a login node would fail."""
    counts = ["--num-videos=2", "--val-videos=1", "--heldout-videos=1"]
    main(["shapes", "--out", "data", *counts, "--num-frames=4", "--image-size=[24,32]"])
    Path("bin").mkdir()
    Path("bin/srun").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(Path("bin").resolve()), prepend=os.pathsep)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*srun")
        main(["fit", "--config", "ae.yaml", "--trainer.max_steps", "1"])
    assert Path("run/last.ckpt").is_file()
