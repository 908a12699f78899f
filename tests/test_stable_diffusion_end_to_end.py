"""Text to video with a tiny Stable Diffusion, from mp4 files to mp4 files by the command line."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline

from cmdvid import CMDPipeline
from cmdvid.__main__ import main

MODELS = "cmdvid.models."
UNET, TEXT = "stable_diffusion.StableDiffusionUNet", "sd_text.StableDiffusionText"
SCHEDULER = "stable_diffusion.stable_diffusion_scheduler"


def part(name: str, **init_args) -> dict:
    return {"class_path": MODELS + name, "init_args": init_args}


def fit(folder: Path, stage: str, model: dict, clips: str, *, lr: float, steps: int) -> list[float]:
    """Train a stage by `cmdvid fit` and return its losses."""
    index = {"class_path": "cmdvid.data.index.WebVid", "init_args": {"csv": clips}}
    optimizer = {"class_path": "torch.optim.Adam", "init_args": {"lr": lr}}
    callback = {"dirpath": str(folder), "save_last": True, "save_top_k": 0}
    config = {
        "model": {"class_path": stage, "init_args": {**model, "optimizer": optimizer}},
        "data": {
            "train": index,
            "val": index,
            "allow_leakage": True,
            "spec": {"num_frames": 4, "image_size": [32, 48]},
            "batch_size": 4,
            "num_workers": 0,
        },
        "trainer": {
            "max_steps": steps,
            "limit_val_batches": 0,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "default_root_dir": str(folder),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": str(folder), "flush_logs_every_n_steps": 1},
            },
            "callbacks": [
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": callback,
                }
            ],
        },
    }
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", str(folder / "run.yaml")])
    with open(next(folder.rglob("metrics.csv"))) as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def train(run: Path, sd_folder: str, clips: str, steps: int = 24) -> dict[str, list[float]]:
    """All stages, the content model fully and by LoRA; the losses of each."""
    size = {"width": 32, "depth": 1, "num_heads": 4}
    autoencoder = part("autoencoder.Autoencoder", channels=4, motion_channels=2, **size)
    codec = part("sd_codec.StableDiffusionCodec", model=sd_folder)
    model = {"autoencoder": autoencoder, "codec": codec, "statistics_clips": 4}
    losses = {"ae": fit(run / "ae", "AutoencoderStage", model, clips, lr=3e-3, steps=steps)}

    def diffusion(denoiser: dict, conditioner: dict, scheduler: dict | None = None) -> dict:
        settings = {"denoiser": denoiser, "conditioner": conditioner, "ema_decay": 0.9}
        settings |= {"scheduler": scheduler} if scheduler else {}
        ckpt = str(run / "ae/last.ckpt")
        return {"diffusion": part("diffusion.Diffusion", **settings), "autoencoder_ckpt": ckpt}

    text, scheduler = part(TEXT, model=sd_folder), part(SCHEDULER, model=sd_folder)
    for name, rank, lr in (("content", None, 5e-3), ("lora", 8, 2e-2)):
        model = diffusion(part(UNET, model=sd_folder, lora_rank=rank), text, scheduler)
        losses[name] = fit(run / name, "ContentStage", model, clips, lr=lr, steps=steps)
    sizes = {"channels": 4, "motion_channels": 2, "condition_dim": 16}
    motion = part("motion_dit.MotionDiT", **sizes, patch=1, content_patch=2, **size)
    text = part("conditioning.TextConditioner", width=16, num_layers=1, num_heads=2)
    model = diffusion(motion, text)
    losses["motion"] = fit(run / "motion", "MotionStage", model, clips, lr=3e-3, steps=steps)
    return losses


def export(run: Path, content: str, **words: Path) -> None:
    args = ["export", "--content", str(run / content / "last.ckpt")]
    main([*args, *(word for k, v in words.items() for word in (f"--{k}", str(v)))])


@pytest.fixture(scope="module")
def plain_sd(sd_folder, tmp_path_factory) -> str:
    """The tiny Stable Diffusion with a VAE that does not shift its latents, as 1.x and 2.x."""
    folder = tmp_path_factory.mktemp("sd") / "plain"
    shutil.copytree(sd_folder, folder)
    file = folder / "vae/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"shift_factor": None}))
    return str(folder)


@pytest.fixture(scope="module")
def run(plain_sd, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("run")
    counts = ["--num-videos", "8", "--val-videos", "2", "--heldout-videos", "1"]
    size = ["--num-frames", "4", "--image-size", "[32,48]"]
    main(["shapes", "--out", str(run / "data"), *counts, *size])
    losses = train(run, plain_sd, str(run / "data/train.csv"))
    (run / "losses.json").write_text(json.dumps(losses))
    for content in ("content", "lora"):
        export(run, content, motion=run / "motion/last.ckpt", out=run / f"{content}-pipeline")
    return run


@pytest.mark.parametrize("stage", ["ae", "content", "lora", "motion"])
def test_the_loss_goes_down(run, stage):
    losses = json.loads((run / "losses.json").read_text())[stage]
    assert len(losses) == 24
    assert sum(losses[-8:]) < 0.95 * sum(losses[:8])


@pytest.mark.parametrize("content", ["content", "lora"])
def test_a_prompt_becomes_an_mp4(run, tmp_path, content):
    words = ["predict", "--ckpt", str(run / f"{content}-pipeline"), "--num_inference_steps", "2"]
    main([*words, "--prompt", "a red circle", "--out", str(tmp_path)])
    assert (tmp_path / "000000-a-red-circle.mp4").stat().st_size > 0


@pytest.mark.parametrize("content", ["content", "lora"])
def test_the_content_model_alone_is_a_stable_diffusion(run, tmp_path, content):
    """Its image is our content frame, for the same noise, caption, steps and guidance."""
    export(run, content, images_out=tmp_path)
    image = StableDiffusionPipeline.from_pretrained(tmp_path)
    pipe = CMDPipeline.from_pretrained(run / f"{content}-pipeline")
    for each in (image, pipe):
        each.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 3, "guidance_scale": 3.0, "negative_prompt": "blue"}
    noise = torch.randn(1, 4, 4, 6, generator=torch.Generator().manual_seed(7))
    ours = pipe("a red circle", generator=torch.Generator().manual_seed(7), **settings).content
    theirs = image(
        "a red circle", latents=noise, height=32, width=48, output_type="pt", **settings
    ).images
    assert ours.std() > 0.01
    torch.testing.assert_close(ours / 2 + 0.5, theirs, atol=1e-4, rtol=0)


def test_a_vae_that_changed_since_training_is_refused(run, plain_sd, tmp_path, capsys):
    """Both sides are named: the checkpoint with its VAE, and the VAE that is there now."""
    config = Path(plain_sd) / "vae/config.json"
    before = config.read_text()
    config.write_text(json.dumps(json.loads(before) | {"scaling_factor": 0.25}))
    try:
        with pytest.raises(SystemExit):
            export(run, "content", images_out=tmp_path / "out")
    finally:
        config.write_text(before)
    message = capsys.readouterr().err
    assert str(run / "ae/last.ckpt") in message
    assert f"{plain_sd}: not the VAE that the checkpoint was trained with" in message
    assert "it had scale 0.5, but this one has scale 0.25" in message
    assert not (tmp_path / "out").exists()


def test_the_pipeline_needs_no_folder_of_stable_diffusion(run, plain_sd, tmp_path):
    moved = shutil.copytree(run / "lora-pipeline", tmp_path / "pipeline")
    hidden = Path(plain_sd).rename(tmp_path / "hidden")
    try:
        pipe = CMDPipeline.from_pretrained(moved, use_safetensors=True)
    finally:
        hidden.rename(plain_sd)
    assert not hasattr(pipe.unet, "peft_config")
    assert not [p for p in moved.rglob("*") if p.suffix in (".bin", ".pt", ".ckpt", ".pkl")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({}, "give --motion and --out for a pipeline, --images-out for images"),
        ({"out": "x"}, "give --motion and --out for a pipeline"),
    ],
)
def test_an_export_of_nothing_is_refused(run, capsys, words, message):
    with pytest.raises(SystemExit):
        export(run, "content", **words)
    assert message in capsys.readouterr().err
