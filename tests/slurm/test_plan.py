"""What `cmdvid slurm` prints and refuses, on a machine without Slurm."""

import re
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from cmdvid.__main__ import main
from cmdvid.slurm.cluster import Cluster, read_cluster
from cmdvid.slurm.job import Job

CONFIGS = Path(__file__).parents[2] / "configs"
DRY = ["--dry-run"]


@pytest.fixture(autouse=True)
def _no_slurm(monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin/does-not-exist")


def printed(capsys, *words: str) -> str:
    capsys.readouterr()
    main(["slurm", *words])
    return capsys.readouterr().out


def refused(capsys, *words: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main(["slurm", *words])
    assert exit_.value.code == 2
    return capsys.readouterr().err


def test_a_script_says_where_what_and_how_often(project, capsys):
    words = ["--nodes", "2", "--trainer.devices", "8", "--trainer.accelerator", "gpu"]
    text = printed(capsys, "fit", "--config", "ae.yaml", *DRY, *words, "--time", "3:00:00")
    for line in (
        "--job-name=fit-ae",
        "--nodes=2",
        "--ntasks-per-node=8",
        "--time=3:00:00",
        "--gpus-per-node=8",
        "--signal=USR1@120",
        "--requeue",
    ):
        assert f"#SBATCH {line}\n" in text
    assert "fit --config ae.yaml" in text
    assert "last=run/last.ckpt" in text
    assert subprocess.run(["/bin/bash", "-n"], input=text, text=True, check=False).returncode == 0
    assert not Path("runs").exists()


def test_what_begins_anew_is_not_told_to_stop(project, capsys):
    text = printed(capsys, "validate", "--config", "ae.yaml", *DRY)
    assert "--signal" not in text
    assert "last=''" in text
    assert "growing=()" in text


def test_an_encoding_is_told_to_stop_and_goes_on_in_its_folder(project, capsys):
    words = ["encode", "--config", "ae.yaml", "--frames_only", "true", "--out", "my frames", *DRY]
    text = printed(capsys, *words)
    assert "#SBATCH --signal=USR1@120\n" in text
    assert "growing=('my frames/train' 'my frames/val')" in text
    message = refused(capsys, *words, "--overwrite", "true")
    assert "remove my frames yourself" in message


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["fit", "--config", "no.yaml"], "no.yaml"),
        (["fit", "--config", "ae.yaml", "--ckpt", "no.ckpt"], "--ckpt: no.ckpt"),
        (["fit", "--config", "ae.yaml", "--data.batch_size", "two"], "data.batch_size"),
        (["fit", "--config", "ae.yaml", "--data.val.csv", "no.csv"], "data.val.csv: no.csv"),
        (["fit", "--config", "ae.yaml", "--trainer.callbacks", "null"], "needs a ModelCheckpoint"),
        (["fit", "--config", "ae.yaml", "--trainer.devices", "-1"], "trainer.devices"),
        (["fit", "--config", "ae.yaml", "--name", "bash"], "must not be named 'bash'"),
        (["fit", "--config", "ae.yaml", "--cluster", "no.yaml"], "no.yaml: no such file"),
        (["fit", "--config", "ae.yaml", "--seeds", "0-3"], "no other verb takes them"),
        (["fit", "--config", "ae.yaml", "--content", "x.yaml"], "--content: only pipeline"),
        (["fit"], "no stage"),
        (["encode", "--ckpt", "no.ckpt"], "no.ckpt"),
        (["train"], "invalid choice"),
        (["pipeline", "--autoencoder", "ae.yaml"], "--content"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else None,
)
def test_what_would_fail_on_the_cluster_is_refused_here(project, capsys, words, says):
    assert says in refused(capsys, *words, *DRY)


def test_a_folder_with_a_training_is_not_written_over(project, capsys):
    Path("run").mkdir()
    torch.save({"config": {}}, "run/last.ckpt")
    assert "run/last.ckpt: holds a training" in refused(capsys, "fit", "--config", "ae.yaml", *DRY)
    printed(capsys, "fit", "--config", "ae.yaml", "--ckpt", "run/last.ckpt", *DRY)


def test_without_slurm_nothing_is_submitted(project, capsys):
    assert "login node" in refused(capsys, "fit", "--config", "ae.yaml")


def test_each_setting_of_a_cluster_has_its_place():
    settings = yaml.safe_load((CONFIGS / "cluster/slurm.yaml").read_text())
    assert Cluster(**settings) == Cluster(environment={"HF_HUB_OFFLINE": "1"})
    cluster = Cluster(
        partition="a100",
        account="me",
        gpus="--gres=gpu:a100:$devices",
        sbatch={"qos": "long"},
        modules=["cuda/12"],
        environment={"A": "b c"},
        setup=["ulimit -n 4096"],
    )
    text = Job("x", ("test",), devices=4).script(cluster)
    for line in ("--partition=a100", "--account=me", "--gres=gpu:a100:4", "--qos=long"):
        assert f"#SBATCH {line}\n" in text
    assert "module load cuda/12\nexport A='b c'\nulimit -n 4096\n" in text
    assert "--gres" not in Job("x", ("export",), gpus=False).script(cluster)


def test_a_container_changes_only_what_stands_before_the_command():
    scripts = [
        Job("x", ("test", "--config", "a b.yaml")).script(Cluster(container=c, mounts=["/data"]))
        for c in ("none", "apptainer:/img.sif", "pyxis:/img.sqsh")
    ]
    lines = [re.findall(r"^srun .*$", script, re.MULTILINE)[0] for script in scripts]
    for line in lines:
        assert line.endswith("""test --config 'a b.yaml' "${resume[@]}\"""")
    assert 'apptainer exec --nv --bind "$PWD",/data --pwd "$PWD" /img.sif cmdvid' in lines[1]
    assert "--container-image=/img.sqsh" in lines[2]
    assert '--container-mounts="$PWD:$PWD",/data:/data' in lines[2]
    assert len({script.replace(line, "") for script, line in zip(scripts, lines, strict=True)}) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("partition: [a]", "partition"),
        ("partitions: a", "partitions"),
        ("container: docker:x", "pyxis:IMAGE"),
        ("warning: -1", "warning must be at least 0"),
    ],
)
def test_a_wrong_cluster_is_told_by_file_and_key(tmp_path, text, says):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"{file}: .*{says}"):
        read_cluster(str(file))


