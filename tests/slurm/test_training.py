"""Real trainings as real jobs of several machines; slow, for each process imports Lightning."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import testing

from cmdvid.__main__ import main

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
CONFIGS = Path(__file__).parents[2] / "configs"
SOURCE = os.pathsep.join([str(Path(__file__).parents[2] / "src"), str(Path(__file__).parent)])


@pytest.fixture
def real(project, slurm, monkeypatch):
    """The project with real clips, and a function that submits and gives the jobs by name."""
    counts = ["--num-videos=16", "--val-videos=4", "--heldout-videos=4"]
    size = ["--num-frames=4", "--image-size=[24,32]"]
    main(["shapes", "--out", "data", *counts, *size])
    monkeypatch.setenv("PATH", f"{slurm.folder / 'bin'}{os.pathsep}{os.environ['PATH']}")

    def submit(capsys, *words: str, time: int = 10, warning: int = 60) -> dict[str, str]:
        environment = f"{{PYTHONPATH: '{SOURCE}', OMP_NUM_THREADS: 1}}"
        lines = [f"time: '{time}'", f"warning: {warning}", f"environment: {environment}"]
        Path("slurm.yaml").write_text("\n".join([*lines, "gpus: null", "cpus_per_task: 1"]))
        capsys.readouterr()
        main(["slurm", *words, "--cluster", "slurm.yaml"])
        lines = [line.split(": job ") for line in capsys.readouterr().out.splitlines()]
        return {name: rest[0].split(",")[0].split(";")[0] for name, *rest in lines if rest}

    return submit


def callbacks(folder: str, seconds: float = 0.0, *, every: int | None = None) -> list[str]:
    """A journal, and a checkpoint beside it."""
    keep = {"dirpath": folder, "save_last": True, "save_top_k": 0, "enable_version_counter": False}
    keep["every_n_train_steps"] = every
    journal = {"folder": folder, "seconds": seconds}
    return ["--trainer.default_root_dir", folder, "--trainer.callbacks", json.dumps([
        {"class_path": "journal.Journal", "init_args": journal},
        {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": keep},
    ])]  # fmt: skip


def alone(folder: str, *words: str) -> None:
    """The same training without Slurm."""
    subprocess.run(
        [sys.executable, "-m", "cmdvid", "fit", "--config", "ae.yaml", *callbacks(folder), *words],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": SOURCE},
        check=True, timeout=900, capture_output=True,
    )  # fmt: skip


def log_of(job: str) -> str:
    return "".join(log.read_text() for log in Path("runs/slurm").glob(f"*-{job}.out"))


def journal(folder: str, rank: int) -> list[dict]:
    return [json.loads(line) for line in Path(folder, f"{rank}.jsonl").read_text().splitlines()]


def reached(folder: str) -> int:
    """The last step that both ranks have done."""
    if not all(Path(folder, f"{rank}.jsonl").is_file() for rank in (0, 1)):
        return 0
    return min(journal(folder, rank)[-1]["step"] for rank in (0, 1))


def test_two_machines_train_one_model(real, slurm, capsys, monkeypatch):
    """Equal gradients and weights, and those of one process with the joined batch."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    steps = ["--trainer.max_steps", "3", "--trainer.limit_val_batches", "0"]
    steps += ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.1"]
    words = ["fit", "--config", "ae.yaml", *callbacks("two"), *steps, "--nodes", "2"]
    ((_, job),) = real(capsys, *words, "--trainer.strategy", "ddp").items()
    assert slurm.wait(job, seconds=600) == ["COMPLETED"], log_of(job)
    ranks = [journal("two", rank) for rank in (0, 1)]
    for rank, lines in enumerate(ranks):
        assert {line["host"] for line in lines} == {f"node{rank + 1}"}
        assert {line["world"] for line in lines} == {2}
        assert {line["environment"] for line in lines} == {"SLURMEnvironment"}
        assert {line["main"] for line in lines} == {"node1"}
    assert [line["gradient"] for line in ranks[0]] == [line["gradient"] for line in ranks[1]]
    assert not set(ranks[0][0]["rows"]) & set(ranks[1][0]["rows"])
    one, other = (torch.load(f"two/{rank}.pt") for rank in (0, 1))
    testing.assert_close(one, other, atol=0, rtol=0)
    alone("one", *steps, "--data.batch_size", "4")
    single = journal("one", 0)
    for line, two in zip(single, ranks[0], strict=True):
        assert line["gradient"] == pytest.approx(two["gradient"], rel=1e-5)
    joined = [sorted(a["rows"] + b["rows"]) for a, b in zip(*ranks, strict=True)]
    assert [sorted(line["rows"]) for line in single] == joined
    testing.assert_close(torch.load("one/0.pt"), one)


