"""Trainings of two processes over gloo against one process, by the overlays that are shipped."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule

from cmdvid.__main__ import main
from cmdvid.cli import Parser
from cmdvid.profile_command import read
from cmdvid.stages.networks import load_network, read_checkpoint
from cmdvid.stages.noise import mix
from cmdvid.types import ClipBatch

pytestmark = [pytest.mark.slow, pytest.mark.ddp]
TESTS = Path(__file__).parent
CLUSTER = TESTS.parent / "configs/cluster"
SPEC = {"num_frames": 4, "image_size": [32, 64]}
SIZE = {"width": 16, "depth": 2, "num_heads": 2}
CASES = ["ae ddp", "content ddp", "motion ddp", "content fsdp", "motion fsdp"]
REFUSED = {
    "ae fsdp": "only content and motion models are cut up, not AutoencoderStage",
    "lora fsdp": "as with lora_rank, cannot be cut up",
    "muon fsdp": "Muon needs whole matrices",
    "pieces fsdp": "take cmdvid.stages.sharding.Sharded",
    "resumed fsdp": "its optimizer is of a model that was not cut up",
}


def part(name: str, **init_args) -> dict:
    return {"class_path": f"cmdvid.models.{name}", "init_args": init_args}


def write(run: Path, name: str, stage: str, **model) -> None:
    """Write the config of a stage."""
    index = {"class_path": "cmdvid.data.index.WebVid"}
    index["init_args"] = {"csv": str(run / "data/train.csv")}
    # not Adam, which makes of rounding errors steps as large as any
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9}}
    data = {"train": index, "val": index, "allow_leakage": True, "spec": SPEC, "batch_size": 2}
    trainer = {
        "max_steps": 2, "limit_val_batches": 1, "num_sanity_val_steps": 0, "accelerator": "cpu",
        "gradient_clip_val": 1.0, "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    settings = {
        "model": {"class_path": stage, "init_args": model | {"optimizer": optimizer}},
        "data": data | {"num_workers": 0},
        "trainer": trainer | {"logger": False},
    }
    (run / f"{name}.yaml").write_text(yaml.safe_dump(settings))


def fit(run: Path, name: str, overlay: str | None, *words: str, to: str | None = None) -> list[str]:
    """The arguments that train a stage by an overlay, in a folder ``to``, or else of that name."""
    folder = run / (to or (f"{name} {overlay}" if overlay else name))
    checkpoint = {"dirpath": str(folder), "save_last": True, "save_top_k": 0}
    callbacks = [
        {"class_path": "cmdvid.callbacks.ClipPreview"},
        {"class_path": "cmdvid.progress.Throughput"},
        {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": checkpoint},
    ]
    if overlay:
        dump = {"class_path": "train_ranks.DumpStep", "init_args": {"folder": str(folder)}}
        callbacks.insert(0, dump)
    words = ("--trainer.callbacks", json.dumps(callbacks), *words)
    words = ("--trainer.default_root_dir", str(folder), *words)
    if overlay:
        words = ("--config", str(CLUSTER / f"{overlay}.yaml"), "--trainer.devices", "2", *words)
    return ["fit", "--config", str(run / f"{name}.yaml"), *words]


def together(runs: list[list[str]]) -> str:
    """Run command lines one after the other on two processes; what the first says."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    paths = os.pathsep.join([str(TESTS), *sys.path])
    told = os.environ | meeting | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    told |= {"TORCHELASTIC_RUN_ID": "test"}  # as torchrun starts processes
    command = [sys.executable, str(TESTS / "train_ranks.py"), json.dumps(runs)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    ranks = [
        subprocess.Popen(command, env=told | {"RANK": rank, "LOCAL_RANK": rank}, **pipes)
        for rank in ("0", "1")
    ]
    try:
        said = [rank.communicate(timeout=500)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(said)
    return said[0]


@pytest.fixture(scope="module")
def run(sd_folder, tmp_path_factory) -> Path:
    """All cases, trained and refused, by two processes that import Lightning once."""
    run = tmp_path_factory.mktemp("run")
    counts = ["--num-videos", "8", "--val-videos", "2", "--heldout-videos", "1"]
    size = ["--num-frames", "4", "--image-size", "[32,48]"]
    main(["shapes", "--out", str(run / "data"), *counts, *size])
    autoencoder = part("autoencoder.Autoencoder", channels=4, motion_channels=2, **SIZE)
    codec = part("sd_codec.StableDiffusionCodec", model=sd_folder)
    model = {"autoencoder": autoencoder, "codec": codec, "statistics_clips": 4}
    write(run, "ae", "AutoencoderStage", **model)
    main(fit(run, "ae", None))
    unet = {"model": sd_folder, "channels_last": True}
    text = part("sd_text.StableDiffusionText", model=sd_folder)
    schedule = part("stable_diffusion.stable_diffusion_scheduler", model=sd_folder)
    ours = part("conditioning.TextConditioner", width=16, num_layers=1, num_heads=2)
    dit = part(
        "motion_dit.MotionDiT", **SIZE, channels=4, motion_channels=2, condition_dim=16, patch=1
    )
    diffusion = {
        "content": (part("stable_diffusion.StableDiffusionUNet", **unet), text, schedule),
        "lora": (part("stable_diffusion.StableDiffusionUNet", **unet, lora_rank=2), text, schedule),
        "motion": (dit, ours, None),
    }
    for name, (denoiser, conditioner, scheduler) in diffusion.items():
        parts = {"denoiser": denoiser, "conditioner": conditioner, "scheduler": scheduler}
        model = {"diffusion": part("diffusion.Diffusion", **parts), "num_inference_steps": 2}
        stage = "MotionStage" if name == "motion" else "ContentStage"
        write(run, name, stage, autoencoder_ckpt=str(run / "ae/last.ckpt"), **model)
    lightnings = {"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"}
    words = {
        "muon": ["motion", "fsdp", "--model.optimizer", "cmdvid.optim.Muon"],
        "pieces": ["motion", "ddp", "--trainer.strategy", json.dumps(lightnings)],
        "resumed": ["motion", "fsdp", "--ckpt", str(run / "motion ddp/last.ckpt")],
    }
    refused = [words.get(case.split()[0], case.split()) for case in REFUSED]
    runs = [fit(run, *case.split()) for case in CASES] + stopped(run)
    runs += [fit(run, *case) for case in refused]
    (run / "said.txt").write_text(together(runs))
    return run


def stopped(run: Path) -> list[list[str]]:
    """A training of three steps with Adam, and the same stopped after two."""
    adam = ["--model.optimizer", "torch.optim.Adam", "--model.optimizer.lr", "0.001"]
    resumed = ["--ckpt", str(run / "half/last.ckpt")]
    return [
        fit(run, "motion", "fsdp", *adam, "--trainer.max_steps", "3", to="whole"),
        fit(run, "motion", "fsdp", *adam, to="half"),
        fit(run, "motion", "fsdp", *adam, "--trainer.max_steps", "3", *resumed, to="resumed"),
    ]


def dumped(run: Path, case: str) -> list[dict]:
    return [torch.load(run / case / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def stage_of(run: Path, name: str, weights: dict) -> torch.nn.Module:
    """The stage of a config with the weights that a training began with."""
    settings, parser = read(str(run / f"{name}.yaml")), Parser()
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    stage = parser.instantiate_classes(type(settings)(model=settings.model)).model
    parameters = dict(stage.named_parameters())
    assert parameters.keys() == weights.keys()
    for key, value in weights.items():
        parameters[key].data.copy_(value)
    if hasattr(stage, "latents"):
        assert stage.latents.frozen  # read, for that draws from the noise
    return stage


def loss_of(stage: torch.nn.Module, clips: list[ClipBatch]) -> torch.Tensor:
    """The loss of one process on the joined batch, with the noise that each process drew."""
    if hasattr(stage, "autoencoder"):
        frames = stage.codec.encode(torch.cat([batch.clip for batch in clips]))
        return (stage.autoencoder(frames)[0] - frames).square().mean()
    losses = []
    for rank, batch in enumerate(clips):
        torch.manual_seed(mix(42, rank, 0, 0))
        latent, condition = stage.latents(batch)
        x = getattr(latent, stage.part)
        losses.append(stage.diffusion.loss(x, condition, **stage.context(latent)))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("case", CASES)
def test_two_processes_have_loss_and_gradients_of_one_with_the_joined_batch(run, case):
    ranks = dumped(run, case)
    stage = stage_of(run, case.split()[0], ranks[0]["weights"])
    batches = [ClipBatch(*rank["batch"]) for rank in ranks]
    assert not set(batches[0].index.tolist()) & set(batches[1].index.tolist())
    loss = loss_of(stage, batches)
    loss.backward()
    torch.testing.assert_close((ranks[0]["loss"] + ranks[1]["loss"]) / 2, loss.detach())
    gradients = {k: p.grad for k, p in stage.named_parameters() if p.grad is not None}
    assert any(gradient.abs().max() > 0 for gradient in gradients.values())
    for rank in ranks:
        torch.testing.assert_close(rank["gradients"], gradients, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("name", ["content", "motion"])
def test_a_model_that_was_cut_up_is_used_on_one_device(run, name):
    """Its averaged network computes what that of whole models does; and it goes on training."""
    outputs, states = [], []
    for overlay in ("ddp", "fsdp"):
        checkpoint = read_checkpoint(run / f"{name} {overlay}/last.ckpt")
        assert checkpoint["global_step"] == 2
        denoiser = load_network(checkpoint, f"{name}_denoiser", source=overlay)
        torch.manual_seed(0)
        if name == "content":
            inputs, context = torch.randn(1, 4, 4, 6), {}
            text = torch.randn(1, 7, denoiser.unet.config.cross_attention_dim)
        else:
            inputs, text = torch.randn(1, 2, 4, 6), torch.randn(1, 16)
            context = {"content": torch.randn(1, 4, 4, 8)}
        with torch.no_grad():
            outputs.append(denoiser(inputs, torch.tensor([500]), text, **context))
        states.append(checkpoint["state_dict"])
    torch.testing.assert_close(states[1], states[0], atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-4, rtol=1e-3)


def test_training_goes_on_on_one_device_with_the_optimizers_states(run, tmp_path):
    ends = []
    for overlay in ("ddp", "fsdp"):
        ckpt = str(run / f"motion {overlay}/last.ckpt")
        words = ["--trainer.max_steps", "3", "--trainer.callbacks.dirpath", str(tmp_path / overlay)]
        main([*fit(run, "motion", None, "--ckpt", ckpt), *words])
        ends.append(torch.load(tmp_path / overlay / "last.ckpt", weights_only=True)["state_dict"])
    before = torch.load(run / "motion fsdp/last.ckpt", weights_only=True)["state_dict"]
    assert any(not torch.equal(before[k], v) for k, v in ends[1].items())
    torch.testing.assert_close(ends[1], ends[0], atol=1e-5, rtol=1e-3)


def test_a_training_that_was_stopped_ends_as_the_whole_one(run):
    half, resumed, whole = (
        torch.load(run / name / "last.ckpt", weights_only=True)
        for name in ("half", "resumed", "whole")
    )
    assert (half["global_step"], resumed["global_step"]) == (2, 3)
    torch.testing.assert_close(resumed["state_dict"], whole["state_dict"])
    torch.testing.assert_close(resumed["optimizer_states"], whole["optimizer_states"])
    assert any(not torch.equal(half["state_dict"][k], v) for k, v in whole["state_dict"].items())


def test_previews_of_models_that_are_cut_up_are_drawn_by_all(run):
    for case in ("content fsdp", "motion fsdp", "motion ddp"):
        assert (run / case / "previews/step=2.mp4").stat().st_size > 0


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_cut_up_is_refused(run, case):
    assert REFUSED[case] in (run / "said.txt").read_text()
