"""Every config that is shipped: it parses, and what it names exists and is called as it wants."""

from pathlib import Path

import pytest
import yaml

from cmdvid.__main__ import main
from cmdvid.profile_command import build, read

CONFIGS = Path(__file__).parents[1] / "configs"
STAGES = {
    "ae": "AutoencoderStage",
    "content": "ContentStage",
    "motion": "MotionStage",
    "generate": "GenerationStage",
}
RUNS = sorted(CONFIGS.glob("*.yaml"))
CLUSTER = [CONFIGS / f"cluster/{name}.yaml" for name in ("ddp", "fsdp", "single24gb")]
OVERLAYS = sorted(CONFIGS.glob("demo_fast/*.yaml"))


def parsed(capsys, *configs):
    """Give the settings as the command line understands them, without building anything."""
    verb = "test" if configs[0].stem.startswith("generate") else "fit"
    args = [part for config in configs for part in ("--config", str(config))]
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main([verb, *args, "--print_config"])
    assert exit_.value.code == 0, capsys.readouterr().err
    return yaml.safe_load(capsys.readouterr().out)


def test_every_stage_has_configs():
    assert {path.stem.split("_")[0] for path in RUNS} == set(STAGES)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_config_parses_and_says_its_stage(path, capsys, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    settings = parsed(capsys, path)
    stage = STAGES[path.stem.split("_")[0]]
    assert settings["model"]["class_path"].rsplit(".", 1)[1] == stage
    assert settings["trainer"]["use_distributed_sampler"] is False  # our samplers do it
    data = settings["data"]
    assert data["test"] if stage == "GenerationStage" else data["train"] or data["latents"]


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.stem)
def test_an_overlay_changes_its_config_and_nothing_is_lost(path, capsys, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    base = parsed(capsys, CONFIGS / path.name)
    fast = parsed(capsys, CONFIGS / path.name, path)
    assert fast != base
    assert fast["model"]["class_path"] == base["model"]["class_path"]
    assert set(fast["model"]["init_args"]) == set(base["model"]["init_args"])


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_the_networks_of_a_config_can_be_built(path, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    stage = build(read(str(path)))
    assert all(p.is_meta for p in stage.parameters())
    assert stage.part in path.stem if hasattr(stage, "part") else True


@pytest.mark.parametrize(
    "path", [path for path in RUNS if "webvid" in path.stem], ids=lambda path: path.stem
)
def test_a_step_on_webvid_has_the_papers_number_of_clips(path, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    settings = read(str(path))
    stage, trainer = path.stem.split("_")[0], settings.trainer
    if stage != "generate":
        clips = trainer.devices * settings.data.batch_size * trainer.accumulate_grad_batches
        assert clips == (24 if stage == "ae" else 256)  # Tables 5-7
        assert trainer.precision == "bf16-mixed"


@pytest.mark.parametrize("overlay", CLUSTER, ids=lambda path: path.stem)
@pytest.mark.parametrize("stage", ["ae_ucf101", "content_webvid", "motion_ucf101"])
def test_a_strategy_overlays_any_training(stage, overlay, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    path = CONFIGS / f"{stage}.yaml"
    base, changed = read(str(path)), read(str(path), ["--config", str(overlay)])
    wanted = yaml.safe_load(overlay.read_text())["trainer"]
    plain = {key: value for key, value in wanted.items() if not isinstance(value, dict)}
    assert {key: changed.trainer[key] for key in plain} == plain
    assert changed.model.class_path == base.model.class_path
    assert set(changed.model.init_args.keys()) == set(base.model.init_args.keys())
    assert changed.trainer.accumulate_grad_batches == base.trainer.accumulate_grad_batches
    build(changed)