SHAPES = {"autoencoder": "ae", "content": "content", "motion": "motion", "generate": "generate"}
PIPELINE = [w for p, f in SHAPES.items() for w in (f"--{p}", str(CONFIGS / f"{f}_shapes.yaml"))]


@pytest.fixture
def shapes(tmp_path, monkeypatch):
    """The files that the shapes configs read, empty."""
    monkeypatch.chdir(tmp_path)
    Path("runs/demo/data").mkdir(parents=True)
    for split in ("train", "val", "heldout"):
        Path(f"runs/demo/data/{split}.csv").touch()
    Path("prompts.txt").write_text("a red circle\na blue square\n")


def test_a_pipeline_is_all_stages_in_order(shapes, capsys):
    seeds = ["--prompts", "prompts.txt", "--seeds", "0-3"]
    text = printed(capsys, "pipeline", *PIPELINE, *DRY, *seeds, "--nodes", "2")
    heads = re.findall(r"^# (\S+?)(?:, after (.*))?$", text, re.MULTILINE)
    trained = "fit-content_shapes, fit-motion_shapes"
    assert heads == [
        ("fit-ae_shapes", ""),
        ("encode", "fit-ae_shapes"),
        ("fit-content_shapes", "encode"),
        ("fit-motion_shapes", "encode"),
        ("export", trained),
        ("test-generate_shapes", "export"),
        ("predict-generate_shapes", "export"),
    ]
    assert "encode --ckpt runs/demo/autoencoder/last.ckpt --out runs/demo/latents" in text
    assert "#SBATCH --array=0-3\n" in text
    assert text.count("#SBATCH --nodes=2\n") == 4  # the trainings and encode


def test_stages_that_do_not_fit_together_are_refused(shapes, capsys):
    words = [word.replace("content_shapes", "content_ucf101") for word in PIPELINE]
    message = refused(capsys, "pipeline", *words, *DRY)
    assert "content: model.autoencoder_ckpt is runs/ucf101/autoencoder/last.ckpt" in message
    Path("runs/demo/latents").mkdir()
    assert "runs/demo/latents exists already" in refused(capsys, "pipeline", *PIPELINE, *DRY)
