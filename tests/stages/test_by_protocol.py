"""`cmdvid test` by a protocol, on real files: levels, floor, what it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler

from cmdvid.__main__ import main
from cmdvid.models.autoencoder import Autoencoder
from cmdvid.models.codecs import PixelCodec
from cmdvid.models.conditioning import TextConditioner
from cmdvid.models.content_dit import ContentDiT
from cmdvid.models.motion_dit import MotionDiT
from cmdvid.pipeline import CMDPipeline
from cmdvid.protocols import FOLDER

CONFIGS = Path(__file__).parents[2] / "configs"
H, W, L = 24, 32, 4
PROTOCOL = """
metrics: [fvd_shapes, motion]
num_samples: 6
spec: {num_frames: 4, image_size: [24, 32]}
random_window: false
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Videos in `data`, a tiny random pipeline in `pipeline`, and a protocol."""
    folder = tmp_path_factory.mktemp("project")
    counts = ["--num-videos=2", "--val-videos=14", "--heldout-videos=1"]
    size = [f"--num-frames={L}", f"--image-size=[{H},{W}]"]
    main(["shapes", "--out", str(folder / "data"), *counts, *size])
    pipeline(L, H, W).save_pretrained(folder / "pipeline")
    (folder / "p.yaml").write_text(PROTOCOL)
    return folder


def pipeline(length, height, width):
    """Random weights."""
    torch.manual_seed(0)
    return CMDPipeline(
        autoencoder=Autoencoder(width=16, depth=1, num_heads=2, patch=4, motion_channels=2),
        codec=PixelCodec(),
        content_denoiser=ContentDiT(width=16, depth=1, num_heads=2, patch=4, condition_dim=8),
        content_conditioner=TextConditioner(width=8, num_layers=1, num_heads=2),
        motion_denoiser=MotionDiT(2, width=16, depth=1, num_heads=2, condition_dim=8),
        motion_conditioner=TextConditioner(width=8, num_layers=1, num_heads=2),
        content_scheduler=DDIMScheduler(clip_sample=False),
        motion_scheduler=DDIMScheduler(clip_sample=False),
        content_shape=(3, height, width),
        motion_shape=(2, length, height // 4 + width // 4),
    )


@pytest.fixture
def here(project, monkeypatch, tmp_path):
    monkeypatch.chdir(project)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def command(out, *more, protocol="p.yaml"):
    options = {
        "ckpt": "pipeline",
        "model.num_inference_steps": 1,
        "model.evaluation.protocol": protocol,
        "model.report": str(out),
        "data.test": '{"seen": {"class_path": "cmdvid.data.index.WebVid", "init_args": {"csv": '
        '"data/val.csv"}}}',
        "data.spec": f'{{"num_frames": {L}, "image_size": [{H}, {W}]}}',
        "data.batch_size": 2,
        "data.num_workers": 0,
        "trainer.limit_test_batches": 3,
        "trainer.accelerator": "cpu",
        "trainer.logger": "false",
        "trainer.enable_progress_bar": "false",
        "trainer.default_root_dir": str(out),
    }
    return ["test", *(f"--{name}={value}" for name, value in options.items()), *more]


def test_every_level_is_measured_beside_the_floor(here, capsys):
    main(command(here / "eval"))
    assert "Fréchet (shapes)" in capsys.readouterr().out
    report = json.loads((here / "eval" / "report.json").read_text())
    levels = report["scores"]["seen"]
    assert list(levels) == ["real", "reconstruction", "motion given content", "generated"]
    for found in levels.values():
        assert found["fvd_shapes"]["n"] == found["dynamics"]["n"] == 6
        assert found["fvd_shapes"]["low"] <= found["fvd_shapes"]["high"]
    assert levels["generated"]["fvd_shapes"]["value"] > levels["real"]["fvd_shapes"]["value"]
    settings = report["settings"]
    assert settings["protocol"]["name"] == "p"
    assert settings["schedulers"] == dict.fromkeys(
        ("content", "motion"), "DDIMScheduler(clip_sample=False)"
    )
    shared = settings["shared_videos"]["seen"]  # the first six of 14, and six drawn of them
    assert 0 < shared < 6
    assert (
        f"seen: {shared} of 6 clips are made from videos that are among the real"
        in report["notes"][0]
    )
    assert len(settings["real"]["seen"]["data"][0]) == 64
    assert settings["weights"].keys() >= {"model_index.json"}
    generated = here / "eval" / "again"
    (folder,) = (here / "eval").glob("clips-*/seen/generated")
    args = ["--real=data/videos/val_000", f"--generated={folder}", "--protocol=p.yaml"]
    main(["evaluate", *args, f"--out={generated}", "--num-workers=0", "--device=cpu"])
    again = json.loads((generated / "report.json").read_text())["scores"]["p"]["generated"]
    assert again["dynamics"] == levels["generated"]["dynamics"]  # the same clips
    capsys.readouterr()
    # the reals were the videos of a folder here, and rows of a table with captions there
    with pytest.raises(SystemExit):
        main(["evaluate", "compare", str(here / "eval"), str(generated)])
    assert "made alike, so they say nothing: real.data:" in capsys.readouterr().err


def test_protocols_of_other_frames_measure_the_same_clips_anew(here):
    found = {}
    for frames, out in ((4, "both"), (2, "both"), (2, "fresh")):
        change = f"metrics: [motion]\nspec: {{num_frames: {frames}, image_size: [24, 32]}}\n"
        (here / "q.yaml").write_text(PROTOCOL + change)
        main(command(here / out, protocol=str(here / "q.yaml")))
        report = json.loads((here / out / "report.json").read_text())
        found[frames, out] = report["scores"]["seen"]["generated"]["frame_difference"]
    assert found[2, "both"] == found[2, "fresh"] != found[4, "both"]


@pytest.mark.parametrize(
    ("more", "change", "message"),
    [
        (
            ["--trainer.limit_test_batches=2"],
            "",
            "needs 6 generated clips, but test set seen",
        ),
        ([], "guidance_scale: 9.0", "wants guidance 9.0, but model.guidance_scale is 4.0"),
        (
            ["--model.guidance_scale=9.0", "--model.motion_guidance_scale=1.0"],
            "guidance_scale: 9.0",
            "wants guidance 9.0, but model.motion_guidance_scale is 1.0",
        ),
        ([], "several_windows: 3", "several_windows"),
        (
            [
                '--data.test={"seen": {"class_path": "cmdvid.data.index.VideoFolder", "init_args": '
                '{"root": "data/videos/val_000"}}}'
            ],
            "metrics: [clipsim]",
            "measures CLIPSIM, but row 0 of test set seen (from 0) has",
        ),
    ],
)
def test_what_a_protocol_cannot_get_is_told_before_anything_is_generated(
    here, capsys, more, change, message
):
    (here / "q.yaml").write_text(PROTOCOL + change)
    with pytest.raises(SystemExit):
        main(command(here / "eval", *more, protocol=str(here / "q.yaml")))
    assert message in capsys.readouterr().err
    assert not (here / "eval").exists() or not list((here / "eval").glob("clips-*"))


class I3D(torch.nn.Module):
    """Takes what StyleGAN-V's takes, and gives as many numbers."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(3 * 16, 400)

    def forward(
        self,
        x: torch.Tensor,
        rescale: bool = False,
        resize: bool = False,
        return_features: bool = False,
    ) -> torch.Tensor:
        return self.head(x.float().mean(dim=[3, 4]).flatten(1) / 255)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # TorchScript
