import csv
import re
import time

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from cmdvid.data.datamodule import VideoDataModule
from cmdvid.data.index import VideoFolder
from cmdvid.progress import ProgressLines, Throughput
from cmdvid.types import ClipBatch
from cmdvid.video import ClipSpec, write_clip


class Clips(torch.utils.data.Dataset):
    """Eight clips, each of which takes a while to read."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def __len__(self) -> int:
        return 8

    def __getitem__(self, row: int) -> ClipBatch:
        time.sleep(self.seconds)
        return ClipBatch(torch.full((3, 2, 4, 6), float(row)), "a clip", row)


class Net(LightningModule):
    """One linear layer, whose step takes at least a while."""

    def __init__(self, seconds: float = 0.0, width: int = 6):
        super().__init__()
        self.layer, self.seconds, self.norms = torch.nn.Linear(width, 5, bias=False), seconds, []

    def training_step(self, batch):
        time.sleep(self.seconds)
        loss = self.layer(batch.clip).square().mean()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch.index))
        return loss

    def validation_step(self, batch):
        time.sleep(0.5)

    def on_before_optimizer_step(self, optimizer):
        self.norms.append(self.layer.weight.grad.norm().item())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-4)


def trainer(folder, callbacks, **options):
    options = {"max_steps": 4, "log_every_n_steps": 2, "limit_val_batches": 0} | options
    return Trainer(
        logger=CSVLogger(folder, name="", version="", flush_logs_every_n_steps=1),
        callbacks=callbacks,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )


def fit(folder, callback, net=None, *, read=0.0, ckpt=None, **options):
    training = trainer(folder, [callback], **options)
    loader = DataLoader(Clips(read), batch_size=2)
    training.fit(net or Net(), loader, DataLoader(Clips(0.0), batch_size=2), ckpt_path=ckpt)
    return training


def logged(folder) -> dict[str, list[float]]:
    with open(folder / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    return {key: [float(row[key]) for row in rows if row[key]] for key in rows[0]}


def test_clips_operations_and_gradients_are_logged(tmp_path):
    net = Net(seconds=0.02)
    fit(tmp_path, Throughput(peak_tflops=1e-6), net)
    values = logged(tmp_path)
    assert values["speed/clips"] == [4, 8]
    assert values["train/gradient_norm"] == pytest.approx([net.norms[1], net.norms[3]])
    assert values["train/lr"] == pytest.approx([1e-4, 1e-4])
    # 2 operations for each of 6 x 5 products in the forward pass of 2 x 3 x 2 x 4 rows, and as many
    # for the gradient of the weights
    operations = 2 * 2 * (6 * 5) * (2 * 3 * 2 * 4)
    for speed, tflops, share in zip(
        values["speed/clips_per_s"],
        values["speed/tflops"],
        values["speed/utilisation"],
        strict=True,
    ):
        assert 0 < speed < 2 / 0.02
        assert tflops == pytest.approx(operations * speed / 2 / 1e12)
        assert share == pytest.approx(tflops / 1e-6)
    assert 0.05 < values["speed/memory_gb"][0] < 100


def test_waiting_for_data_is_told_apart_from_work(tmp_path):
    fit(tmp_path / "reads", Throughput(), read=0.1)
    fit(tmp_path / "works", Throughput(), Net(seconds=0.3))
    reads, works = (logged(tmp_path / kind)["speed/data_wait"] for kind in ("reads", "works"))
    assert all(0 <= wait <= 1 for wait in reads + works)
    assert reads[1] > works[1]  # not the first, when all is new


def test_validation_takes_no_time_of_training(tmp_path):
    fit(tmp_path, Throughput(), limit_val_batches=4, val_check_interval=1, num_sanity_val_steps=1)
    # the validation after the first step takes 2 s, in which two steps would make 4 clips
    assert logged(tmp_path)["speed/clips_per_s"][0] > 4 / 1.9


def test_passes_between_steps_count_as_work(tmp_path):
    fit(tmp_path, Throughput(), accumulate_grad_batches=2, log_every_n_steps=1)
    assert logged(tmp_path)["speed/clips"] == [4, 8, 12, 16]


def test_a_resumed_run_counts_on(tmp_path):
    training = fit(tmp_path, Throughput())
    training.save_checkpoint(tmp_path / "x.ckpt", weights_only=False)
    fit(tmp_path / "more", Throughput(), ckpt=tmp_path / "x.ckpt", max_steps=6, log_every_n_steps=1)
    assert logged(tmp_path / "more")["speed/clips"] == [10, 12]


class SaveOften(Callback):
    """A checkpoint after each pass, also within an optimizer step, of what was trained on."""

    def __init__(self, folder):
        self.folder, self.rows = folder, []

    def on_train_batch_end(self, trainer, net, outputs, batch, batch_idx):
        self.rows.append(batch.index.tolist())
        path = self.folder / f"pass={len(self.rows)}.ckpt"
        trainer.save_checkpoint(path, weights_only=False)


def test_passes_that_a_resumed_run_makes_again_count_once(tmp_path):
    """From within a step, and from the end of an epoch, whose last step is of one pass alone."""
    for i in range(5):
        clip = torch.full((3, 4, 16, 24), i / 5)
        write_clip(tmp_path / f"videos/class/{i}.mp4", clip, fps=8)
    options = {"accumulate_grad_batches": 2, "log_every_n_steps": 1, "max_epochs": 2}
    options |= {"max_steps": -1, "use_distributed_sampler": False, "enable_checkpointing": False}

    def train(name, ckpt=None):
        videos = VideoFolder(str(tmp_path / "videos"))
        spec = ClipSpec(num_frames=2, image_size=(16, 24))
        data = VideoDataModule(videos, spec=spec, batch_size=1, num_workers=0)
        folder, saving = tmp_path / name, SaveOften(tmp_path / f"saved of {name}")
        net = Net(width=24)
        trainer(folder, [Throughput(), saving], **options).fit(net, data, ckpt_path=ckpt)
        return saving.rows, logged(folder)["speed/clips"]

    rows, clips = train("whole")
    assert clips == [2, 4, 5, 7, 9, 10]
    for done, used, steps in [(1, 0, 0), (3, 2, 1), (4, 4, 2), (5, 5, 3), (8, 7, 4)]:
        again = train(f"from {done}", tmp_path / f"saved of whole/pass={done}.ckpt")
        assert again == (rows[used:], clips[steps:]), done


def test_a_peak_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"peak_tflops must be above 0, got 0"):
        Throughput(0)


def test_a_log_has_a_line_for_each_logged_step_and_the_last(tmp_path, capsys):
    fit(tmp_path, ProgressLines(), max_steps=5, max_epochs=2)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    pattern = r"step (\d+)/5, train/loss [\d.e+-]+, [\d.e+]+ steps/s, 0:00:\d\d left"
    found = [re.fullmatch(pattern, line) for line in lines]
    assert [match and match[1] for match in found] == ["2", "4", "5"]
    assert lines[-1].endswith("0:00:00 left")


def test_a_run_without_an_end_has_lines_too(tmp_path, capsys):
    fit(tmp_path, ProgressLines(), max_steps=-1, max_time={"seconds": 1}, max_epochs=-1)
    assert re.search(
        r"^step 2, train/loss \S+, \S+ steps/s$", capsys.readouterr().out, re.MULTILINE
    )
