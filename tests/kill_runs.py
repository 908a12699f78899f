"""Runs of the command line one after another, each killed when its log shows a step.

``python kill_runs.py '[[args, log, step], ...]'``: Lightning is imported once, for all of them.
"""

import csv
import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

import cmdvid.stages  # noqa: F401
from cmdvid.__main__ import main


def last_step(log: Path) -> int:
    if not log.is_file():
        return -1
    return max((int(row["step"]) for row in csv.DictReader(log.open()) if row["step"]), default=-1)


def kill_at(step: int, args: list[str], log: Path) -> None:
    if not (child := os.fork()):
        torch.set_num_threads(2)  # as in the tests: sums depend on it
        main(args)
        os._exit(0)
    while last_step(log) < step:
        if os.waitpid(child, os.WNOHANG)[0]:
            sys.exit(f"the run to be killed at step {step} ended by itself")
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


for args, log, step in json.loads(sys.argv[1]):
    kill_at(step, args, Path(log))
