"""`cmdvid encode` and training on what it wrote, by the real command line."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import open_clip
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from cmdvid.__main__ import main
from cmdvid.data.latents import LatentDataset
from cmdvid.data.manifest import read_manifest

MODELS = "cmdvid.models."
AE = {"width": 16, "depth": 1, "num_heads": 2, "motion_channels": 2}


def part(name: str, **init_args) -> dict:
    return {"class_path": MODELS + name, "init_args": init_args}


def lightning(name: str, **init_args) -> dict:
    return {"class_path": f"lightning.pytorch.{name}", "init_args": init_args}


def config(run: Path, stage: str, model: dict, *, steps: int = 2, **data) -> Path:
    """Write the YAML of a stage that trains on the videos of ``run``."""
    index = {
        name: {"class_path": "WebVid", "init_args": {"csv": str(run / f"data/{name}.csv")}}
        for name in ("train", "val")
    }
    settings = {
        "model": {"class_path": stage, "init_args": model},
        "data": {
            **index,
            "spec": {"num_frames": 4, "image_size": [24, 32]},
            "batch_size": 2,
            "num_workers": 0,
            **data,
        },
        "trainer": {
            "max_steps": steps,
            "accelerator": "cpu",
            "devices": 1,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(run / stage),
            "logger": lightning("loggers.CSVLogger", save_dir=str(run / stage), version=""),
            "callbacks": [
                lightning("callbacks.ModelCheckpoint", dirpath=str(run / stage), save_last=True)
            ],
        },
    }
    run.joinpath(stage).mkdir(exist_ok=True)
    file = run / stage / "run.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def fit(file: Path, out: Path, *words: str) -> list[float]:
    """Train, with all output in ``out``, and return the losses of training and validation."""
    folder = ["--trainer.logger.save_dir", "--trainer.callbacks.dirpath"]
    words = (*(word for name in folder for word in (name, str(out))), *words)
    main(["fit", "--config", str(file), "--trainer.default_root_dir", str(out), *words])
    with open(next(out.rglob("metrics.csv"))) as lines:
        rows = list(csv.DictReader(lines))
    return [float(row[key]) for key in ("train/loss", "val/loss") for row in rows if row.get(key)]


def encode(run: Path, out: Path, *words: str) -> None:
    options = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    ckpt = [] if "--config" in words else ["--ckpt", str(run / "AutoencoderStage/last.ckpt")]
    main(["encode", *ckpt, "--out", str(out), *options, *words])


def tensors(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    files = sorted(folder.glob("*/*.safetensors"))
    return {str(path.relative_to(folder)): load_file(path) for path in files}


def error_of(capsys, run, *args) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run(*args)
    return capsys.readouterr().err


def cache(run: Path) -> Path:
    """A cache of default settings; made once."""
    if not (run / "cache/manifest.json").exists():
        encode(run, run / "cache")
    return run / "cache"


def write_videos(folder: Path, num_videos: int) -> None:
    counts = ["--num-videos", str(num_videos), "--val-videos", "2", "--heldout-videos", "1"]
    main(["shapes", "--out", str(folder), *counts, "--num-frames", "9", "--image-size", "[24,32]"])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Videos of more frames than a clip has, and an autoencoder of pixels."""
    run = tmp_path_factory.mktemp("pixels")
    write_videos(run / "data", 7)
    model = {"autoencoder": part("autoencoder.Autoencoder", patch=4, **AE), "statistics_clips": 4}
    main(["fit", "--config", str(config(run, "AutoencoderStage", model))])
    return run


@pytest.fixture(scope="module")
def motion(run) -> Path:
    """The YAML of a motion stage; five steps are an epoch and two steps."""
    denoiser = part(
        "motion_dit.MotionDiT", motion_channels=2, condition_dim=16, width=16, depth=1, num_heads=2
    )
    conditioner = part("conditioning.TextConditioner", width=16, num_layers=1, num_heads=2)
    model = {
        "diffusion": part("diffusion.Diffusion", denoiser=denoiser, conditioner=conditioner),
        "autoencoder_ckpt": str(run / "AutoencoderStage/last.ckpt"),
    }
    return config(run, "MotionStage", model, steps=5)


