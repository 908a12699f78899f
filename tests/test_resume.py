"""Killed at any step by SIGKILL, ``fit --ckpt last`` ends where the uninterrupted run does."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

from cmdvid.__main__ import main
from cmdvid.cli import WholeCheckpoints

AE = """
model:
  class_path: AutoencoderStage
  init_args:
    autoencoder:
      class_path: cmdvid.models.autoencoder.Autoencoder
      init_args: {width: 16, depth: 1, num_heads: 2, patch: 4, motion_noise: 0.1}
    optimizer: {class_path: torch.optim.Adam, init_args: {lr: 1e-3}}
    lr_scheduler: {class_path: torch.optim.lr_scheduler.LinearLR, init_args: {total_iters: 12}}
    statistics_clips: 8
data:
  train: {class_path: WebVid, init_args: {csv: data/train.csv}}
  val: {class_path: WebVid, init_args: {csv: data/val.csv}}
  spec: {num_frames: 3, image_size: [16, 24]}
"""
CONTENT = """
model:
  class_path: ContentStage
  init_args:
    autoencoder_ckpt: autoencoder/last.ckpt
    diffusion:
      class_path: cmdvid.models.diffusion.Diffusion
      init_args:
        denoiser:
          class_path: cmdvid.models.content_unet.ContentUNet
          init_args: {condition_dim: 16, widths: [24, 24], num_layers: 1, patch: 4}
        conditioner:
          class_path: cmdvid.models.conditioning.TextConditioner
          init_args: {width: 16, num_layers: 1, num_heads: 2, context_length: 24}
    optimizer: {class_path: torch.optim.Adam, init_args: {lr: 1e-3}}
    lr_scheduler: {class_path: torch.optim.lr_scheduler.LinearLR, init_args: {total_iters: 12}}
