"""`cmdvid slurm pipeline`: which jobs it plans, and what it refuses, on a machine without Slurm."""

import re
from pathlib import Path

import pytest
import torch

from cmdvid.__main__ import main
from cmdvid.slurm.cluster import Cluster
from cmdvid.slurm.job import Job
from cmdvid.slurm.submit import Queued, show

CONFIGS = Path(__file__).parents[2] / "configs"
DRY = ["--dry-run"]


@pytest.fixture(autouse=True)
def _no_slurm(monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin/does-not-exist")


def printed(capsys, *words: str) -> str:
    capsys.readouterr()
    main(["slurm", *words])
    return capsys.readouterr().out


def refused(capsys, *words: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main(["slurm", *words])
    assert exit_.value.code == 2
    return capsys.readouterr().err


SHAPES = {"autoencoder": "ae", "content": "content", "motion": "motion", "generate": "generate"}
PIPELINE = ["--cluster", "mine.yaml"]
PIPELINE += [w for p, f in SHAPES.items() for w in (f"--{p}", str(CONFIGS / f"{f}_shapes.yaml"))]


@pytest.fixture
def shapes(tmp_path, monkeypatch):
    """The files that the shapes configs read, empty."""
    monkeypatch.chdir(tmp_path)
    Path("runs/demo/data").mkdir(parents=True)
    for split in ("train", "val", "heldout"):
        Path(f"runs/demo/data/{split}.csv").touch()
    Path("mine.yaml").write_text("gpus: null\n")
    Path("prompts.txt").write_text("a red circle\na blue square\n")


def test_a_pipeline_is_all_stages_in_order(shapes, capsys):
    seeds = ["--prompts", "prompts.txt", "--seeds", "0-3"]
    text = printed(capsys, "pipeline", *PIPELINE, *DRY, *seeds, "--nodes", "2")
    heads = re.findall(r"^# (\S+?)(?:, after (.*))?$", text, re.MULTILINE)
    trained = "fit-content, fit-motion"
    assert heads == [
        ("fit-autoencoder", ""),
        ("encode", "fit-autoencoder"),
        ("fit-content", "encode"),
        ("fit-motion", "encode"),
        ("export", trained),
        ("test", "export"),
        ("predict", "export"),
    ]
    assert "encode --ckpt runs/demo/autoencoder/last.ckpt --out runs/demo/latents" in text
    assert "#SBATCH --array=0-3\n" in text
    assert text.count("#SBATCH --nodes=2\n") == 4  # the trainings and encode


def test_stages_that_do_not_fit_together_are_refused(shapes, capsys):
    words = [word.replace("content_shapes", "content_ucf101") for word in PIPELINE]
    message = refused(capsys, "pipeline", *words, *DRY)
    assert "content: model.autoencoder_ckpt is runs/ucf101/autoencoder/last.ckpt" in message
    Path("runs/demo/latents").mkdir()
    assert "runs/demo/latents exists already" in refused(capsys, "pipeline", *PIPELINE, *DRY)


def heads(text: str) -> list[str]:
    return re.findall(r"^# (\S+?)(?:, after .*)?$", text, re.MULTILINE)


def test_configs_of_one_name_stay_apart_and_generation_has_the_devices_of_the_trainings(
    shapes, capsys
):
    """Jobs wait for each other by name."""
    words = ["--cluster", "mine.yaml"]
    for part, name in SHAPES.items():
        Path(part).mkdir()
        Path(part, "data").symlink_to(CONFIGS / "data")
        Path(part, "config.yaml").write_text((CONFIGS / f"{name}_shapes.yaml").read_text())
        words += [f"--{part}", f"{part}/config.yaml"]
    words += ["--prompts", "prompts.txt", "--trainer.devices", "2"]
    text = printed(capsys, "pipeline", *words, *DRY)
    assert text.count("#SBATCH --ntasks-per-node=2\n") == 6  # all but export
    assert "# export, after fit-content, fit-motion\n" in text
    job = Job("x", ("export",))
    with pytest.raises(ValueError, match="several jobs have the name x"):
        show([Queued(job), Queued(job)], Cluster())


def test_an_earlier_pipeline_is_gone_on_with_when_told(shapes, capsys):
    message = refused(capsys, "pipeline", *PIPELINE, "--ckpt", "x.ckpt", *DRY)
    assert "--ckpt x.ckpt: pipeline would give it to all" in message
    last = {part: Path(f"runs/demo/{part}/last.ckpt") for part in ("autoencoder", "motion")}
    for path in last.values():
        path.parent.mkdir()
    measured = {"autoencoder.measured": torch.tensor(False)}
    torch.save({"state_dict": measured, "global_step": 10**6}, last["autoencoder"])
    message = refused(capsys, "pipeline", *PIPELINE, *DRY)
    assert "autoencoder/last.ckpt holds a training already; give --resume" in message
    text = printed(capsys, "pipeline", *PIPELINE, "--resume", *DRY)
    assert heads(text)[:2] == ["fit-autoencoder", "encode"]  # stopped while it measured latents
    measured["autoencoder.measured"].fill_(True)
    torch.save({"state_dict": measured, "global_step": 10**6}, last["autoencoder"])
    Path("runs/demo/latents").mkdir()
    Path("runs/demo/latents/manifest.json").write_text("{}")
    torch.save({"state_dict": {}, "global_step": 5}, last["motion"])
    text = printed(capsys, "pipeline", *PIPELINE, "--resume", *DRY)
    assert heads(text) == ["fit-content", "fit-motion", "export", "test"]
    lines = [line for line in text.splitlines() if "cmdvid fit" in line]
    assert [" --ckpt runs/demo/motion/last.ckpt" in line for line in lines] == [False, True]


def test_encode_has_options_of_its_own(shapes, capsys):
    Path("encode.yaml").write_text("dtype: fp16\nflips: true\ntrainer: {precision: bf16-mixed}\n")
    flip = ["--data.flip", "true"]
    assert "`flips: true`" in refused(capsys, "pipeline", *PIPELINE, *flip, *DRY)
    text = printed(capsys, "pipeline", *PIPELINE, *flip, "--encode", "encode.yaml", *DRY)
    (line,) = (line for line in text.splitlines() if "cmdvid encode" in line)
    assert "--ckpt runs/demo/autoencoder/last.ckpt --config encode.yaml --out" in line
    assert "--trainer.precision bf16-mixed" in line
    Path("encode.yaml").write_text("dtypes: fp16\n")
    assert "dtypes" in refused(capsys, "pipeline", *PIPELINE, "--encode", "encode.yaml", *DRY)


@pytest.mark.parametrize("words", [["--seeds", "0-3"], ["--parts", "2"]])
def test_seeds_and_parts_without_prompts_are_refused(shapes, capsys, words):
    assert "give --prompts FILE" in refused(capsys, "pipeline", *PIPELINE, *words, *DRY)
