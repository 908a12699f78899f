"""Text to video with a tiny Stable Diffusion, from mp4 files to mp4 files by the command line."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline

from cmdvid import CMDPipeline
from cmdvid.__main__ import main
from cmdvid.data.latents import LatentDataset
from cmdvid.stages.networks import FrozenAutoencoder
from cmdvid.types import VideoLatent

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


def again(folder: Path, run: Path, stage: str, steps: int, *words: str) -> None:
    """Train a stage of the run by its settings, in another folder."""
    callback = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"}
    callback["init_args"] = {"dirpath": str(folder), "save_last": True, "save_top_k": 0}
    words = ("--trainer.callbacks", json.dumps([callback]), "--trainer.logger", "false", *words)
    words = ("--trainer.max_steps", str(steps), "--trainer.default_root_dir", str(folder), *words)
    main(["fit", "--config", str(run / stage / "run.yaml"), *words])


def test_a_resumed_lora_ends_where_an_uninterrupted_one_does(run, tmp_path):
    ends = []
    for name, legs in (("whole", [5]), ("stopped", [3, 5])):  # an epoch has two steps
        folder, words = tmp_path / name, []
        for steps in legs:
            again(folder, run, "lora", steps, *words)
            words = ["--ckpt", str(folder / "last.ckpt")]
        saved = torch.load(folder / "last.ckpt", weights_only=True)
        ends.append({k: saved[k] for k in ("state_dict", "optimizer_states", "global_step")})
    before = torch.load(run / "lora/last.ckpt", weights_only=True)["state_dict"]
    assert any(not torch.equal(before[k], v) for k, v in ends[0]["state_dict"].items())
    torch.testing.assert_close(ends[1], ends[0], atol=0, rtol=0)


def test_the_content_model_trains_on_cached_latents_without_a_video(run, tmp_path):
    latents = tmp_path / "latents"
    main(["encode", "--ckpt", str(run / "ae/last.ckpt"), "--out", str(latents)])
    frozen = FrozenAutoencoder(run / "ae/last.ckpt")
    dataset = LatentDataset(latents, "train")
    picture = frozen.decode_content(VideoLatent(*(x[None] for x in dataset[0].latent)))
    assert len(dataset) == 8
    assert picture.shape == (1, 3, 32, 48)
    words = ["--data.latents", str(latents), "--data.train", "null", "--data.val", "null"]
    again(tmp_path, run, "lora", 2, *words)
    words = ["predict", "--ckpt", str(tmp_path / "last.ckpt"), "--num_inference_steps", "2"]
    main([*words, "--out", str(tmp_path / "out")])
    assert len(list((tmp_path / "out").glob("00000?-*.png"))) == len(dataset)


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.parametrize("stage", ["content", "lora"])
def test_two_processes_train_one_stable_diffusion(run, tmp_path, stage):
    """Both end with the same weights, which they learned from other noise."""
    config = yaml.safe_load((run / stage / "run.yaml").read_text())
    config["trainer"] |= {"devices": 2, "strategy": "ddp", "accelerator": "cpu", "logger": False}
    config["trainer"] |= {"max_steps": 2, "default_root_dir": str(tmp_path), "log_every_n_steps": 1}
    dump = {"class_path": "dump_ranks.DumpRanks", "init_args": {"folder": str(tmp_path)}}
    config["trainer"]["callbacks"] = [dump]
    config["data"]["batch_size"] = 2
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    subprocess.run(
        [sys.executable, "-m", "cmdvid", "fit", "--config", str(tmp_path / "run.yaml")],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        check=True, timeout=400, capture_output=True,
    )  # fmt: skip
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    torch.testing.assert_close(ranks[0]["weights"], ranks[1]["weights"], atol=0, rtol=0)
    before = torch.load(run / stage / "last.ckpt", weights_only=True)["state_dict"]
    assert before.keys() == ranks[0]["weights"].keys()
    assert not torch.equal(ranks[0]["noise"], ranks[1]["noise"])


@pytest.mark.filterwarnings("ignore:.*was trained with other settings")
def test_the_autoencoder_does_not_go_on_with_another_vae(
    run, sd_folder, plain_sd, tmp_path, capsys
):
    words = ["--ckpt", str(run / "ae/last.ckpt"), "--model.codec.init_args.model", sd_folder]
    with pytest.raises(SystemExit):
        again(tmp_path, run, "ae", 30, *words)
    message = capsys.readouterr().err
    assert f"codec {sd_folder} (the checkpoint names {plain_sd}): not the VAE" in message
    assert "it had shift 0.0, but this one has shift 0.25" in message


def test_clips_that_cannot_be_encoded_are_refused_before_training(run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        again(tmp_path, run, "ae", 1, "--data.spec.image_size", "[40,48]")
    message = capsys.readouterr().err
    assert "data.spec.image_size 40x48: height and width must be divisible by 16" in message
    assert "8 of the StableDiffusionCodec, 2 of the autoencoder" in message
    assert "the nearest such size is 32x48" in message


def test_a_stage_alone_is_profiled_by_the_checkpoint_that_it_names(run, capsys):
    main(["profile", "--config", str(run / "motion/run.yaml")])
    text = capsys.readouterr().out
    assert "clips of 4x4x6" in text
    assert "| motion |" in text


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