def test_cached_and_online_training_have_the_same_losses(run, motion, tmp_path):
    """Over more epochs than one: other windows, and mirrored ones."""
    encode(run, tmp_path / "cache", "--clips_per_video=3", "--flips=true")
    flip = "--data.flip=true"
    online = fit(motion, tmp_path / "online", flip)
    cached = fit(motion, tmp_path / "cached", flip, "--data.latents", str(tmp_path / "cache"))
    assert len(online) == 6  # one of them of validation
    assert cached == pytest.approx(online, abs=1e-4)
    first = [LatentDataset(tmp_path / "cache", "train")[epoch, 0].latent for epoch in (0, 1)]
    assert not torch.allclose(first[0].motion, first[1].motion, atol=0.1)


def test_half_precision_is_stored_and_trained_on(run, motion, tmp_path):
    full = tensors(cache(run))["val/000000.safetensors"]["motion"]
    for name, dtype, close in (("fp16", torch.float16, 2e-3), ("bf16", torch.bfloat16, 2e-2)):
        encode(run, tmp_path / name, f"--dtype={name}")
        half = tensors(tmp_path / name)["val/000000.safetensors"]["motion"]
        assert half.dtype == dtype
        torch.testing.assert_close(half.float(), full, rtol=close, atol=close)
    latents = ["--data.latents", str(tmp_path / "fp16"), "--trainer.max_steps=1"]
    assert len(fit(motion, tmp_path / "run", *latents)) == 1


def test_a_killed_run_goes_on_with_the_shards_it_lacks(run, tmp_path, capsys):
    """They hold what an uninterrupted run has; finished ones are not touched."""
    rows = (run / "data/train.csv").read_text().splitlines()
    many = run / "data/many.csv"
    many.write_text("\n".join([rows[0], *(rows[1:] * 40)]) + "\n")
    words = ["--shard_size=1", f"--data.train.csv={many}"]
    command = ["encode", "--ckpt", str(run / "AutoencoderStage/last.ckpt"), *words]
    command += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    out = tmp_path / "killed"
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "cmdvid", *command, "--out", str(out)],
            env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=log, stderr=log,
        )  # fmt: skip
        deadline = time.monotonic() + 240
        while len(list(out.glob("train/*.safetensors"))) < 3 and time.monotonic() < deadline:
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
    assert process.returncode == -signal.SIGKILL
    before = {path: path.stat().st_mtime_ns for path in out.glob("train/*.safetensors")}
    assert 3 <= len(before) < 140
    latents = ["--data.latents", str(out)]
    assert "no finished latent cache" in error_of(
        capsys, main, ["validate", "--config", str(run / "MotionStage/run.yaml"), *latents]
    )
    assert "dtype was fp32, now bf16" in error_of(capsys, encode, run, out, *words, "--dtype=bf16")

    encode(run, out, *words)
    assert all(path.stat().st_mtime_ns == time_ for path, time_ in before.items())
    encode(run, tmp_path / "whole", *words)
    found, expected = tensors(out), tensors(tmp_path / "whole")
    assert len(found) == 141
    torch.testing.assert_close(found, expected, atol=0, rtol=0)
    assert not list(out.rglob("*.part"))

    manifest = (out / "manifest.json").stat().st_mtime_ns
    encode(run, out, *words)  # finished: nothing is done again
    assert (out / "manifest.json").stat().st_mtime_ns == manifest


def train_on_frames(run: Path, tmp_path: Path) -> tuple[list[str], torch.Tensor]:
    """See that the autoencoder learns the same from clips and frames, to the last measurement."""
    file = run / "AutoencoderStage/run.yaml"
    encode(run, tmp_path / "frames", "--config", str(file), "--frames_only=true")
    frames = ["--data.latents", str(tmp_path / "frames")]
    online, cached = fit(file, tmp_path / "a"), fit(file, tmp_path / "b", *frames)
    assert cached == pytest.approx(online, abs=1e-4)
    saved = [torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("a", "b")]
    ours, theirs = (each["state_dict"] for each in saved)
    for name in [key for key in ours if key.endswith(("_mean", "_std"))]:
        # measured on windows of an epoch of its own, which a cache has only one of
        torch.testing.assert_close(ours.pop(name), theirs.pop(name), atol=0.02, rtol=0.02)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    main(["validate", "--config", str(file), "--trainer.logger=false", *frames])
    return frames, tensors(tmp_path / "frames")["train/000000.safetensors"]["frames"]


