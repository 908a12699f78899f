import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
)
from lightning.pytorch import LightningDataModule, Trainer
from PIL import Image
from torch.utils.data import DataLoader

from cmdvid.__main__ import main
from cmdvid.callbacks import ClipWriter
from cmdvid.data.captions import write_caption
from cmdvid.data.scene import ShapeAttributes, render
from cmdvid.metrics.shapes import ShapesAccuracy
from cmdvid.models.autoencoder import Autoencoder
from cmdvid.models.codecs import PixelCodec
from cmdvid.models.conditioning import TextConditioner
from cmdvid.models.content_dit import ContentDiT
from cmdvid.models.motion_dit import MotionDiT
from cmdvid.models.schedule import described
from cmdvid.pipeline import CMDPipeline
from cmdvid.stages.generation import GenerationStage, sample_generators
from cmdvid.types import ClipBatch, PromptBatch

SOURCE = Path(__file__).parents[2] / "src"
H, W, L = 24, 32, 2
SCENES = [
    ShapeAttributes("circle", "red", "left", "dark"),
    ShapeAttributes("square", "blue", "right", "light"),
    ShapeAttributes("triangle", "green", "up", "grey"),
]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A tiny pipeline with random weights, also where training starts from zero."""
    torch.manual_seed(0)
    parts = {
        "autoencoder": Autoencoder(width=16, depth=1, num_heads=2, patch=4, motion_channels=2),
        "codec": PixelCodec(),
        "content_denoiser": ContentDiT(width=16, depth=1, num_heads=2, patch=4, condition_dim=8),
        "content_conditioner": TextConditioner(width=8, num_layers=1, num_heads=2),
        "motion_denoiser": MotionDiT(2, width=16, depth=1, num_heads=2, condition_dim=8),
        "motion_conditioner": TextConditioner(width=8, num_layers=1, num_heads=2),
    }
    for part in parts.values():
        for parameter in part.parameters():
            if parameter.abs().sum() == 0:
                torch.nn.init.normal_(parameter, std=0.2)
        part.eval()
    folder = tmp_path_factory.mktemp("runs") / "pipeline"
    CMDPipeline(
        **parts,
        content_scheduler=DDIMScheduler(clip_sample=False),
        motion_scheduler=DDIMScheduler(clip_sample=False),
        content_shape=(3, H, W),
        motion_shape=(2, L, H // 4 + W // 4),
    ).save_pretrained(folder)
    return str(folder)


def clips(num, seed=0):
    rng = np.random.default_rng(seed)
    scenes = [SCENES[i % 3] for i in range(num)]
    return [
        ClipBatch(
            render(scene, seed=i, num_frames=L, image_size=(H, W)).float() / 127.5 - 1,
            write_caption(scene, rng),
            i,
        )
        for i, scene in enumerate(scenes)
    ]


class Data(LightningDataModule):
    def __init__(self, test=None, predict=None, batch_size=3):
        super().__init__()
        self.test, self.predict, self.batch_size = test or {}, predict, batch_size

    @property
    def test_names(self):
        return list(self.test)

    def test_dataloader(self):
        return [DataLoader(x, batch_size=self.batch_size) for x in self.test.values()]

    def predict_dataloader(self):
        return DataLoader(self.predict, batch_size=self.batch_size)


def trainer(folder, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=folder, logger=False, **quiet, **options)


def stage(pipeline, **options):
    return GenerationStage(pipeline, num_inference_steps=2, guidance_scale=2.0, **options)


@pytest.mark.parametrize(("given", "used"), [(None, 2.0), (0.0, 0.0), (3.0, 3.0)])
def test_the_motion_models_guidance_is_the_content_models_only_if_none_is_given(given, used):
    stage = GenerationStage("unread", guidance_scale=2.0, motion_guidance_scale=given)
    assert stage.sampling["motion_guidance_scale"] == used


def predict(pipeline, folder, items, batch_size, **options):
    data = Data(predict=items, batch_size=batch_size)
    found = trainer(folder).predict(stage(pipeline, **options), data)
    return [torch.cat([getattr(batch, name) for batch in found]) for name in ("clip", "content")]


def test_predict_gives_clips_for_prompts_and_for_clips(pipeline, tmp_path):
    prompts = [PromptBatch("a red circle", 0), PromptBatch("a blue square", 1)]
    clip, content = predict(pipeline, tmp_path, prompts, 2)
    assert (clip.shape, content.shape) == ((2, 3, L, H, W), (2, 3, H, W))
    assert -1 <= clip.min() < clip.max() <= 1
    (batch,) = trainer(tmp_path).predict(stage(pipeline), Data(predict=clips(2)))
    assert torch.equal(batch.real, torch.stack([c.clip for c in clips(2)]))
    assert list(batch.condition) == [c.condition for c in clips(2)]


def test_a_sample_does_not_depend_on_its_batch(pipeline, tmp_path):
    prompts = [PromptBatch(f"prompt {i}", i) for i in range(5)]
    together = predict(pipeline, tmp_path, prompts, 5)
    apart = predict(pipeline, tmp_path, prompts[::-1], 2)
    for x, y in zip(together, apart, strict=True):
        torch.testing.assert_close(x, y.flip(0), atol=1e-5, rtol=0)


def test_seed_and_row_both_change_the_noise(pipeline, tmp_path):
    same = [PromptBatch("a red circle", i) for i in range(2)]
    clip, _ = predict(pipeline, tmp_path, same, 2)
    other, _ = predict(pipeline, tmp_path, same, 2, seed=1)
    assert not torch.allclose(clip[0], clip[1], atol=1e-2)
    assert not torch.allclose(clip, other, atol=1e-2)
    draws = [
        torch.rand(1, generator=g) for s in (0, 1) for g in sample_generators(s, torch.arange(9))
    ]
    assert len(set(map(float, draws))) == 18  # (0, 1) and (1, 0) are not mixed up


def test_predict_and_the_writer_make_files(pipeline, tmp_path):
    data = Data(predict=[PromptBatch("a red circle", 0), PromptBatch("a blue/square", 1)])
    writer = ClipWriter(str(tmp_path / "out"))
    trainer(tmp_path, callbacks=[writer]).predict(stage(pipeline), data, return_predictions=False)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"000000-a-red-circle.mp4", "000001-a-blue-square.mp4", "contact_sheet.png"} <= names


@pytest.fixture(scope="module")
def evaluated(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    data = Data(test={"seen": clips(5), "held-out": clips(3, seed=1)})
    trainer(folder).test(stage(pipeline, judge=ShapesAccuracy()), data, verbose=False)
    return folder / "eval"


def test_test_reports_every_level_of_every_set(evaluated):
    report = json.loads((evaluated / "report.json").read_text())
    assert list(report["scores"]) == ["seen", "held-out"]
    levels = report["scores"]["seen"]
    assert list(levels) == ["real", "reconstruction", "motion given content", "generated"]
    assert levels["real"]["all"]["value"] == 1.0
    assert levels["real"]["all"]["n"] == 5
    assert levels["generated"]["strict"]["value"] < 1  # random weights draw no shapes
    assert {"psnr", "ssim", "psnr_mean_frame"} <= levels["reconstruction"].keys()
    assert report["scores"]["held-out"]["reconstruction"]["psnr"]["n"] == 3
    assert report["settings"]["num_inference_steps"] == 2
    assert report["settings"]["clips"] == {"seen": 5, "held-out": 3}
    assert report["settings"]["judge"] == "ShapesAccuracy"
    assert "| held-out | generated " in (evaluated / "report.md").read_text()


def test_test_draws_a_sheet_for_each_set_and_a_page(evaluated):
    names = {path.name for path in evaluated.iterdir()}
    sheets = {
        f"contact_sheet-{name}.{kind}" for name in ("held-out", "seen") for kind in ("mp4", "png")
    }
    assert names > sheets | {"report.json", "report.md", "report.html"}
    page = (evaluated / "report.html").read_text()
    assert page.count("<video") == 8 * 4  # samples and levels
    assert list(evaluated.glob("events*"))
    with Image.open(evaluated / "contact_sheet-seen.png") as sheet:
        assert sheet.height > 4 * 96  # four rows


@pytest.fixture
def made(monkeypatch) -> list[int]:
    """The index of each sample that is generated from now on."""
    made = []
    generate = GenerationStage._generate

    def counted(self, batch, **options):
        made.extend(torch.as_tensor(batch.index).tolist())
        return generate(self, batch, **options)

    monkeypatch.setattr(GenerationStage, "_generate", counted)
    return made


def test_what_was_generated_is_never_generated_again(pipeline, tmp_path, made):

    def run(**options):
        made.clear()
        one = stage(pipeline, judge=ShapesAccuracy(), **options)
        data = Data(test={"seen": clips(5)}, batch_size=2)
        trainer(tmp_path).test(one, data, verbose=False)
        return json.loads((tmp_path / "eval" / "report.json").read_text())["scores"]

    first = run()
    assert sorted(made) == sorted([*range(5)] * 2)  # with and without content
    (lost,) = tmp_path.glob("eval/clips-*/seen/generated/000003-*")
    lost.unlink()  # as a kill leaves it
    assert run() == first
    assert made == [3, 3]
    run(seed=1)
    assert len(made) == 10


def test_without_a_judge_only_reconstruction_is_scored(pipeline, tmp_path, capsys):
    data = Data(test={"val": clips(18)}, batch_size=6)
    report = tmp_path / "elsewhere"
    trainer(tmp_path).test(stage(pipeline, report=str(report)), data, verbose=False)
    scores = json.loads((report / "report.json").read_text())["scores"]
    assert list(scores["val"]) == ["reconstruction"]
    assert scores["val"]["reconstruction"]["psnr"]["n"] == 18
    assert (report / "contact_sheet-val.mp4").is_file()
    printed = capsys.readouterr().out
    assert "mean-frame PSNR" in printed
    assert str(report / "report.md") in printed


def test_loaders_without_a_data_module_are_called_val(pipeline, tmp_path):
    trainer(tmp_path).test(stage(pipeline), DataLoader(clips(2), batch_size=2), verbose=False)
    assert list(json.loads((tmp_path / "eval/report.json").read_text())["scores"]) == ["val"]
    with pytest.raises(ValueError, match="2 test sets need 2 names, got val"):
        trainer(tmp_path).test(stage(pipeline), [DataLoader(clips(2), batch_size=2)] * 2)


def picture(path):
    with Image.open(path) as image:
        return np.asarray(image, dtype=int)


TWO_PROCESSES = """
import sys
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader
from cmdvid.callbacks import ClipWriter
from cmdvid.data.dataset import ClipSampler
from cmdvid.stages.generation import GenerationStage
from cmdvid.types import ClipBatch, PromptBatch

