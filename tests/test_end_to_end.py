"""Video files to scored clips by the real command line, at the smallest size that runs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from cmdvid.__main__ import main
from cmdvid.data.latents import LatentDataset
from cmdvid.data.manifest import read_manifest
from cmdvid.stages.diffusion import DiffusionStage

CONFIGS = Path(__file__).parents[1] / "configs"
SMALL_AE = {"width": 16, "depth": 1, "num_heads": 2}
SMALL = {"content": {"widths": "[24,24]"}, "motion": {"width": 32, "depth": 1, "num_heads": 4}}


def overrides(prefix: str, values: dict) -> list[str]:
    return [word for key, value in values.items() for word in (f"{prefix}.{key}", str(value))]


def stage(name: str, run: Path, steps: int, **trainer: object) -> list[str]:
    """The shipped configuration of a stage, made tiny."""
    folder = {"ae": "autoencoder"}.get(name, name)
    settings = {
        "max_steps": steps,
        "val_check_interval": 2,
        "limit_val_batches": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
        "default_root_dir": run / folder,
    } | trainer
    callback = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"}
    callback["init_args"] = {"dirpath": str(run / folder), "save_last": True, "save_top_k": 0}
    words = ["fit", "--config", str(CONFIGS / f"{name}_shapes.yaml")]
    words += overrides("--trainer", settings)
    words += ["--trainer.callbacks", json.dumps([callback])]
    words += ["--model.init_args.lr_scheduler", "null"]
    if name == "ae":
        words += overrides("--model.init_args.autoencoder.init_args", SMALL_AE)
        words += ["--model.init_args.statistics_clips", "12"]
        words += ["--data.train.init_args.csv", str(run / "data/train.csv")]
        words += ["--data.val.init_args.csv", str(run / "data/val.csv")]
        return words
    denoiser = "--model.init_args.diffusion.init_args.denoiser.init_args"
    words += overrides(denoiser, SMALL[name])
    words += ["--model.init_args.autoencoder_ckpt", str(run / "autoencoder/last.ckpt")]
    words += ["--data.latents", str(run / "latents"), "--data.batch_size", "4"]
    return words


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A whole run: data, three stages, and the pipeline."""
    run = tmp_path_factory.mktemp("run")
    counts = ["--num-videos", "12", "--val-videos", "4", "--heldout-videos", "4"]
    size = ["--num-frames", "4", "--image-size", "[32,48]"]
    main(["shapes", "--out", str(run / "data"), *counts, *size])
    size = ["--data.spec.num_frames", "4", "--data.spec.image_size", "[24,32]"]
    main([*stage("ae", run, 4), *size])
    autoencoder = str(run / "autoencoder/last.ckpt")
    main(["encode", "--ckpt", autoencoder, "--out", str(run / "latents")])
    main(stage("content", run, 4))
    main(stage("motion", run, 4))
    export(run, run / "pipeline")
    return run


def export(run: Path, out: Path, *words: str) -> None:
    content, motion = (str(run / part / "last.ckpt") for part in ("content", "motion"))
    main(["export", "--content", content, "--motion", motion, "--out", str(out), *words])


def test_latents_have_unit_variance_and_know_their_autoencoder(run):
    dataset = LatentDataset(run / "latents", "train")
    assert len(dataset) == 12
    latents = [dataset[0, i].latent for i in range(12)]
    for part in ("content", "motion"):
        values = torch.stack([getattr(latent, part) for latent in latents])
        assert values.mean().abs() < 0.01
        assert 0.99 < values.std() < 1.01
    assert len(read_manifest(run / "latents").autoencoder) == 64


