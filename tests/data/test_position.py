"""A resumed run reads what the whole one would have, in real Lightning runs on real files."""

from typing import NamedTuple

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from cmdvid.data.datamodule import VideoDataModule
from cmdvid.data.dataset import ClipDataset, ClipSampler
from cmdvid.data.index import VideoFolder
from cmdvid.data.position import source_of
from cmdvid.data.prepare import write_shards
from cmdvid.data.shards import Shards
from cmdvid.video import ClipSpec

SPEC = ClipSpec(num_frames=4, image_size=(16, 24))


class Step(NamedTuple):
    epoch: int
    batch: int
    rows: list[int]
    step: int
    logged: int  # the step that loggers are given


class Recorder(LightningModule):
    """Trains nothing of worth and remembers its steps."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(1, 1)
        self.trained = []

    def training_step(self, batch, batch_idx):
        logged = self.trainer.fit_loop.epoch_loop._batches_that_stepped
        rows = batch.index.tolist()
        self.trained.append(Step(self.current_epoch, batch_idx, rows, self.global_step, logged))
        return self.layer(batch.clip.mean()[None]).sum()

    def validation_step(self, batch, batch_idx):
        pass

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
    options = {"spec": SPEC, "batch_size": 2, "num_workers": 0} | options
    return VideoDataModule(VideoFolder(str(folder)), **options)


@pytest.mark.parametrize(
    ("num_workers", "length"),
    [(0, {"max_epochs": 2}), (2, {"max_epochs": 2}), (0, {"max_epochs": -1, "max_steps": 6})],
)
def test_a_resumed_run_reads_what_the_whole_run_would_have(folder, tmp_path, num_workers, length):
    saving = [
        ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1),
        ModelCheckpoint(tmp_path, filename="end-{epoch}", every_n_epochs=1, save_top_k=-1),
    ]
    whole = Recorder()
    trainer(**length, callbacks=saving, enable_checkpointing=True).fit(whole, module(folder))
    assert len(whole.trained) == 6
    assert whole.trained[0].rows != whole.trained[3].rows
    for name, done in [("step=1", 1), ("step=3", 3), ("end-epoch=0", 3), ("step=5", 5)]:
        resumed = Recorder()
        data = module(folder, num_workers=num_workers)
        trainer(**length).fit(resumed, data, ckpt_path=str(tmp_path / f"{name}.ckpt"))
        assert resumed.trained == whole.trained[done:], name


class SaveOften(Callback):
    """A checkpoint after each batch and each validation, also within an optimizer step."""

    def __init__(self, folder):
        self.folder, self.seen = folder, 0

    def on_train_batch_end(self, trainer, *_):
        self.seen += 1
        trainer.save_checkpoint(self.folder / f"batch={self.seen}.ckpt", weights_only=False)

    def on_validation_end(self, trainer, *_):
        trainer.save_checkpoint(self.folder / f"val={self.seen}.ckpt", weights_only=False)


def test_a_run_stopped_within_an_optimizer_step_reads_its_batches_again(folder, tmp_path):
    options = {"max_epochs": 2, "accumulate_grad_batches": 2, "val_check_interval": 3}
    data = {"batch_size": 1, "val": VideoFolder(str(folder)), "allow_leakage": True}
    whole = Recorder()
    trainer(callbacks=[SaveOften(tmp_path)], **options).fit(whole, module(folder, **data))
    assert [step.logged for step in whole.trained] == [0, 0, 1, 1, 2, 2, 3, 4, 4, 5, 5, 6, 6, 7]
    for name, done in [("batch=1", 0), ("batch=3", 2), ("val=3", 2), ("val=6", 6), ("batch=8", 7)]:
        resumed = Recorder()
        path = str(tmp_path / f"{name}.ckpt")
        trainer(**options).fit(resumed, module(folder, **data), ckpt_path=path)
        assert resumed.trained == whole.trained[done:], name
        weights = [recorder.state_dict() for recorder in (resumed, whole)]
        torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_a_run_that_max_steps_cut_short_twice_reads_each_sample_once(folder, tmp_path):
    rows, path = [], None
    for steps in (2, 5, 6):
        recorder = Recorder()
        # a checkpoint at the end of training alone
        saving = ModelCheckpoint(tmp_path / str(steps), save_last=True, save_top_k=0)
        options = {"max_epochs": -1, "max_steps": steps, "enable_checkpointing": True}
        trainer(callbacks=[saving], **options).fit(recorder, module(folder), ckpt_path=path)
        path = str(tmp_path / str(steps) / "last.ckpt")
        rows += [row for step in recorder.trained for row in step.rows]
    whole = Recorder()
    trainer(max_epochs=2).fit(whole, module(folder))
    assert rows == [row for step in whole.trained for row in step.rows]


def test_checkpoints_after_training_hold_what_was_read(folder, tmp_path):
    """Also that of a resumed run which found nothing left to do, as after an epoch's end."""
    rows, path = [], None
    for steps in (3, 3, 4, 4, 6):
        recorder = Recorder()
        fitting = trainer(max_epochs=-1, max_steps=steps)
        fitting.fit(recorder, module(folder), ckpt_path=path)
        path = str(tmp_path / f"{len(rows)}.ckpt")
        fitting.save_checkpoint(path, weights_only=False)
        rows += [row for step in recorder.trained for row in step.rows]
    whole = Recorder()
    trainer(max_epochs=2).fit(whole, module(folder))
    assert rows == [row for step in whole.trained for row in step.rows]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_with_other_batches_the_rest_of_an_epoch_is_read_once(folder, tmp_path, batch_size, caplog):
    whole = Recorder()
    trainer(max_epochs=2, callbacks=[SaveOften(tmp_path)]).fit(whole, module(folder))
    for done in (1, 2, 3, 4):
        resumed, path = Recorder(), str(tmp_path / f"batch={done}.ckpt")
        data = module(folder, batch_size=batch_size)
        trainer(max_epochs=2).fit(resumed, data, ckpt_path=path)
        epoch = (done - 1) // 3
        steps = [step for step in whole.trained[:done] + resumed.trained if step.epoch == epoch]
        seen = [row for step in steps for row in step.rows]
        assert len(set(seen)) == len(seen), done
        # an epoch that was over stays so; else less than a batch is left out
        assert len(seen) == 6 if done == 3 else 7 - len(seen) < batch_size, done
        after = [step for step in resumed.trained if step.epoch > epoch]
        assert len(after) == (1 - epoch) * (7 // batch_size), done
    assert f"batches of {batch_size} on 1 processes, where it had 2 on 1" in caplog.text


def test_a_second_resume_goes_on_from_other_batches(folder, tmp_path):
    """Its samples are counted from where the first resume began."""
    rows, path = [], None
    for steps, batch_size in ((1, 2), (3, 1), (4, 2)):
        recorder, saving = Recorder(), SaveOften(tmp_path)
        data = module(folder, batch_size=batch_size)
        options = {"max_epochs": -1, "max_steps": steps, "callbacks": [saving]}
        trainer(**options).fit(recorder, data, ckpt_path=path)
        path = str(tmp_path / f"batch={saving.seen}.ckpt")
        rows += [row for step in recorder.trained for row in step.rows]
    assert rows == [i for _, i in ClipSampler(range(7), shuffle=True)][:6]


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 2), (3, 2), (4, 3), (5, 1)])
@pytest.mark.parametrize("size", [60, 61])
def test_with_other_processes_the_rest_of_an_epoch_is_read_once(size, world_size, batch_size):
    """As the samplers of 2 processes share out an epoch first, and those of others its rest."""

    def share(num_ranks, start):
        options = {"shuffle": True, "world_size": num_ranks, "start": start}
        ranks = [list(ClipSampler(range(size), rank=r, **options)) for r in range(num_ranks)]
        assert len({len(keys) for keys in ranks}) == 1  # or some would wait for others
        return [[row for _, row in keys] for keys in ranks]

    before = [row for rank in share(2, 0) for row in rank[: 4 * 3]]  # 4 batches of 3
    rest = share(world_size, len(before))
    whole = len(rest[0]) // batch_size * batch_size  # the loader drops what fills no batch
    seen = [*before, *(row for rank in rest for row in rank[:whole])]
    num_even = -(size - len(before)) % world_size  # samples that make processes even
    assert len(seen) - len(set(seen)) <= num_even
    assert size - len(set(seen)) < batch_size * world_size