class Data(LightningDataModule):
    def loader(self, items):
        rank, num = self.trainer.global_rank, self.trainer.world_size
        sampler = ClipSampler(items, even=False, rank=rank, world_size=num)
        keyed = {(0, i): item for i, item in enumerate(items)}
        return DataLoader(keyed, batch_size=2, sampler=sampler)
    def predict_dataloader(self):
        return self.loader([PromptBatch(f"prompt {i}", i) for i in range(5)])
    def test_dataloader(self):
        torch.manual_seed(0)
        clips = torch.rand(5, 3, 2, 24, 32) * 2 - 1
        return self.loader([ClipBatch(clip, "a clip", i) for i, clip in enumerate(clips)])

torch.set_num_threads(1)
pipeline, folder, devices = sys.argv[1:]
stage = GenerationStage(pipeline, num_inference_steps=1)
options = {"accelerator": "cpu", "devices": int(devices), "logger": False,
           "strategy": "ddp" if devices != "1" else "auto", "use_distributed_sampler": False,
           "default_root_dir": folder, "enable_progress_bar": False}
Trainer(**options, callbacks=[ClipWriter(folder + "/out")]).predict(
    stage, Data(), return_predictions=False)
Trainer(**options).test(stage, Data(), verbose=False)
"""


@pytest.mark.slow
@pytest.mark.ddp
def test_two_processes_write_and_report_what_one_does(pipeline, tmp_path):
    runs = [tmp_path / "one", tmp_path / "two"]
    for num, folder in enumerate(runs, start=1):
        script = tmp_path / "run.py"
        script.write_text(TWO_PROCESSES)
        command = [sys.executable, str(script), pipeline, str(folder), str(num)]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(SOURCE)})
    names = [sorted(path.name for path in (folder / "out").iterdir()) for folder in runs]
    assert names[0] == names[1]
    assert len(names[0]) == 5 * 3 + 3  # the sheets, and what made them all
    for name in ("out/contact_sheet.png", "out/000003-prompt-3-content.png"):
        pixels = [picture(folder / name) for folder in runs]
        assert np.abs(pixels[0] - pixels[1]).max() <= 1
    one, two = (json.loads((f / "eval/report.json").read_text())["scores"] for f in runs)
    for score in ("psnr", "ssim", "psnr_mean_frame"):
        found = [list(x["val"]["reconstruction"][score].values()) for x in (one, two)]
        assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
        assert found[1][3] == found[0][3] == 5


def test_a_scheduler_samples_both_models_on_their_own_noise_schedules(pipeline, tmp_path):
    pipe = CMDPipeline.from_pretrained(pipeline)
    pipe.content_scheduler = DDIMScheduler(
        prediction_type="sample", beta_end=0.01, rescale_betas_zero_snr=True, clip_sample=False
    )
    pipe.save_pretrained(tmp_path)
    model = stage(str(tmp_path), scheduler=DPMSolverMultistepScheduler(solver_order=3))
    model.setup("predict")
    for name, kind in (("content_scheduler", "sample"), ("motion_scheduler", "epsilon")):
        sampler, trained = getattr(model.pipe, name), getattr(pipe, name)
        assert isinstance(sampler, DPMSolverMultistepScheduler)
        assert (sampler.config.prediction_type, sampler.config.solver_order) == (kind, 3)
        torch.testing.assert_close(
            sampler.alphas_cumprod, trained.alphas_cumprod, atol=1e-6, rtol=1e-5
        )
    assert described(model.scheduler) == "DPMSolverMultistepScheduler(solver_order=3)"
    for scheduler, message in (
        (DPMSolverMultistepScheduler(thresholding=True), "scheduler.thresholding of the DPM"),
        (HeunDiscreteScheduler(), "Heun.* cannot follow the noise schedule of DDIMScheduler"),
        (FlowMatchEulerDiscreteScheduler(), "FlowMatch.* has no alphas_cumprod"),
        (DDIMScheduler(beta_end=0.1), "DDIMScheduler sets beta_end, which the model was trained"),
    ):
        with pytest.raises(ValueError, match=message):
            stage(str(tmp_path), scheduler=scheduler).setup("predict")


def test_predict_takes_any_scheduler_by_its_class_path(pipeline, tmp_path):
    command = ["predict", "--ckpt", pipeline, "--prompt", "a red circle", "--trainer.accelerator"]
    command += ["cpu", "--num_inference_steps", "2", "--trainer.enable_progress_bar", "false"]
    main([*command, "--out", str(tmp_path / "own")])
    chosen = ["--model.scheduler", "diffusers.DPMSolverMultistepScheduler"]
    main([*command, *chosen, "--out", str(tmp_path / "chosen")])
    name = "000000-a-red-circle-content.png"
    own, other = (picture(tmp_path / folder / name) for folder in ("own", "chosen"))
    assert np.abs(own - other).max() > 1


def test_errors_say_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="seed must be 0 or more, got -1"):
        GenerationStage("runs/pipeline", seed=-1)
    assert stage("runs/pipeline", motion_inference_steps=0).sampling["motion_inference_steps"] == 0
    missing = str(tmp_path / "none")
    with pytest.raises(ValueError, match=r"none: no pipeline could be loaded.*cmdvid export"):
        trainer(tmp_path).predict(stage(missing), Data(predict=[PromptBatch("a", 0)]))


def test_the_pipeline_stays_out_of_state_dict(pipeline):
    model = stage(pipeline)
    model.setup("predict")
    assert not model.state_dict()
    assert not list(model.parameters())


def test_an_interrupted_generation_goes_on_with_what_lacks(pipeline, tmp_path, made):
    out = tmp_path / "out"

    def run(seed=0, last="end"):
        made.clear()
        prompts = [
            PromptBatch(f"a prompt {'x' * 90} {last if i == 19 else i}", i) for i in range(20)
        ]
        writer = ClipWriter(str(out))
        options = {"callbacks": [writer], "logger": False, "accelerator": "cpu"}
        quiet = {"enable_progress_bar": False, "default_root_dir": tmp_path}
        model = GenerationStage(pipeline, num_inference_steps=1, seed=seed)
        data = Data(predict=prompts, batch_size=3)
        Trainer(**options, **quiet).predict(model, data, return_predictions=False)
        return {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}

    first = run()
    assert made == list(range(20))
    next(out.glob("000018-*.mp4")).unlink()  # as a kill leaves it
    assert run() == first
    assert made == [*range(16), 18]  # the sheet shows the first
    run(last="other end")  # names have no room for the difference
    assert 19 in made
    run(seed=1)
    assert made == list(range(20))
    run(seed=1)  # what is there may be of either seed: nobody knows
    assert made == list(range(20))