def test_the_autoencoder_trains_on_cached_frames(run, sd_folder, motion, tmp_path, capsys):
    """They are made without a checkpoint; other stages, and stages of other codecs, refuse them."""
    frames, found = train_on_frames(run, tmp_path)
    assert found.shape[1:] == (3, 4, 24, 32)
    assert "holds is frames, but here latents" in error_of(
        capsys, fit, motion, tmp_path / "c", *frames
    )
    codec = json.dumps(part("sd_codec.StableDiffusionCodec", model=sd_folder))
    file = run / "AutoencoderStage/run.yaml"
    message = error_of(capsys, fit, file, tmp_path / "d", *frames, f"--model.codec={codec}")
    assert "codec.class_path is cmdvid.models.codecs.PixelCodec, but here" in message


def test_other_settings_begin_anew_only_if_told_to(run, motion, tmp_path, capsys):
    out = shutil.copytree(cache(run), tmp_path / "cache")
    message = error_of(capsys, encode, run, out, "--data.spec.num_frames=3", "--flips=true")
    assert "spec.num_frames was 4, now 3; train.flips was False, now True" in message
    encode(run, out, "--data.spec.num_frames=3", "--overwrite=true")
    assert read_manifest(out).spec["num_frames"] == 3
    assert LatentDataset(out, "train")[0].latent.motion.shape[1] == 3

    message = error_of(capsys, fit, motion, tmp_path / "run", "--data.latents", str(out))
    assert f"{out}: not a cache for this stage (spec.num_frames is 3, but here 4)" in message
    encode(run, out, "--overwrite=true")
    other = ["--data.latents", str(out), "--data.train.csv", str(run / "data/val.csv")]
    other += ["--data.allow_leakage=true"]
    message = error_of(capsys, fit, motion, tmp_path / "run", *other)
    assert f"{out}: not a cache for this stage (train.index is " in message
    assert "val.index" not in message


def test_a_run_that_leaves_shards_out_is_not_finished(run, tmp_path, capsys):
    words = ["--shard_size=2", "--trainer.limit_predict_batches=1"]
    message = error_of(capsys, encode, run, tmp_path, *words)
    assert "3 of 4 shards are missing" in message
    assert not (tmp_path / "manifest.json").exists()
    encode(run, tmp_path, "--shard_size=2")
    assert len(LatentDataset(tmp_path, "train")) == 7


