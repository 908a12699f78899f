"""Killed at any step by SIGKILL, ``fit --ckpt last`` ends where the uninterrupted run does."""

import csv
import json
import os
import subprocess
import sys
import tempfile
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
    assert ends[0]["global_step"] == 16
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


@pytest.fixture(scope="module")
def killed(project, tmp_path_factory):
    """A folder with a run of each kind that was killed, went on, and was killed again."""
    folder, runs = tmp_path_factory.mktemp("killed"), []
    for name, (stage, words) in CASES.items():
        for leg, step in enumerate((4, 9)):
            args = fit(stage, folder / name, *words, "--ckpt=last", log=f"log{leg}")
            runs.append([args, str(folder / name / f"log{leg}/metrics.csv"), step])
    script = Path(__file__).parent / "kill_runs.py"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(script), json.dumps(runs)]
    done = subprocess.run(
        command, cwd=project, env=environment, timeout=900, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", CASES)
def test_a_killed_run_ends_where_an_uninterrupted_one_does(here, killed, tmp_path, name):
    stage, words = CASES[name]
    main(fit(stage, tmp_path, *words))
    main(fit(stage, killed / name, *words, "--ckpt=last", log="log2"))
    assert_same_end(tmp_path, killed / name, 3)