def test_the_demos_configuration_and_an_fvd_go_from_end_to_end(here, monkeypatch):
    monkeypatch.chdir(here)
    size = ["--num-frames=16", "--image-size=[32,32]"]
    counts = ["--num-videos=2", "--val-videos=8", "--heldout-videos=6"]
    main(["shapes", "--out", "data", *counts, *size])
    pipeline(16, 32, 32).save_pretrained("pipeline")
    demos = (FOLDER / "shapes.yaml").read_text()  # the oracle takes its time
    (here / "shapes.yaml").write_text(demos.replace("num_samples: 256", "num_samples: 4"))
    options = {
        "config": CONFIGS / "generate_shapes.yaml",
        "model.pipeline": "pipeline",
        "model.num_inference_steps": 1,
        "model.judge": "null",
        "model.evaluation.protocol": "shapes.yaml",
        "data.batch_size": 4,
        "trainer.limit_test_batches": 1,
        "data.test.seen.csv": "data/val.csv",
        "data.test.heldout.csv": "data/heldout.csv",
        "trainer.default_root_dir": "run",
    }
    main(["test", *(f"--{name}={value}" for name, value in options.items())])
    report = json.loads((here / "run/eval/report.json").read_text())
    for levels in report["scores"].values():
        assert all(found["fvd_shapes"]["value"] > 0 for found in levels.values())
        assert levels["reconstruction"]["ssim"]["low"] < levels["reconstruction"]["ssim"]["high"]
    torch.jit.script(I3D()).save("i3d.pt")
    change = "metrics: [fvd]\nspec: {num_frames: 16, image_size: [32, 32]}\n"
    (here / "fvd.yaml").write_text(PROTOCOL + change)
    sides = ["--real=data/videos/val_000", "--generated=data/videos/heldout_000"]
    main(["evaluate", *sides, "--protocol=fvd.yaml", "--out=fvd", "--num-workers=0"])
    report = json.loads((here / "fvd/report.json").read_text())
    distance, floor = (report["scores"]["fvd"][level]["fvd"] for level in ("generated", "real"))
    assert distance["low"] <= distance["value"] <= distance["high"]
    assert floor["value"] > 0
    assert report["settings"]["networks"]["fvd"]["weights"].startswith("sha256:")


@pytest.mark.slow
@pytest.mark.ddp
def test_two_processes_share_the_work_and_find_the_same(here):
    main(command(here / "one"))
    # three batches of each process: the same six clips
    both = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=1"]
    words = command(here / "two", *both)
    subprocess.run(
        [sys.executable, "-m", "cmdvid", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(here / "other")},
        check=True, timeout=300, capture_output=True,
    )  # fmt: skip
    one, two = (json.loads((here / x / "report.json").read_text()) for x in ("one", "two"))
    for level, found in one["scores"]["seen"].items():
        for score, interval in found.items():
            assert two["scores"]["seen"][level][score]["value"] == pytest.approx(
                interval["value"], rel=1e-4, abs=1e-4
            )
    names = [sorted(p.name for p in (here / x).rglob("0*.npz")) for x in ("one", "two")]
    assert names[0] == names[1]
