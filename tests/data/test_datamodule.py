"""The data module in real Lightning runs: batches, counts, checkpoints, command line."""

import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI

from cmdvid.data.datamodule import VideoDataModule
from cmdvid.data.dataset import ClipSampler
from cmdvid.data.index import Prompts, VideoFolder
from cmdvid.types import ClipBatch, PromptBatch
from cmdvid.video import ClipSpec

SPEC = ClipSpec(num_frames=4, image_size=(16, 24))


class Recorder(LightningModule):
    """Trains nothing of worth and remembers its batches."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.trained, self.evaluated = [], []

    def training_step(self, batch, batch_idx):
        self.trained.append((self.current_epoch, batch_idx, batch.index.tolist()))
        assert -1 <= batch.clip.min() < batch.clip.max() <= 1
        return self.layer(batch.clip.mean()[None]).sum()

    def validation_step(self, batch, batch_idx):
        self.evaluated.append(batch)

    def test_step(self, batch, batch_idx):
        self.evaluated.append(batch)

    def predict_step(self, batch, batch_idx):
        self.evaluated.append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def trainer(**options):
    options = {"max_epochs": 1, "enable_checkpointing": False, "num_sanity_val_steps": 0} | options
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **options,
    )


def module(folder, **options):
    # most tests read one folder for all splits
    common = {"spec": SPEC, "batch_size": 2, "num_workers": 0, "allow_leakage": True}
    options = common | options
    return VideoDataModule(VideoFolder(str(folder)), **options)


def test_evaluation_yields_every_clip_once_as_float(folder):
    data = module(folder, val=VideoFolder(str(folder)))
    for run in ("validate", "test", "predict"):
        recorder = Recorder()
        getattr(trainer(), run)(recorder, data)
        assert all(isinstance(batch, ClipBatch) for batch in recorder.evaluated)
        assert [batch.index.tolist() for batch in recorder.evaluated] == [
            [0, 1],
            [2, 3],
            [4, 5],
            [6],
        ]
        clip = recorder.evaluated[0].clip
        assert clip.shape == (2, 3, 4, 16, 24)
        assert clip.dtype == torch.float32
        assert -1 <= clip.min() < -0.5


def test_unusable_files_do_not_stop_a_run_and_are_told_at_its_end(folder, tmp_path, caplog):
    (folder / "left" / "1.mp4").write_bytes(bytes(9))
    (folder / "right" / "2.mp4").write_text("<html>")
    data = module(folder, val=VideoFolder(str(folder)), num_workers=2)
    with caplog.at_level(logging.WARNING):
        trainer(default_root_dir=tmp_path).fit(Recorder(), data)
    assert "data.val (rank 0): 2 of 7 videos could not give a clip and were replaced" in caplog.text
    assert f"see {tmp_path / 'skipped.jsonl'}" in caplog.text
    assert (tmp_path / "skipped.jsonl").read_text().count("\n") == 2
    assert "data.train (rank 0): " in caplog.text
    caplog.clear()
    validation = trainer(default_root_dir=tmp_path)
    validation.validate(Recorder(), module(folder, val=VideoFolder(str(folder))))
    assert "data.val (rank 0): 2 of 7" in caplog.text
    with pytest.raises(ValueError, match=r"cannot be read as video|an HTML or XML page"):
        trainer().fit(Recorder(), module(folder, strict=True))
    with pytest.raises(ValueError, match=r"could not give a clip, more than data.max_bad_fraction"):
        trainer(default_root_dir=tmp_path).fit(Recorder(), module(folder, max_bad_fraction=0.0))


def test_prompts_are_predicted(folder):
    recorder = Recorder()
    data = VideoDataModule(
        predict=Prompts(prompt="a red circle", num_samples=3), batch_size=2, num_workers=0
    )
    trainer().predict(recorder, data)
    assert all(isinstance(batch, PromptBatch) for batch in recorder.evaluated)
    assert [batch.index.tolist() for batch in recorder.evaluated] == [[0, 1], [2]]
    assert list(recorder.evaluated[1].condition) == ["a red circle"]


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("fit", "fit needs data.train"),
        ("validate", "validate needs data.val"),
        ("test", "test needs data.val"),
        ("predict", "predict needs data.predict"),
    ],
)
def test_a_verb_without_its_index_says_which(run, message):
    with pytest.raises(ValueError, match=message):
        getattr(trainer(), run)(Recorder(), VideoDataModule())


@pytest.mark.parametrize("run", ["fit", "test"])
def test_videos_to_train_on_must_not_be_in_what_is_scored(folder, run):
    left = VideoFolder(str(folder / "left"))
    data = module(folder, val=left, allow_leakage=False)
    with pytest.raises(ValueError, match=r"4 of 4 videos of data.val .* data.train"):
        getattr(trainer(), run)(Recorder(), data)
    data = module(folder, test={"seen": left}, allow_leakage=False)
    with pytest.raises(ValueError, match=r"4 of 4 videos of data.test.seen .* data.train"):
        getattr(trainer(), run)(Recorder(), data)
    apart = module(folder / "right", val=left, allow_leakage=False)
    getattr(trainer(), run)(Recorder(), apart)


def test_fewer_clips_than_a_batch_is_an_error(folder):
    with pytest.raises(ValueError, match=r"data.train has 7 samples, too few for one batch of 8"):
        trainer().fit(Recorder(), module(folder, batch_size=8))


def test_sizes_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"batch_size must be at least 1 .* got 0 and 2"):
        VideoDataModule(batch_size=0)


def test_overfitting_one_batch_works(folder):
    recorder = Recorder()
    trainer(max_epochs=3, overfit_batches=1).fit(recorder, module(folder))
    assert [rows for _, _, rows in recorder.trained] == [[0, 1]] * 3


def test_the_command_line_builds_it_and_checkpoints_hold_plain_settings(folder, tmp_path):
    args = [
        *["fit", "--data.train=VideoFolder", f"--data.train.root={folder}"],
        "--data.train.classes=[right, left]",
        *["--data.spec.num_frames=4", "--data.spec.image_size=[16, 24]"],
        *["--data.batch_size=2", "--data.num_workers=0"],
        *["--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.max_steps=1"],
        *["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"],
        *["--trainer.use_distributed_sampler=false", f"--trainer.default_root_dir={tmp_path}"],
    ]
    cli = LightningCLI(Recorder, VideoDataModule, args=args, save_config_callback=None)
    assert cli.datamodule.spec == SPEC
    assert len(cli.model.trained) == 1
    saved = torch.load(cli.trainer.checkpoint_callback.best_model_path, weights_only=True)
    settings = saved["datamodule_hyper_parameters"]
    assert settings["train"]["init_args"] == {"root": str(folder), "classes": ["right", "left"]}
    assert settings["spec"]["num_frames"] == 4
    with pytest.raises(SystemExit):
        LightningCLI(
            Recorder,
            VideoDataModule,
            args=["validate", "--data.spec.num_frames=0", "--data.val=VideoFolder"],
        )


def test_built_in_python_it_saves_no_objects(folder):
    assert set(module(folder).hparams) == {
        *["latents", "batch_size", "num_workers", "seed", "flip", "strict", "allow_leakage"],
        "max_bad_fraction",
    }


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_stops_does_not_let_the_other_wait(folder, tmp_path, rank):
    """Only its share of the data is bad: the other would wait for its gradients."""
    index = VideoFolder(str(folder))
    for _, row in list(ClipSampler(index, shuffle=True, rank=rank, world_size=2))[:2]:
        Path(index[row].path).write_text("<html>")
    words = ["fit", "--model=AutoencoderStage", "--model.optimizer=Adam", "--data.batch_size=1"]
    words += ["--model.autoencoder=cmdvid.models.autoencoder.Autoencoder"]
    words += ["--model.autoencoder.width=16", "--model.autoencoder.num_heads=2"]
    words += ["--data.train=VideoFolder", f"--data.train.root={folder}", "--data.strict=true"]
    words += ["--data.spec={num_frames: 4, image_size: [16, 24]}", "--data.num_workers=1"]
    words += ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp"]
    words += [f"--trainer.default_root_dir={tmp_path}", "--trainer.max_epochs=9"]
    done = subprocess.Popen(
        [sys.executable, "-m", "cmdvid", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    _, said = done.communicate(timeout=240)  # to start two processes takes most of it
    assert done.returncode != 0
    assert "an HTML or XML page" in said
    deadline = time.monotonic() + 60  # the other is told by a connection that is gone
    with suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(done.pid, 0)
            time.sleep(0.5)
        os.killpg(done.pid, signal.SIGKILL)
        pytest.fail("the other process still waits a minute later")