def test_the_time_limit_requeues_a_training_that_goes_on_exactly(real, slurm, capsys, monkeypatch):
    """Slurm's own signal at the limit; ranks at different places, loaders with workers."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    steps = ["--trainer.max_steps", "100", "--data.num_workers", "1", "--trainer.strategy", "ddp"]
    steps += ["--trainer.limit_val_batches", "0"]
    words = ["fit", "--config", "ae.yaml", *callbacks("limited", 0.9), *steps, "--nodes", "2"]
    ((_, job),) = real(capsys, *words, time=5, warning=210).items()
    assert slurm.wait(job, seconds=900) == ["COMPLETED"], log_of(job)
    assert int(slurm.show(job, "Restarts")) >= 1
    alone("whole", *steps, "--trainer.devices", "2")
    for rank in (0, 1):
        lines, whole = journal("limited", rank), journal("whole", rank)
        assert lines[-1]["start"] >= 1
        for key in ("step", "rows", "gradient"):
            assert [line[key] for line in lines] == [line[key] for line in whole]
        testing.assert_close(
            torch.load(f"limited/{rank}.pt"), torch.load(f"whole/{rank}.pt"), atol=0, rtol=0
        )
    assert {path.name for path in Path("limited").glob("*.ckpt*")} == {"last.ckpt"}


ENDLESS = ["--trainer.max_steps", "1000", "--trainer.limit_val_batches", "0"]
DDP = ["--trainer.strategy", "ddp", "--nodes", "2"]


def test_a_cancelled_training_leaves_its_last_step(real, slurm, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    words = ["fit", "--config", "ae.yaml", *callbacks("cancelled", 0.5), *ENDLESS, *DDP]
    ((_, job),) = real(capsys, *words).items()
    slurm.until(lambda: reached("cancelled") >= 3, 300)
    slurm.run("scancel", job)
    assert slurm.wait(job) == ["CANCELLED"], log_of(job)
    assert slurm.show(job, "Restarts") == "0"
    saved = torch.load("cancelled/last.ckpt")
    steps = [journal("cancelled", rank)[-1]["step"] for rank in (0, 1)]
    assert steps == [saved["global_step"]] * 2, log_of(job)


def test_a_lost_machine_costs_the_steps_since_the_last_checkpoint(real, slurm, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    words = ["fit", "--config", "ae.yaml", *callbacks("lost", 0.5, every=4), *ENDLESS, *DDP]
    ((_, job),) = real(capsys, *words, "--trainer.max_steps", "16").items()
    slurm.until(lambda: reached("lost") >= 6, 300)
    slurm.node("crash", "node2")
    try:
        slurm.until(lambda: slurm.show(job, "Restarts") == "1", 90)
    finally:
        slurm.node("boot", "node2")
    assert slurm.wait(job, seconds=300) == ["COMPLETED"], log_of(job)
    for rank in (0, 1):
        lines = journal("lost", rank)
        first, second = ([x for x in lines if x["start"] == start] for start in (0, 1))
        assert [line["step"] for line in second] == list(range(second[0]["step"], 17))
        again = [line for line in first if line["step"] >= second[0]["step"]]
        assert len(first) - len(again) in (4, 8, 12)  # went on from a checkpoint, the last one
        assert len(again) < 4 + 1  # the step may be done, and its checkpoint not
        for one, two in zip(again, second, strict=False):
            assert (one["rows"], one["gradient"]) == (two["rows"], two["gradient"])


def test_an_encoding_is_stopped_where_one_machine_waits_for_the_other(
    real, slurm, capsys, monkeypatch
):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    words = ["encode", "--config", "ae.yaml", "--frames_only", "true", "--out", "frames"]
    words += ["--shard_size", "2", *callbacks("encoding", 3.0), *DDP]
    ((_, job),) = real(capsys, *words).items()
    first, last = (Path(f"frames/{name}.safetensors") for name in ("train/000000", "val/000001"))
    slurm.until(lambda: first.exists() and last.exists(), 300)  # all of the quick one's, and one
    written = first.stat().st_mtime_ns
    slurm.run("scancel", "--signal=USR1", job)
    assert slurm.wait(job, seconds=300) == ["COMPLETED"], log_of(job)
    assert slurm.show(job, "Restarts") == "1"
    assert first.stat().st_mtime_ns == written
    assert len(list(Path("frames").glob("*/*.safetensors"))) == 10
    assert Path("frames/manifest.json").is_file()


TINY = """
trainer: {max_steps: 3, val_check_interval: 3, limit_val_batches: 1, accelerator: cpu}
"""
OVERLAYS = {
    "autoencoder": """
model:
  init_args:
    autoencoder: {init_args: {width: 16, depth: 1, num_heads: 2}}
    lr_scheduler: null
    statistics_clips: 8
data: {spec: {num_frames: 4, image_size: [24, 32]}}
""",
    "content": """
model:
  init_args:
    diffusion: {init_args: {denoiser: {init_args: {widths: [24, 24]}}}}
    lr_scheduler: null
data: {batch_size: 4}
""",
    "motion": """
model:
  init_args:
    diffusion: {init_args: {denoiser: {init_args: {width: 32, depth: 1}}}}
    lr_scheduler: null
data: {batch_size: 4}
""",
    "generate": """
model: {init_args: {num_inference_steps: 2, evaluation: null}}  # its protocol wants 256 clips
data: {spec: {num_frames: 4, image_size: [24, 32]}, batch_size: 4}
trainer: {accelerator: cpu}
""",
}


def test_the_whole_pipeline_ends_with_videos(real, slurm, capsys):
    Path("runs/demo").mkdir(parents=True)
    Path("data").rename("runs/demo/data")
    Path("prompts.txt").write_text("a red circle moving left\na blue square moving up\n")
    Path("tiny.yaml").write_text(TINY)
    words = ["pipeline", "--config", "tiny.yaml", "--prompts", "prompts.txt", "--parts", "2"]
    for part, text in OVERLAYS.items():
        Path(f"{part}.yaml").write_text(text)
        base = CONFIGS / f"{'ae' if part == 'autoencoder' else part}_shapes.yaml"
        words += [f"--{part}", str(base), f"--{part}", f"{part}.yaml"]
    jobs = real(capsys, *words)
    states = dict(zip(jobs, slurm.wait(*jobs.values(), seconds=1200), strict=True))
    assert set(states.values()) == {"COMPLETED"}, "".join(log_of(job) for job in jobs.values())
    assert len(jobs) == 7
    for part, caption in ((0, "a-red-circle"), (1, "a-blue-square")):
        (video,) = Path(f"runs/demo/videos/part-{part}").glob(f"000000-{caption}*.mp4")
        assert video.stat().st_size > 0
    assert Path("runs/demo/eval/report.md").is_file()