def test_another_source_of_data_after_a_resume_is_told(folder, tmp_path, make_video, caplog):
    trainer(callbacks=[SaveOften(tmp_path)]).fit(Recorder(), module(folder))
    path = str(tmp_path / "batch=1.ckpt")
    trainer().fit(Recorder(), module(folder), ckpt_path=path)
    assert "resumed" not in caplog.text
    trainer().fit(Recorder(), module(folder, seed=3), ckpt_path=path)
    assert "resumed with another source of data (data.seed was 0, is now 3)" in caplog.text
    caplog.clear()
    (folder / "left" / "3.mp4").rename(folder / "left" / "new.mp4")
    trainer().fit(Recorder(), module(folder), ckpt_path=path)
    assert "source of data (hash of names and conditions was " in caplog.text


def test_the_window_of_shards_is_a_part_of_the_source(folder, tmp_path):
    write_shards(VideoFolder(str(folder)), str(tmp_path / "shards"), samples_per_shard=2)
    files, one, same, other = (
        source_of(ClipDataset(index, spec=SPEC, train=True), 0)
        for index in (
            VideoFolder(str(folder)),
            *(Shards(str(tmp_path / "shards"), window=window) for window in (1, 1, 2)),
        )
    )
    assert one == same
    assert {key for key in one if one[key] != other[key]} == {"window"}
    assert (one["window"], files["window"]) == (1, None)


def test_other_data_after_a_resume_are_told(folder, tmp_path, make_video, caplog):
    trainer(callbacks=[SaveOften(tmp_path)]).fit(Recorder(), module(folder))
    make_video(folder / "left" / "new.mp4")
    trainer().fit(Recorder(), module(folder), ckpt_path=str(tmp_path / "batch=1.ckpt"))
    assert "resumed on 8 samples, where there were 7: the order of epoch 0 is" in caplog.text