def test_labels_and_damaged_files_are_encoded_too(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, label in (("a", "cat"), ("b", "cat"), ("c", "dog")):
        video = next((run / "data/videos").rglob("*.mp4"))
        (tmp_path / "videos" / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(video, tmp_path / "videos" / label / f"{name}.mp4")
    (tmp_path / "videos/cat/b.mp4").write_text("<html>")
    folder = ["--data.train=VideoFolder", f"--data.train.root={tmp_path / 'videos'}"]
    encode(run, tmp_path / "cache", *folder)
    dataset = LatentDataset(tmp_path / "cache", "train")
    assert [dataset[i].condition for i in (0, 2)] == [0, 1]
    assert dataset[1].condition in (0, 1)  # of the video in its place
    assert len(dataset) == 3
    (line,) = (tmp_path / "cache/skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["path"] == str(tmp_path / "videos/cat/b.mp4")
    # as does predict, whose output lies elsewhere
    ckpt, quiet = str(run / "AutoencoderStage/last.ckpt"), "--trainer.enable_progress_bar=false"
    videos = ["--data.val=VideoFolder", f"--data.val.root={tmp_path / 'videos'}"]
    main(["predict", "--ckpt", ckpt, "--out=out", *videos, quiet, "--trainer.accelerator=cpu"])
    (line,) = (tmp_path / "out/skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["path"] == str(tmp_path / "videos/cat/b.mp4")
    assert not (tmp_path / "skipped.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--content_conditioner=TextConditioner"], "is trained with the content model"),
        (["--clips_per_video=0"], "must be at least 1"),
        (["--dtype=fp8"], "fp8"),
        (["--data.val=null"], "encode needs data.val"),
    ],
)
def test_what_cannot_be_encoded_is_told_before_anything_is_written(
    run, tmp_path, capsys, words, message
):
    assert message in error_of(capsys, encode, run, tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def sd_run(run, sd_folder) -> tuple[Path, Path]:
    """The autoencoder and the content stage of a tiny Stable Diffusion, and its videos."""
    folder = run / "sd"
    folder.mkdir()
    shutil.copytree(run / "data", folder / "data")
    size = {"spec": {"num_frames": 4, "image_size": [32, 48]}}
    model = {
        "autoencoder": part("autoencoder.Autoencoder", channels=4, **AE),
        "codec": part("sd_codec.StableDiffusionCodec", model=sd_folder),
        "statistics_clips": 4,
    }
    main(["fit", "--config", str(config(folder, "AutoencoderStage", model, **size))])
    diffusion = part(
        "diffusion.Diffusion",
        denoiser=part("stable_diffusion.StableDiffusionUNet", model=sd_folder),
        conditioner=part("sd_text.StableDiffusionText", model=sd_folder),
        scheduler=part("stable_diffusion.stable_diffusion_scheduler", model=sd_folder),
        condition_dropout=0.5,
    )
    ckpt = str(folder / "AutoencoderStage/last.ckpt")
    model = {"diffusion": diffusion, "autoencoder_ckpt": ckpt}
    return folder, config(folder, "ContentStage", model, steps=3, **size)


@pytest.mark.slow
def test_embedded_captions_train_like_captions(sd_run, sd_folder, tmp_path, capsys):
    """With the null condition in its place; and a text encoder of other weights is refused."""
    run, content = sd_run
    words = ["--content_conditioner=cmdvid.models.sd_text.StableDiffusionText"]
    encode(run, tmp_path / "cache", *words, f"--content_conditioner.model={sd_folder}")
    shard = tensors(tmp_path / "cache")["train/000000.safetensors"]
    assert shard["content_text"].shape[1:] == (77, 16)
    latents = ["--data.latents", str(tmp_path / "cache")]
    online, cached = fit(content, tmp_path / "a"), fit(content, tmp_path / "b", *latents)
    assert cached == pytest.approx(online, abs=1e-4)

    other = shutil.copytree(sd_folder, tmp_path / "other")
    file = other / "text_encoder/model.safetensors"
    weights = load_file(file)
    next(iter(weights.values())).add_(1)
    save_file(weights, file, metadata={"format": "pt"})
    where = f"--model.diffusion.init_args.conditioner.init_args.model={other}"
    message = error_of(capsys, fit, content, tmp_path / "c", *latents, where)
    assert "content_text.weights is" in message


@pytest.mark.slow
def test_the_pooled_embedding_of_the_motion_model_is_cached(run, motion, tmp_path):
    sizes = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    model = {"embed_dim": 16, "vision_cfg": sizes, "text_cfg": text}
    (tmp_path / "motion-clip.json").write_text(json.dumps(model))
    open_clip.add_model_config(tmp_path / "motion-clip.json")
    torch.save(open_clip.create_model("motion-clip").state_dict(), tmp_path / "clip.pt")
    frozen = {"model_name": "motion-clip", "pretrained": str(tmp_path / "clip.pt")}
    words = ["--motion_conditioner=cmdvid.models.conditioning.TextConditioner"]
    words += [f"--motion_conditioner.{key}={value}" for key, value in frozen.items()]
    encode(run, tmp_path / "cache", *words)
    tower = json.dumps(part("conditioning.TextConditioner", **frozen))
    short = ["--trainer.max_steps=2", f"--model.diffusion.init_args.conditioner={tower}"]
    online = fit(motion, tmp_path / "a", *short)
    cached = fit(motion, tmp_path / "b", *short, "--data.latents", str(tmp_path / "cache"))
    assert cached == pytest.approx(online, abs=1e-4)


@pytest.mark.slow
def test_the_autoencoder_trains_on_cached_latents_of_stable_diffusion(sd_run, tmp_path, capsys):
    run, content = sd_run
    frames, found = train_on_frames(run, tmp_path)
    assert found.shape[1:] == (4, 4, 4, 6)
    assert "holds is frames, but here latents" in error_of(
        capsys, fit, content, tmp_path / "c", *frames
    )


@pytest.mark.slow
@pytest.mark.ddp
def test_two_processes_write_what_one_does(run, tmp_path):
    """Also when they go on with what one has begun, and one of them finds nothing left to do."""
    words = ["--shard_size=2", "--clips_per_video=2"]
    encode(run, tmp_path / "one", *words)
    command = ["encode", "--ckpt", str(run / "AutoencoderStage/last.ckpt"), *words]
    command += ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp"]
    for done in (0, 3):
        out = tmp_path / f"two-{done}"
        if done:
            shutil.copytree(tmp_path / "one", out)
            (out / "manifest.json").rename(out / "unfinished.json")
            (out / "train/000002.safetensors").unlink()
        subprocess.run(
            [sys.executable, "-m", "cmdvid", *command, "--out", str(out)],
            env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, timeout=240,
            capture_output=True,
        )  # fmt: skip
        torch.testing.assert_close(tensors(out), tensors(tmp_path / "one"), atol=0, rtol=0)
        assert (out / "manifest.json").is_file()
