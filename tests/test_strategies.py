"""Trainings of two processes over gloo against one process, by the shipped overlays."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from cmdvid.__main__ import main

TESTS = Path(__file__).parent
CLUSTER = TESTS.parent / "configs/cluster"
SPEC = {"num_frames": 4, "image_size": [32, 48]}
STEPS = 2


def part(name: str, **init_args) -> dict:
    return {"class_path": f"cmdvid.models.{name}", "init_args": init_args}


def config(folder: Path, stage: str, model: dict, clips: str, **optimizer) -> list[str]:
    """Write a stage's config and give the arguments that train it."""
    index = {"class_path": "cmdvid.data.index.WebVid", "init_args": {"csv": clips}}
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}} | optimizer
    checkpoint = {"dirpath": str(folder), "save_last": True, "save_top_k": 0}
    settings = {
        "model": {"class_path": stage, "init_args": {**model, "optimizer": optimizer}},
        "data": {
            "train": index, "val": index, "allow_leakage": True, "spec": SPEC,
            "batch_size": 2, "num_workers": 0,
        },
        "trainer": {
            "max_steps": STEPS, "limit_val_batches": 1, "num_sanity_val_steps": 0,
            "gradient_clip_val": 1.0, "default_root_dir": str(folder), "accelerator": "cpu",
            "enable_progress_bar": False, "enable_model_summary": False, "logger": False,
            "callbacks": [
                {"class_path": "cmdvid.callbacks.ClipPreview"},
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": checkpoint,
                },
            ],
        },
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    return ["fit", "--config", str(folder / "run.yaml")]


def together(*runs: list[str]) -> None:
    """Run command lines one after the other on two processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    paths = os.pathsep.join([str(TESTS), *sys.path])
    told = os.environ | meeting | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    told |= {"TORCHELASTIC_RUN_ID": "test"}  # as torchrun starts processes
    command = [sys.executable, str(TESTS / "train_ranks.py"), json.dumps(runs)]
    ranks = [
        subprocess.Popen(
            command, env=told | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    try:
        said = [rank.communicate(timeout=100)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(said)


def test_x(tmp_path, sd_folder):
    run = tmp_path
    main(["shapes", "--out", str(run / "data"), "--num-videos", "8", "--val-videos", "2",
          "--heldout-videos", "1", "--num-frames", "4", "--image-size", "[32,48]"])
    clips = str(run / "data/train.csv")
    ae = part("autoencoder.Autoencoder", channels=4, motion_channels=2, width=16, depth=1, num_heads=2)
    codec = part("sd_codec.StableDiffusionCodec", model=sd_folder)
    main(config(run / "ae", "AutoencoderStage", {"autoencoder": ae, "codec": codec, "statistics_clips": 4}, clips))
    settings = {"denoiser": part("stable_diffusion.StableDiffusionUNet", model=sd_folder, channels_last=True),
      "conditioner": part("sd_text.StableDiffusionText", model=sd_folder), "ema_decay": 0.9,
      "scheduler": part("stable_diffusion.stable_diffusion_scheduler", model=sd_folder)}
    model = {"diffusion": part("diffusion.Diffusion", **settings), "autoencoder_ckpt": str(run / "ae/last.ckpt"), "num_inference_steps": 2}
    adam = {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-3}}
    words = config(run / "content", "ContentStage", model, clips, **adam)
    two = ["--trainer.devices", "2"]
    together([*words, "--config", str(CLUSTER / "fsdp.yaml"), *two])
    c = torch.load(run / "content/last.ckpt", weights_only=True)
    print({k: type(v) for k, v in c.items()})
    print(c["networks"])
    main([*words, "--ckpt", str(run / "content/last.ckpt"), "--trainer.max_steps", "3"])
