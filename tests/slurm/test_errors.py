"""An error in one of several processes, started as srun would start them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from lightning.pytorch import Callback

from cmdvid.__main__ import main

SOURCE = os.pathsep.join([str(Path(__file__).parents[2] / "src"), str(Path(__file__).parent)])


class Fail(Callback):
    """Raises on the first process, in its third step."""

    def on_train_batch_start(self, trainer, stage, batch, batch_idx):
        if trainer.is_global_zero and trainer.global_step == 2:
            raise KeyError("of a test")


@pytest.mark.slow
@pytest.mark.ddp
def test_both_processes_end_at_once_and_the_failed_one_says_so(project):
    """Saving on exceptions ends in a barrier: the first would wait in it until it is killed."""
    counts = ["--num-videos=8", "--val-videos=1", "--heldout-videos=1"]
    main(["shapes", "--out", "data", *counts, "--num-frames=4", "--image-size=[24,32]"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    keep = {"dirpath": "run", "save_last": True, "every_n_train_steps": 1}
    keep |= {"save_on_exception": True, "enable_version_counter": False}
    callbacks = [
        {"class_path": "test_errors.Fail"},
        {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": keep},
    ]
    words = ["fit", "--config", "ae.yaml", "--trainer.callbacks", json.dumps(callbacks)]
    words += ["--trainer.max_steps", "4", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    words += ["--data.batch_size", "1"]
    step = dict.fromkeys(("NTASKS", "NTASKS_PER_NODE", "STEP_NUM_TASKS"), "2")
    step |= {"JOB_ID": "1", "JOB_NAME": "x", "STEP_ID": "0", "NNODES": "1", "NODEID": "0"}
    shared = {f"SLURM_{name}": value for name, value in step.items()}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": SOURCE}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "cmdvid", *words],
            env=os.environ
            | shared
            | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "CMDVID_FAILED": f"{rank}.failed"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in "01"
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert "save_on_exception is off" in said[0]
    assert "KeyError: 'of a test'" in said[0]
    assert "pair.cc" in said[1]
    assert [process.returncode for process in processes] == [1, 1]
    assert [path.name for path in Path().glob("*.failed")] == ["0.failed"]
