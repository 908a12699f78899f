"""A training that is told to stop: saved between two steps, and the same in the end."""

import json
import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from cmdvid.__main__ import main
from cmdvid.signals import LISTENER, Notice
from cmdvid.stages import AutoencoderStage

CONFIG = """
model:
  class_path: AutoencoderStage
  init_args:
    autoencoder:
      class_path: cmdvid.models.autoencoder.Autoencoder
      init_args: {width: 16, depth: 1, num_heads: 2, patch: 4, motion_noise: 0.1}
    optimizer: {class_path: torch.optim.Adam, init_args: {lr: 1e-3}}
    statistics_clips: 4
data:
  train: {class_path: cmdvid.data.index.WebVid, init_args: {csv: ../data/train.csv}}
  val: {class_path: cmdvid.data.index.WebVid, init_args: {csv: ../data/val.csv}}
  spec: {num_frames: 4, image_size: [24, 32]}
  batch_size: 1
  num_workers: 0
trainer:
  max_steps: 6
  accelerator: cpu
  devices: 1
  val_check_interval: 3
  check_val_every_n_epoch: null
  enable_progress_bar: false
  enable_model_summary: false
  num_sanity_val_steps: 0
  logger: false
"""


class Kill(Callback):
    """Signals this process and its workers in the n-th batch of training, validation, encoding."""

    def __init__(self, name: str, *, train: int = -1, val: int = -1, encode: int = -1):
        self.number, self.train, self.val = getattr(signal, name), train, val
        self.encode = encode

    def on_train_batch_start(self, trainer, stage, batch, batch_idx):
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.train:
            self.send()

    def on_validation_batch_start(self, trainer, stage, batch, batch_idx, dataloader_idx=0):
        if batch_idx == self.val:
            self.send()

    def on_predict_batch_start(self, trainer, stage, batch, batch_idx, dataloader_idx=0):
        if batch_idx == self.encode:
            self.send()

    def send(self):
        workers = [str(process.pid) for process in multiprocessing.active_children()]
        if workers:  # by another process, as Slurm does: torch's workers obey their parent quietly
            subprocess.run(["kill", f"-{int(self.number)}", *workers], check=True)
            time.sleep(0.2)
        os.kill(os.getpid(), self.number)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preemption")
    counts = ["--num-videos=4", "--val-videos=3", "--heldout_videos=1"]
    size = ["--num-frames=4", "--image-size=[24,32]"]
    main(["shapes", "--out", str(folder / "data"), *counts, *size])
    return folder


@pytest.fixture
def fit(data, monkeypatch):
    """A function that trains in a folder of its own, after each signal again; gives what it saw."""
    rows: list[list[int]] = []
    step = AutoencoderStage.training_step

    def training_step(stage, batch):
        rows.append(batch.index.tolist())
        return step(stage, batch)

    monkeypatch.setattr(AutoencoderStage, "training_step", training_step)
    monkeypatch.setenv("CMDVID_PREEMPTIBLE", "1")
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)}

    def run(name: str, *words: str, kill: dict | None = None, verb: str = "fit") -> int:
        folder = data / name
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        Path("ae.yaml").write_text(CONFIG)
        keep = {"dirpath": ".", "save_last": True, "save_top_k": 0, "save_on_exception": True}
        keep["enable_version_counter"] = False
        callbacks = [{"class_path": f"{__name__}.Kill", "init_args": kill}] if kill else []
        checkpoint = "lightning.pytorch.callbacks.ModelCheckpoint"
        callbacks.append({"class_path": checkpoint, "init_args": keep})
        LISTENER.noted = Notice.NONE
        words = (verb, "--config", "ae.yaml", "--trainer.default_root_dir", ".", *words)
        try:
            main([*words, "--trainer.callbacks", json.dumps(callbacks)])
        except SystemExit as error:
            return error.code
        return 0

    run.rows = rows
    yield run
    LISTENER.noted, LISTENER.pid = Notice.NONE, 0
    for number, handler in before.items():
        signal.signal(number, handler)


def end_of(folder: Path) -> dict:
    saved = torch.load(folder / "last.ckpt", weights_only=True)
    return {key: saved[key] for key in ("state_dict", "optimizer_states", "global_step")}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("kill", "code", "step"),
    [
        ({"name": "SIGUSR1", "train": 1}, 75, 2),
        ({"name": "SIGTERM", "train": 4}, 143, 5),
        ({"name": "SIGUSR1", "val": 1}, 75, 3),
    ],
    ids=["again", "stop", "in validation"],
)
def test_a_stopped_training_ends_like_one_that_was_not(data, fit, kill, code, step):
    if not (data / "whole/rows.json").exists():
        assert fit("whole") == 0
        (data / "whole/rows.json").write_text(json.dumps(fit.rows))
    whole = json.loads((data / "whole/rows.json").read_text())
    name = f"{kill['name']}-{step}"
    fit.rows.clear()
    assert fit(name, kill=kill) == code
    saved = torch.load(data / name / "last.ckpt", weights_only=True)
    assert saved["global_step"] == step
    assert not saved["state_dict"]["autoencoder.measured"]  # no time is lost on that
    assert {path.name for path in (data / name).glob("*.ckpt*")} == {"last.ckpt"}
    assert fit(name, "--ckpt", "last.ckpt") == 0
    assert fit.rows == whole
    torch.testing.assert_close(end_of(data / name), end_of(data / "whole"), atol=0, rtol=0)


def test_accumulated_gradients_are_not_lost(data, fit):
    words = ["--trainer.accumulate_grad_batches", "2", "--trainer.max_steps", "2"]
    words += ["--trainer.limit_val_batches", "0"]
    assert fit("accumulated", *words) == 0
    assert fit("halves", *words, kill={"name": "SIGUSR1", "train": 0}) == 75
    assert torch.load(data / "halves/last.ckpt", weights_only=True)["global_step"] == 1
    assert fit("halves", *words, "--ckpt", "last.ckpt") == 0
    torch.testing.assert_close(end_of(data / "halves"), end_of(data / "accumulated"))


def test_a_training_that_is_done_anyway_ends_by_itself(data, fit):
    assert fit("done", "--trainer.max_steps", "2", kill={"name": "SIGUSR1", "train": 1}) == 0
    assert end_of(data / "done")["state_dict"]["autoencoder.measured"]


@pytest.mark.parametrize(("name", "code"), [("SIGUSR1", 75), ("SIGTERM", 143)])
def test_a_stopped_encoding_goes_on_with_what_is_missing(data, fit, name, code):
    words = ["--frames_only", "true", "--shard_size", "1", "--out", "frames"]
    assert fit(f"encode-{name}", *words, verb="encode", kill={"name": name, "encode": 2}) == code
    first = {path: path.stat().st_mtime_ns for path in Path("frames").glob("*/*.safetensors")}
    assert sorted(map(str, first)) == [f"frames/train/00000{n}.safetensors" for n in range(3)]
    assert not Path("frames/manifest.json").exists()
    assert fit(f"encode-{name}", *words, verb="encode") == 0
    assert {path: path.stat().st_mtime_ns for path in first} == first
    assert len(list(Path("frames").glob("*/*.safetensors"))) == 4 + 3
    assert Path("frames/manifest.json").is_file()


def test_loader_workers_outlive_the_signal(data, fit):
    """Slurm sends it to them as well; one that died would take the training with it."""
    kill = {"name": "SIGTERM", "train": 2}
    assert fit("workers", "--data.num_workers", "1", kill=kill) == 143