"""
TRAINER = """
seed_everything: 7
data: {batch_size: 2}
trainer:
  max_steps: 16
  accelerator: cpu
  accumulate_grad_batches: 2  # steps of an epoch, on 14 videos: 2, 2, 2 and 1 batches
  val_check_interval: 5
  check_val_every_n_epoch: null
  limit_val_batches: 2
  num_sanity_val_steps: 0
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
"""
FILES = ["--data.train=WebVid", "--data.train.csv=data/train.csv", "--data.val=WebVid"]
FILES += ["--data.val.csv=data/val.csv", "--data.spec={num_frames: 3, image_size: [16, 24]}"]
SOURCES = {  # where a diffusion stage reads
    "files": FILES,
    "shards": [
        "--data.train=cmdvid.data.shards.Shards",
        "--data.train.urls=shards",
        "--data.train.window=2",
        *FILES[2:],
    ],
    "latents": ["--data.latents=latents"],
}
STATES = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "VideoDataModule")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a small data set, settings, an autoencoder and its latents."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        counts = ["--num-videos=14", "--val-videos=4", "--heldout_videos=1"]
        main(["shapes", "--out", "data", *counts, "--num-frames=5", "--image-size=[24,32]"])
        for name, text in {"ae": AE, "content": CONTENT, "trainer": TRAINER}.items():
            Path(f"{name}.yaml").write_text(text)
        main(fit("ae", "autoencoder", "--trainer.max_steps=2", "--data.num_workers=0"))
        main(["encode", "--ckpt=autoencoder/last.ckpt", "--out=latents"])
        index = ["--index=WebVid", "--index.csv=data/train.csv"]
        main(["prepare", *index, "--out=shards", "--samples_per_shard=4", "--num_workers=1"])
    return folder


@pytest.fixture
def here(project, monkeypatch):
    monkeypatch.chdir(project)
    return project


def fit(stage: str, run: Path | str, *words: str, log: str = "log") -> list[str]:
    """A command line that trains in the folder ``run``, with a checkpoint at each third step."""
    csv_log = {"save_dir": str(run), "name": "", "version": log, "flush_logs_every_n_steps": 1}
    saving = {"dirpath": str(run), "save_last": True, "save_top_k": 0, "every_n_train_steps": 3}
    callback = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": saving}
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": csv_log}
    args = ["fit", "--config", f"{stage}.yaml", "--config", "trainer.yaml", *words]
    args += [f"--trainer.callbacks={json.dumps([callback])}", f"--trainer.default_root_dir={run}"]
    return [*args, f"--trainer.logger={json.dumps(logger)}"]


def logged(run: Path, log: str = "log") -> dict[tuple[str, int], str]:
    """The losses of a run, as they were written."""
    if not (run / log / "metrics.csv").is_file():
        return {}
    with (run / log / "metrics.csv").open() as file:
        return {
            (name, int(row["step"])): row[name]
            for row in csv.DictReader(file)
            for name in row
            if name.endswith("/loss") and row[name]
        }


def assert_same_end(whole: Path, stopped: Path, legs: int) -> None:
    losses: dict[tuple[str, int], str] = {}
    for leg in range(legs):
        found = logged(stopped, f"log{leg}")
        assert all(losses[key] == found[key] for key in losses.keys() & found.keys())
        losses |= found
    expected = logged(whole)
    assert {key[1] for key in expected if key[0] == "train/loss"} == set(range(16))
    # a validation that was due just after a checkpoint is not made up for
    assert {key for key in losses if key[0] == "train/loss"} == {
        key for key in expected if key[0] == "train/loss"
    }
    assert {key: expected[key] for key in losses} == losses
    assert any(key[0] == "val/loss" for key in logged(stopped, f"log{legs - 1}"))
    ends = [torch.load(run / "last.ckpt", weights_only=True) for run in (whole, stopped)]
    ends = [{key: end[key] for key in STATES} for end in ends]
    assert ends[0]["global_step"] >= 15  # the last saved; an autoencoder's is written at the end
    torch.testing.assert_close(*ends, atol=0, rtol=0)


def test_a_checkpoint_is_never_written_over(tmp_path, monkeypatch):
    """Also where temporary files lie on another file system, so that moving one is copying it."""
    monkeypatch.setattr(tempfile, "tempdir", "/dev/shm")
    path = tmp_path / "new" / "last.ckpt"
    WholeCheckpoints().save_checkpoint({"step": 1}, path)
    before = path.read_bytes()
    with path.open("rb") as opened:
        WholeCheckpoints().save_checkpoint({"step": 2}, path)
        assert opened.read() == before
    assert torch.load(path) == {"step": 2}
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


CASES = {
    "autoencoder": ("ae", ["--data.num_workers=2"]),
    "content": ("content", [*SOURCES["latents"], "--data.num_workers=0"]),
}
MORE_CASES = {
    f"{source}, {num_workers} workers": (
        "content",
        [*words, f"--data.num_workers={num_workers}"],
    )
    for source, words in SOURCES.items()
    for num_workers in (0, 2)
}
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "2"}


def kill_twice(project: Path, folder: Path, cases: dict[str, tuple[str, list[str]]]) -> None:
    """Run each case, kill it, let it go on, and kill it again; one rank."""
    runs = []
    for name, (stage, words) in cases.items():
        for leg, step in enumerate((4, 9)):
            args = fit(stage, folder / name, *words, "--ckpt=last", log=f"log{leg}")
            runs.append([args, str(folder / name / f"log{leg}/metrics.csv"), step])
    command = [sys.executable, str(Path(__file__).parent / "kill_runs.py"), json.dumps(runs)]
    limits = {"cwd": project, "env": ENVIRONMENT, "timeout": 900}
    done = subprocess.run(command, **limits, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def killed(project, tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    kill_twice(project, folder, CASES)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_a_killed_run_ends_where_an_uninterrupted_one_does(here, killed, tmp_path, name):
    stage, words = CASES[name]
    main(fit(stage, tmp_path, *words))
    main(fit(stage, killed / name, *words, "--ckpt=last", log="log2"))
    assert_same_end(tmp_path, killed / name, 3)


@pytest.mark.slow
def test_a_killed_run_of_each_source_ends_where_an_uninterrupted_one_does(here, tmp_path):
    kill_twice(here, tmp_path, MORE_CASES)
    for name, (stage, words) in MORE_CASES.items():
        main(fit(stage, tmp_path / f"{name}, whole", *words))
        main(fit(stage, tmp_path / name, *words, "--ckpt=last", log="log2"))
        assert_same_end(tmp_path / f"{name}, whole", tmp_path / name, 3)


TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]


def start(args: list[str]) -> subprocess.Popen:
    """The command line as a process group of its own."""
    command = [sys.executable, "-m", "cmdvid", *args]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=ENVIRONMENT, start_new_session=True, **quiet)


def finish(args: list[str]) -> str:
    """Run the command line to its end, and give what it says."""
    process = start(args)
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    return errors


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize("name", MORE_CASES)
def test_two_killed_processes_end_where_uninterrupted_ones_do(here, tmp_path, name):
    stage, words = MORE_CASES[name]
    words = [*words, *TWO]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    finish(fit(stage, whole, *words))
    process = start(fit(stage, stopped, *words, "--ckpt=last", log="log0"))
    deadline = time.monotonic() + 600
    while not any(step >= 7 for _, step in logged(stopped, "log0")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)  # both ranks and their workers
    process.communicate()
    saved = torch.load(stopped / "last.ckpt", weights_only=True)["VideoDataModule"]
    assert (saved["world_size"], saved["batch_size"], saved["size"]) == (2, 2, 14)
    shutil.copytree(stopped, tmp_path / "alone")
    finish(fit(stage, stopped, *words, "--ckpt=last", log="log1"))
    assert_same_end(whole, stopped, 2)
    # one process with the same batch of all: another order of sums, but the same samples
    told = finish(fit(stage, tmp_path / "alone", *words[:-2], "--ckpt=last", "--data.batch_size=4"))
    assert "resumed with batches of 4 on 1 processes, where it had 2 on 2" in told
    assert f"goes on after sample {saved['samples']} of epoch {saved['epoch']}" in told
