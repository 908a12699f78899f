"""What `cmdvid slurm` prints and refuses, on a machine without Slurm."""

import re
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from cmdvid.__main__ import main
from cmdvid.settings import option
from cmdvid.slurm.cluster import Cluster, read_cluster
from cmdvid.slurm.job import Job

CONFIGS = Path(__file__).parents[2] / "configs"
DRY = ["--dry-run"]
FIT = ["fit", "--config", "ae.yaml"]
GPU = [*FIT, "--trainer.accelerator", "gpu"]
SHARDS = ["--data.train", "cmdvid.data.shards.Shards", "--data.train.urls"]
SAMPLE = ["--data.train", "cmdvid.data.sampling.Sample", "--data.train.num"]
MSRVTT = '{"class_path": "cmdvid.data.msrvtt.MSRVTT", "init_args": {"captions": "no.csv"}}'
TEST = ["test", "--model", "GenerationStage", "--model.pipeline", "data"]
MEASURE = ["--model.evaluation.protocol"]
I3D = ["--model.evaluation.weights.i3d", "no-i3d.pt"]


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
        ([*GPU, "--trainer.devices", "auto"], "trainer.devices is auto"),
        ([*FIT, "--trainer.callbacks.save_last", "link"], "save_last: true"),
        ([*FIT, *SHARDS, "no/shards"], "data.train.urls: no/shards"),
        ([*FIT, *SHARDS, "no/{000..009}.tar"], "data.train.urls: no"),
        ([*FIT, *SAMPLE, "3", "--data.train.index", MSRVTT], "data.train.index.captions: no.csv"),
        ([*TEST, "--model.lpips", "no.pt"], "model.lpips: no.pt"),
        ([*TEST, *MEASURE, "ucf101-2048", *I3D], "model.evaluation.weights.i3d: no-i3d.pt"),
        ([*TEST, *MEASURE, "no.yaml"], "no.yaml: no such protocol"),
        ([*FIT, "--resume"], "--resume: only pipeline"),
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
    assert "module load cuda/12 || exit 1\nexport A='b c'\nulimit -n 4096\n" in text
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
        ("gpus: --gres=gpu:$N", "only `devices` may stand"),
        ("just words", "key: value"),
        ("sbatch: {", "flow"),
    ],
)
def test_a_wrong_cluster_is_told_by_file_and_key(tmp_path, text, says):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"{file}: .*{says}"):
        read_cluster(str(file))


def test_a_cluster_is_read_as_it_is_written(tmp_path):
    """YAML would make seconds of a time and a number of an account."""
    file = tmp_path / "mine.yaml"
    file.write_text("# nothing yet\n")
    assert read_cluster(str(file)) == Cluster()
    lines = ["time: 12:00:00", "account: 0123", "gpus: null", "partition:", "modules: [1.10]"]
    lines += ["sbatch: {begin: 16:00, exclusive: true, hold: , comment: a b}", "max_restarts: 7"]
    file.write_text("\n".join([*lines, "environment: {N: 010}"]))
    cluster = read_cluster(str(file))
    assert (cluster.time, cluster.account, cluster.max_restarts) == ("12:00:00", "0123", 7)
    text = Job("x", ("test",)).script(cluster)
    for line in ("--begin=16:00", "--exclusive", "--hold", "--comment='a b'"):
        assert f"#SBATCH {line}\n" in text
    assert "module load 1.10 || exit 1\nexport N=010\nset -u" in text
    assert "--gpus" not in text
    assert "--partition" not in text


@pytest.mark.parametrize(
    ("line", "devices"), [("gpus_per_node: 4", 4), ("gpus: null", 1)], ids=["said", "no GPUs"]
)
def test_all_devices_of_a_node_are_as_many_as_the_cluster_says(project, capsys, line, devices):
    Path("mine.yaml").write_text(line)
    words = [*GPU, "--trainer.devices", "auto", "--cluster", "mine.yaml"]
    text = printed(capsys, *words, *DRY)
    assert f"#SBATCH --ntasks-per-node={devices}\n" in text
    assert f"--trainer.devices {devices}" in text


def test_a_checkpoint_callback_may_have_another_of_its_names(project, capsys):
    text = Path("ae.yaml").read_text()
    Path("ae.yaml").write_text(text.replace("callbacks.Model", "callbacks.model_checkpoint.Model"))
    assert "last=run/last.ckpt" in printed(capsys, *FIT, *DRY)


def test_weights_that_are_fetched_are_no_files(project, capsys):
    weights = ["--model.evaluation.weights.clip", "laion2b_s34b_b79k"]
    words = [*TEST, *MEASURE, "webvid-5k", *weights, "--model.lpips", "https://host/a.pth"]
    assert "GenerationStage" in printed(capsys, *words, "--trainer.devices", "1", *DRY)


def test_a_name_may_have_blanks(project, capsys):
    Path("ae.yaml").rename("my ae.yaml")
    text = printed(capsys, "fit", "--config", "my ae.yaml", *DRY)
    assert "#SBATCH --job-name='fit-my ae'\n" in text


def test_parts_leave_out_empty_lines_of_windows(project, capsys):
    Path("prompts.txt").write_bytes(b"a red circle\r\n\r\na blue square\r\n")
    Path("pipeline").mkdir()
    Path("pipeline/model_index.json").write_text("{}")
    words = ["predict", "--ckpt", "pipeline", "--prompts", "prompts.txt", "--parts", "2"]
    text = printed(capsys, *words, "--trainer.devices", "1", *DRY)
    (line,) = re.findall(r"^(awk .*) > ", text, re.MULTILINE)
    for task, prompt in enumerate(("a red circle", "a blue square")):
        shell = f"export PATH=/usr/bin:/bin SLURM_ARRAY_TASK_ID={task}; {line}"
        assert subprocess.check_output(["/bin/bash", "-c", shell], text=True) == f"{prompt}\n"


def test_the_last_of_two_checkpoints_counts():
    assert option(["--ckpt", "old", "--ckpt_path=new"], "--ckpt", "--ckpt_path") == "new"