def test_prompts_become_videos(run, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle moving left\na blue square moving up\n")
    words = ["predict", "--ckpt", str(run / "pipeline"), "--num_inference_steps", "2"]
    main([*words, "--prompts", str(prompts), "--fps", "12", "--out", str(tmp_path / "out")])
    names = sorted(path.name for path in (tmp_path / "out").glob("*.mp4"))
    assert "contact_sheet.mp4" in names
    assert any(name.startswith("000001-a-blue-square") for name in names)
    assert (tmp_path / "out/contact_sheet.png").stat().st_size > 0
    with av.open(str(next((tmp_path / "out").glob("000000-*.mp4")))) as video:
        assert video.streams.video[0].average_rate == 12


@pytest.mark.parametrize(
    ("part", "suffix"), [("autoencoder", ".mp4"), ("content", ".png"), ("motion", ".mp4")]
)
def test_predict_from_a_checkpoint_alone(run, tmp_path, part, suffix):
    """Reconstructions, content frames, real content with generated motion: no other setting."""
    words = ["predict", "--ckpt", str(run / part / "last.ckpt"), "--out", str(tmp_path)]
    main(words if part == "autoencoder" else [*words, "--num_inference_steps", "2"])
    assert len(list(tmp_path.glob(f"00000?-*{suffix}"))) == 4


def test_a_content_checkpoint_draws_prompts(run, tmp_path):
    """The picture depends on the prompt's row and the seed, not on the batch."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle moving left\na blue square moving up\n")
    pictures = []
    for size, seed in ((1, 3), (2, 3), (2, 4)):
        out = tmp_path / f"{size}-{seed}"
        words = ["predict", "--ckpt", str(run / "content/last.ckpt"), "--prompts", str(prompts)]
        words += ["--num_inference_steps", "2", "--seed", str(seed), "--out", str(out)]
        main([*words, "--data.batch_size", str(size)])
        files = sorted(out.glob("00000?-*.png"))
        assert len(files) == 2
        pictures.append(np.stack([np.asarray(Image.open(file)).astype(int) for file in files]))
    alone, together, other = pictures
    assert np.abs(alone - together).max() <= 1
    assert np.abs(other - together).max() > 1


@pytest.mark.parametrize("part", ["autoencoder", "motion"])
def test_prompts_alone_need_a_pipeline(run, tmp_path, capsys, part):
    words = ["predict", "--ckpt", str(run / part / "last.ckpt"), "--out", str(tmp_path)]
    with pytest.raises(SystemExit):
        main([*words, "--prompt", "a red circle"])
    assert "give --ckpt a pipeline folder" in capsys.readouterr().err


def test_the_report_names_every_level(run, tmp_path):
    words = ["test", "--config", str(CONFIGS / "generate_shapes.yaml")]
    words += ["--model.init_args.pipeline", str(run / "pipeline")]
    words += ["--model.init_args.num_inference_steps", "2"]
    words += ["--model.init_args.report", str(tmp_path)]
    words += ["--model.init_args.evaluation", "null"]  # its protocol needs hundreds of clips
    words += ["--data.spec.num_frames", "4", "--data.spec.image_size", "[24,32]"]
    words += ["--data.test.seen.csv", str(run / "data/val.csv")]
    words += ["--data.test.heldout.csv", str(run / "data/heldout.csv")]
    main([*words, "--trainer.default_root_dir", str(tmp_path)])
    report = (tmp_path / "report.md").read_text()
    for level in ("real", "reconstruction", "motion given content", "generated"):
        assert report.count(f"| {level} ") == 2, level
    assert json.loads((tmp_path / "report.json").read_text())


def elsewhere(words: list[str], folder: Path, old: Path) -> list[str]:
    """The same command with its checkpoints in another folder."""
    at = words.index("--trainer.callbacks") + 1
    return [*words[:at], words[at].replace(str(old), str(folder)), *words[at + 1 :]]


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(run, tmp_path, monkeypatch):
    """Stopped in mid-epoch, it goes on with the next sample, noise, averages and optimizer."""
    step, rows = DiffusionStage.training_step, []
    monkeypatch.setattr(
        DiffusionStage, "training_step", lambda s, b: rows.append(b.index.tolist()) or step(s, b)
    )
    ends = []
    for name, legs in (("whole", [5]), ("stopped", [2, 5])):
        folder, words = tmp_path / name, []
        for steps in legs:
            args = stage("content", run, steps, default_root_dir=folder)
            main([*elsewhere(args, folder, run / "content"), *words])
            words = ["--ckpt", str(folder / "last.ckpt")]
        saved = torch.load(folder / "last.ckpt", weights_only=True)
        ends.append({k: saved[k] for k in ("state_dict", "optimizer_states", "global_step")})
    assert rows[:5] == rows[5:]
    assert ends[0]["state_dict"]["diffusion.ema.n_averaged"] == 5
    torch.testing.assert_close(ends[1], ends[0], atol=0, rtol=0)


@pytest.fixture(scope="module")
def other_autoencoder(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("other")
    words = elsewhere(stage("ae", run, 2), folder, run / "autoencoder")
    main([*words, "--data.spec.num_frames", "4", "--data.spec.image_size", "[24,32]"])
    return folder / "last.ckpt"


def test_stages_of_different_autoencoders_do_not_join(run, other_autoencoder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        export(run, tmp_path / "pipeline", "--autoencoder", str(other_autoencoder))
    assert "all stages must share one autoencoder" in capsys.readouterr().err


def test_only_stable_diffusion_exports_for_images(run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        export(run, tmp_path / "pipeline", "--images-out", str(tmp_path / "images"))
    message = capsys.readouterr().err
    assert f"{run / 'content/last.ckpt'}: its content model has a ContentUNet" in message
    assert "only one with a StableDiffusionUNet can be exported for images" in message
    assert not (tmp_path / "pipeline").exists()


@pytest.mark.parametrize("name", ["content", "motion"])
def test_latents_of_another_autoencoder_are_refused(run, other_autoencoder, tmp_path, capsys, name):
    words = stage(name, run, 2, default_root_dir=tmp_path)
    at = words.index("--model.init_args.autoencoder_ckpt") + 1
    words[at] = str(other_autoencoder)
    with pytest.raises(SystemExit):
        main(words)
    message = capsys.readouterr().err
    for part in (run / "latents", run / "autoencoder/last.ckpt", other_autoencoder):
        assert str(part) in message
    assert f"`cmdvid encode --ckpt {other_autoencoder}" in message


def test_interrupting_leaves_a_usable_checkpoint(run, tmp_path):
    words = stage("motion", run, 100_000, default_root_dir=tmp_path)
    at = words.index("--trainer.callbacks") + 1
    callback = json.loads(words[at])[0]
    callback["init_args"] |= {"dirpath": str(tmp_path), "save_on_exception": True}
    words[at] = json.dumps([callback])
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "cmdvid", *words, "--trainer.limit_val_batches", "0",
         "--trainer.logger", "lightning.pytorch.loggers.CSVLogger",
         "--trainer.logger.save_dir", str(tmp_path), "--trainer.log_every_n_steps", "1",
         "--trainer.logger.flush_logs_every_n_steps", "1"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        # a test run in the background of a script ignores SIGINT, and so would this child
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while not list(tmp_path.rglob("metrics.csv")) and time.monotonic() < deadline:
        assert process.poll() is None, "training ended by itself"
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=120)
    finally:
        process.kill()
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] > 0
    assert "motion_denoiser" in saved["networks"]


@pytest.mark.ddp
def test_two_processes_train_one_model(run, tmp_path):
    """Both end with the same weights, which they learned from other noise."""
    words = stage("content", run, 2, default_root_dir=tmp_path)
    at = words.index("--trainer.callbacks") + 1
    dump = {"class_path": "dump_ranks.DumpRanks", "init_args": {"folder": str(tmp_path)}}
    words[at] = json.dumps([*json.loads(words[at]), dump])
    words = elsewhere(words, tmp_path, run / "content")
    words += ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "2"]
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    subprocess.run(
        [sys.executable, "-m", "cmdvid", *words, "--trainer.accelerator", "cpu"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        check=True, timeout=240, capture_output=True,
    )  # fmt: skip
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    torch.testing.assert_close(ranks[0]["weights"], ranks[1]["weights"], atol=0, rtol=0)
    for drawn in ("noise", "steps"):
        assert not torch.equal(ranks[0][drawn], ranks[1][drawn])
