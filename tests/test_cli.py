"""The command line on real files: what a verb writes, what wins, and what an error says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import Namespace

import cmdvid
from cmdvid.__main__ import VERBS, main
from cmdvid.settings import spread_options
from cmdvid.stages.networks import FrozenAutoencoder
from cmdvid.video import write_clip

CONFIG = """
model:
  class_path: AutoencoderStage
  init_args:
    autoencoder:
      class_path: cmdvid.models.autoencoder.Autoencoder
      init_args: {width: 16, depth: 1, num_heads: 2, patch: 4}
    optimizer: {class_path: torch.optim.Adam, init_args: {lr: 1e-3}}
    statistics_clips: 4
data:
  train: {class_path: cmdvid.data.index.WebVid, init_args: {csv: data/train.csv}}
  val: {class_path: cmdvid.data.index.WebVid, init_args: {csv: data/val.csv}}
  spec: {num_frames: 4, image_size: [24, 32]}
  batch_size: 2
  num_workers: 0
trainer:
  max_steps: 2
  accelerator: cpu
  devices: 1
  enable_progress_bar: false
  enable_model_summary: false
  num_sanity_val_steps: 0
  default_root_dir: run
  log_every_n_steps: 1
  logger:
    class_path: lightning.pytorch.loggers.CSVLogger
    init_args: {save_dir: run, name: "", version: ""}
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {dirpath: run, save_last: true}
"""
CPU = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a small data set, ae.yaml and a trained autoencoder in run/last.ckpt."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        counts = ["--num-videos=4", "--val-videos=2", "--heldout_videos=1"]
        main(["shapes", "--out", "data", *counts, "--num-frames=4", "--image-size=[24,32]"])
        Path("ae.yaml").write_text(CONFIG)
        main(["fit", "--config", "ae.yaml"])
    return folder


@pytest.fixture
def here(project, monkeypatch):
    monkeypatch.chdir(project)
    return project


def error_of(args, capsys):
    """Run a wrong command line and give the one line that it prints."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main(args)
    assert exit_.value.code == 2
    lines = [text for text in capsys.readouterr().err.splitlines() if "cmdvid: error: " in text]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("args", [["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)])
def test_help_imports_nothing_heavy(args):
    code = f"""
import sys
from cmdvid.__main__ import main
main({args})
assert not {{"torch", "lightning", "jsonargparse", "numpy", "av"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_help_lists_every_verb(capsys):
    main([])
    text = capsys.readouterr().out
    assert all(re.search(rf"^  {verb} ", text, re.MULTILINE) for verb in VERBS)
    main(["--version"])
    assert cmdvid.__version__ in capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS)
def test_the_short_help_names_real_options(verb, capsys):
    promised = set(re.findall(r"--[a-z_-]+(?![a-z_.-])", VERBS[verb][1])) - {"--model.help"}
    promised = {"--" + name[2:].replace("-", "_") for name in promised}
    with pytest.raises(SystemExit) as exit_:
        main([verb, "--help-all"])
    assert exit_.value.code == 0
    offered = set(re.findall(r"--[a-z_.]+", capsys.readouterr().out))
    assert promised <= offered | {"--model", "--data", "--trainer"}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_fails_with_a_code_that_a_job_can_see(verb, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([verb, "--no-such-option", "1"])
    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith("cmdvid: error: ")


def test_a_training_without_a_terminal_has_lines_in_place_of_a_bar(here, tmp_path, capsys):
    words = ["--trainer.logger=false", f"--trainer.callbacks.dirpath={tmp_path}"]
    main(["fit", "--config", "ae.yaml", f"--trainer.default_root_dir={tmp_path}", *words])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.partition(",")[0] for line in lines] == ["step 1/2", "step 2/2"]


def test_fit_leaves_a_checkpoint_and_its_settings(here):
    assert yaml.safe_load(Path("run/config.fit.yaml").read_text())["data"]["batch_size"] == 2
    settings = torch.load("run/last.ckpt")["config"]
    assert settings["model"]["init_args"]["autoencoder"]["init_args"]["width"] == 16
    assert settings["data"]["spec"]["image_size"] == [24, 32]


def test_a_checkpoint_is_all_that_predict_needs(here, tmp_path):
    out = tmp_path / "out"
    main(["predict", "--ckpt", "run/last.ckpt", "--out", str(out), *CPU])
    assert len(list(out.glob("00*.mp4"))) == 2
    used = yaml.safe_load((out / "config.predict.yaml").read_text())
    assert used["model"]["class_path"] == "cmdvid.stages.AutoencoderStage"
    assert used["data"]["train"] is None  # need not be on this machine


def test_what_the_user_says_beats_the_checkpoint(here, tmp_path):
    out = tmp_path / "out"
    more = ["--data.batch_size=1", "--data.spec.num_frames=3"]
    main(["predict", "--ckpt_path=run/last.ckpt", "--out", str(out), *more, *CPU])
    data = yaml.safe_load((out / "config.predict.yaml").read_text())["data"]
    assert data["batch_size"] == 1
    spec = {"num_frames": 3, "image_size": [24, 32], "stride": 1, "fps": None}
    assert data["spec"] == spec | {"repeat_last": False}


def test_other_verbs_keep_the_training_config(here):
    before = Path("run/config.fit.yaml").read_text()
    main(["validate", "--config", "ae.yaml", "--ckpt", "run/last.ckpt"])
    assert Path("run/config.validate.yaml").is_file()
    assert Path("run/config.fit.yaml").read_text() == before


def test_encode_counts_bad_files_and_needs_both_splits_from_the_start(
    here, tmp_path, capsys, caplog
):
    for i in range(3):
        write_clip(tmp_path / "clips" / f"{i}.mp4", torch.zeros(3, 4, 24, 32))
    (tmp_path / "clips" / "1.mp4").write_text("<html>")
    words = ["encode", "--ckpt", "run/last.ckpt", "--out", str(tmp_path / "out"), *CPU]
    folder = ["--data.train=VideoFolder", f"--data.train.root={tmp_path / 'clips'}"]
    assert "encode needs data.val" in error_of([*words, *folder, "--data.val=null"], capsys)
    assert not (tmp_path / "out").exists()
    main([*words, *folder])
    assert caplog.text.count("data.train (rank 0): 1 of 3 videos could not give a clip") == 1


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--data.strict=true", ["1.mp4: an HTML or XML page"]),
        ("--data.max_bad_fraction=0", ["1 of the", "data.max_bad_fraction (0.0)", "1.mp4: an"]),
    ],
)
def test_an_error_in_a_worker_of_the_loader_is_told_without_its_traceback(
    here, tmp_path, capsys, option, words
):
    for i in range(3):
        write_clip(tmp_path / "clips" / f"{i}.mp4", torch.zeros(3, 4, 24, 32))
    (tmp_path / "clips" / "1.mp4").write_text("<html>")
    args = ["fit", "--config=ae.yaml", "--data.train=VideoFolder", "--data.num_workers=1", option]
    args += [f"--data.train.root={tmp_path / 'clips'}", f"--trainer.callbacks.dirpath={tmp_path}"]
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main([*args, f"--trainer.logger.save_dir={tmp_path}", "--trainer.max_steps=9"])
    assert exit_.value.code == 2
    message = capsys.readouterr().err.partition("cmdvid: error: ")[2]
    assert all(word in message for word in words), message
    assert "Caught" not in message
    assert "Traceback" not in message


@pytest.mark.filterwarnings("ignore::UserWarning")  # what pytest.warns does not look for
def test_resume_goes_by_the_config_and_names_what_changed(here, tmp_path):
    again = ["fit", "--config", "ae.yaml", "--ckpt", "run/last.ckpt", "--trainer.max_steps=3"]
    elsewhere = [f"--trainer.callbacks.dirpath={tmp_path}", f"--trainer.logger.save_dir={tmp_path}"]
    with pytest.warns(UserWarning, match="other settings of: init_args.statistics_clips"):
        main([*again, "--model.statistics_clips=2", *elsewhere])
    last = torch.load(tmp_path / "last.ckpt")
    assert last["global_step"] == 3
    assert last["config"]["model"]["init_args"]["statistics_clips"] == 2


def test_an_autoencoder_interrupted_while_measuring_is_finished_by_fit(here, tmp_path):
    interrupted = torch.load("run/last.ckpt")
    assert interrupted["global_step"] == 2  # all of them
    interrupted["state_dict"]["autoencoder.measured"].fill_(False)
    interrupted["state_dict"]["autoencoder.motion_std"].fill_(1.0)
    torch.save(interrupted, tmp_path / "stopped.ckpt")
    words = ["fit", "--config", "ae.yaml", "--ckpt", str(tmp_path / "stopped.ckpt")]
    main(
        [*words, f"--trainer.callbacks.dirpath={tmp_path}", f"--trainer.logger.save_dir={tmp_path}"]
    )
    finished = FrozenAutoencoder(tmp_path / "last.ckpt").autoencoder
    assert not (finished.motion_std == 1).any()


def test_more_steps_than_the_schedule_has_are_refused_before_training(here, capsys):
    schedule = ["--model.lr_scheduler=torch.optim.lr_scheduler.OneCycleLR"]
    schedule += ["--model.lr_scheduler.max_lr=1e-3", "--model.lr_scheduler.total_steps=3"]
    line = error_of(["fit", "--config", "ae.yaml", *schedule, "--trainer.max_steps=4"], capsys)
    assert "trainer.max_steps is 4" in line
    assert "OneCycleLR) ends after its total_steps, 3" in line


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["train"], ["'train'", "fit", "shapes"]),
        (["fit"], ["required", "model", "--config FILE"]),
        (["predict"], ["required", "model", "--ckpt PATH"]),
        (["fit", "--config", "no.yaml"], ["no.yaml"]),
        (["fit", "--config", "ae.yaml", "--trainer.max_step", "3"], ["--trainer.max_step"]),
        (["fit", "--config", "ae.yaml", "--data.batch_size", "two"], ["data.batch_size", "two"]),
        (["fit", "--config", "ae.yaml", "--data.batch_size", "0"], ["batch_size", "at least 1"]),
        (["fit", "--config", "ae.yaml", "--model.lr", "1"], ["AutoencoderStage", "'lr'"]),
        (["predict", "--ckpt", "no.ckpt"], ["no.ckpt", "no such checkpoint"]),
        (["predict", "--ckpt", "ae.yaml"], ["ae.yaml", "not a checkpoint"]),
        (["predict", "--ckpt", "data"], ["data", "model_index.json", "cmdvid export"]),
        (["predict", "--ckpt", "run/last.ckpt", "--guidance_scale", "2"], ["--guidance_scale"]),
        (["shapes"], ["required", "out"]),
        (["shapes", "--out", "x", "--num-videos", "few"], ["num_videos", "few"]),
        (["shapes", "--out", "x", "--num-vid", "3"], ["--num_vid"]),
    ],
    ids=lambda value: " ".join(value[-3:]) if isinstance(value, list) else None,
)
def test_a_wrong_command_line_is_told_in_one_line(here, capsys, args, words):
    line = error_of(args, capsys)
    assert all(word in line for word in words), line
    assert "NoneType" not in line


def test_a_checkpoint_of_another_stage_cannot_be_resumed(here, tmp_path, capsys):
    other = torch.load("run/last.ckpt")
    other["config"]["model"]["class_path"] = "cmdvid.stages.MotionStage"
    torch.save(other, tmp_path / "motion.ckpt")
    args = ["fit", "--config", "ae.yaml", "--ckpt", str(tmp_path / "motion.ckpt")]
    assert "MotionStage" in error_of(args, capsys)


def test_debug_shows_the_whole_error(here, monkeypatch):
    monkeypatch.setenv("CMDVID_DEBUG", "1")
    with pytest.raises(ValueError, match="no such checkpoint"):
        main(["predict", "--ckpt", "no.ckpt"])


def predict_settings(**changes):
    flat = dict.fromkeys(
        ("prompt", "prompts", "negative_prompt", "seed", "out", "fps", "num_inference_steps")
    )
    settings = Namespace(seed_everything=42, guidance_scale=None, **flat)
    stage = {"pipeline": "p", "num_inference_steps": 50, "guidance_scale": 4.0, "seed": 0}
    settings.model = Namespace(class_path="Stage", init_args=Namespace(**stage))
    settings.data, settings.trainer = Namespace(predict=None), Namespace(callbacks=None)
    for key, value in changes.items():
        settings[key] = value
    return settings


def test_flat_options_reach_the_stage_and_the_data():
    settings = predict_settings(prompt="a ring", num_inference_steps=7, seed=3, out="there")
    spread_options(settings)
    stage = settings.model.init_args
    assert (stage.num_inference_steps, stage.guidance_scale, stage.seed) == (7, 4.0, 3)
    assert settings.seed_everything == 3
    assert settings.data.predict.class_path == "cmdvid.data.index.Prompts"
    assert settings.data.predict.init_args.prompt == "a ring"
    (writer,) = settings.trainer.callbacks
    assert writer.init_args.out == "there"


def test_a_writer_of_the_config_is_kept_unless_out_is_given():
    writer = Namespace(class_path="cmdvid.callbacks.ClipWriter", init_args=Namespace(out="mine"))
    for out, expected in ((None, "mine"), ("theirs", "theirs")):
        settings = predict_settings(out=out)
        settings.trainer.callbacks = [writer]
        spread_options(settings)
        (kept,) = settings.trainer.callbacks
        assert kept.init_args.out == expected


def test_a_stage_without_the_option_is_named():
    with pytest.raises(ValueError, match="--negative_prompt: Stage has no such setting"):
        spread_options(predict_settings(negative_prompt="blurry"))
