"""What the scripts do on a real Slurm; a stub stands in for Python, which would take seconds."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.slurm
FIT = ["fit", "--config", "ae.yaml"]


def log_of(job: str) -> str:
    """What a job has said so far."""
    return "".join(log.read_text() for log in Path("runs/slurm").glob(f"*-{job}.out"))


def test_every_node_has_a_process_for_each_device(stub, slurm, capsys):
    body = 'echo "$SLURM_PROCID $(hostname) $SLURM_NTASKS $HF_HUB_OFFLINE $CUDA_VISIBLE_DEVICES"'
    words = [*FIT, "--nodes", "2", "--trainer.devices", "2", "--trainer.accelerator", "auto"]
    settings = {"gpus": "--gpus-per-node=$devices", "environment": "{HF_HUB_OFFLINE: '1'}"}
    (job,) = stub(capsys, body, *words, **settings)
    assert slurm.wait(job) == ["COMPLETED"]
    rows = {line for line in log_of(job).splitlines() if line[0].isdigit()}
    hosts = ("node1", "node1", "node2", "node2")
    assert rows == {f"{rank} {host} 4 1 0,1" for rank, host in enumerate(hosts)}
    assert list(Path("runs/slurm").glob("fit-ae-*.sbatch"))


def test_a_stopped_training_is_requeued_and_goes_on_from_its_checkpoint(stub, slurm, capsys):
    body = """
echo "words: $*"
[ -e run/last.ckpt ] && exit 0
trap 'mkdir -p run; touch run/last.ckpt; exit 75' USR1
while :; do sleep 0.1; done"""
    (job,) = stub(capsys, body, *FIT)
    slurm.until(lambda: "words" in log_of(job))
    slurm.run("scancel", "--signal=USR1", job)
    assert slurm.wait(job) == ["COMPLETED"]
    first, second = (line for line in log_of(job).splitlines() if line.startswith("words"))
    assert "--ckpt" not in first
    assert second.endswith("--ckpt run/last.ckpt")
    assert slurm.show(job, "Restarts") == "1"


def test_a_stopped_encoding_is_requeued_and_so_is_a_killed_one_that_got_further(
    stub, slurm, capsys
):
    """Each start writes a shard; the third is killed before it has, and is not started again."""
    body = """
echo "start: $*"
shard() { mkdir -p frames/train; touch frames/train/$1; }
case ${SLURM_RESTART_COUNT:-0} in
  0) trap 'shard 0; exit 75' USR1; while :; do sleep 0.1; done;;
  1) shard 1;;
esac
kill -KILL $$"""
    words = ["encode", "--config", "ae.yaml", "--frames_only", "true", "--out", "frames"]
    (job,) = stub(capsys, body, *words)
    slurm.until(lambda: "start" in log_of(job))
    slurm.run("scancel", "--signal=USR1", job)
    assert slurm.wait(job) == ["FAILED"]
    assert slurm.show(job, "Restarts") == "2"
    starts = {line for line in log_of(job).splitlines() if line.startswith("start")}
    assert len(starts) == 1  # the same command line each time
    assert "--ckpt" not in starts.pop()


def test_a_job_is_not_started_again_for_ever(stub, slurm, capsys):
    (job,) = stub(capsys, "exit 75", *FIT, max_restarts=1)
    assert slurm.wait(job) == ["FAILED"]
    assert slurm.show(job, "Restarts") == "1"
    assert "given up" in log_of(job)


@pytest.mark.parametrize(("saves", "restarts"), [(True, "1"), (False, "0")])
def test_a_killed_training_is_started_again_if_it_got_further(stub, slurm, capsys, saves, restarts):
    body = "mkdir -p run; [ $SLURM_RESTART_COUNT ] && exit 0\n"
    body += "touch run/last.ckpt\n" if saves else ""
    (job,) = stub(capsys, f"{body} kill -KILL $$", *FIT)
    slurm.wait(job)
    assert slurm.show(job, "Restarts") == restarts
    assert slurm.show(job, "JobState") == ("COMPLETED" if saves else "FAILED")


def test_an_error_of_our_own_is_not_tried_again(stub, slurm, capsys):
    (job,) = stub(capsys, "mkdir -p run; touch run/last.ckpt; exit 1", *FIT)
    assert slurm.wait(job) == ["FAILED"]
    assert slurm.show(job, "Restarts") == "0"


def test_an_error_of_one_process_is_not_taken_for_the_kill_of_the_others(stub, slurm, capsys):
    """srun ends the others, and exits as if it were a kill."""
    body = """
mkdir -p run
touch run/last.ckpt
if [ $SLURM_PROCID = 0 ]; then
  touch "$CMDVID_FAILED"
  exit 1
fi
trap '' TERM
sleep 60"""
    (job,) = stub(capsys, body, *FIT, "--nodes", "2")
    assert slurm.wait(job) == ["FAILED"]
    assert slurm.show(job, "Restarts") == "0"
    assert "exit code 137, after an error of a process" in log_of(job)
    assert not list(Path("runs/slurm").glob("*.failed"))


def test_lines_of_the_cluster_may_use_what_is_not_set(stub, slurm, capsys):
    setup = "['[ -z $NOT_SET ] && echo not set']"
    sbatch = "{comment: two words, exclusive: true}"
    (job,) = stub(capsys, "exit 0", *FIT, "--name", "two words", setup=setup, sbatch=sbatch)
    assert slurm.wait(job) == ["COMPLETED"]
    assert "not set" in log_of(job)
    assert Path(f"runs/slurm/two words-{job}.out").is_file()
    (job,) = stub(capsys, "exit 0", *FIT, modules="[no-such-module]")
    assert slurm.wait(job) == ["FAILED"]


def test_a_task_of_an_array_is_requeued_alone(stub, slurm, capsys):
    Path("prompts.txt").write_text("a red circle\n\na blue square\na green ring\n")
    Path("pipeline").mkdir()
    Path("pipeline/model_index.json").write_text("{}")
    body = """
while [ $# -gt 0 ]; do case $1 in --prompts) file=$2;; --out) out=$2;; esac; shift; done
echo "${SLURM_RESTART_COUNT:-0}" >> "$out/starts"
[ "$SLURM_ARRAY_TASK_ID" = 1 ] && [ -z "${SLURM_RESTART_COUNT:-}" ] && exit 75
exit 0"""
    words = ["predict", "--ckpt", "pipeline", "--prompts", "prompts.txt", "--parts", "2"]
    (job,) = stub(capsys, body, *words, "--out", "videos", "--trainer.accelerator", "cpu")
    slurm.wait(job)
    starts = [Path(f"videos/part-{i}/starts").read_text().split() for i in (0, 1)]
    assert starts == [["0"], ["0", "1"]]
    parts = [Path(f"videos/part-{i}/prompts.txt").read_text().splitlines() for i in (0, 1)]
    assert parts == [["a red circle", "a green ring"], ["a blue square"]]


def test_what_waits_for_a_failed_job_is_cancelled(stub, slurm, capsys):
    (first,) = stub(capsys, "sleep 2; exit 3", *FIT)
    (second,) = stub(capsys, "exit 3", *FIT, "--after", first, "--name", "second")
    assert slurm.wait(first, second) == ["FAILED", "CANCELLED"]


def test_a_preempted_training_comes_back(stub, slurm, capsys):
    body = """
trap 'mkdir -p run; touch run/last.ckpt; exit 75' USR1
echo running
for i in $(seq 100); do [ -e run/last.ckpt ] && exit 0; sleep 0.1; done"""
    (job,) = stub(capsys, body, *FIT, partition="spot", sbatch="{exclusive: user}")
    slurm.until(lambda: "running" in log_of(job))
    words = ["-p", "main", "-N2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1"]
    other = slurm.run("sbatch", "--parsable", *words)
    assert slurm.wait(other) == ["COMPLETED"]
    assert slurm.wait(job) == ["COMPLETED"]
    assert slurm.show(job, "Restarts") != "0"


def test_a_training_survives_the_loss_of_its_node(stub, slurm, capsys):
    body = """
[ -n "${SLURM_RESTART_COUNT:-}" ] && exit 0
echo running
while :; do sleep 0.1; done"""
    (job,) = stub(capsys, body, *FIT, sbatch="{nodelist: node2}")
    slurm.until(lambda: "running" in log_of(job))
    slurm.node("crash", "node2")
    slurm.until(lambda: slurm.show(job, "Restarts") == "1", 40)
    slurm.node("boot", "node2")
    assert slurm.wait(job) == ["COMPLETED"]


def test_slurm_is_asked_before_anything_is_queued(stub, slurm, capsys):
    with pytest.raises(SystemExit):
        stub(capsys, "true", *FIT, partition="nowhere")
    assert "Slurm refuses fit-ae" in capsys.readouterr().err
    assert slurm.run("squeue", "-h") == ""


def test_apptainer_stands_between_srun_and_the_command(stub, slurm, capsys, project):
    """Its options are read by a stub, which then runs the rest as the container would."""
    (project / "bin").mkdir()
    apptainer = project / "bin/apptainer"
    apptainer.write_text('#!/bin/bash\necho "apptainer $*"\nshift 7\nexec "$@"\n')
    apptainer.chmod(0o755)
    setup = f"['export PATH={project}/bin:$PATH']"
    (job,) = stub(capsys, "echo inside; exit 0", *FIT, container="apptainer:my.sif", setup=setup)
    assert slurm.wait(job) == ["COMPLETED"]
    bind = f"apptainer exec --nv --bind {project} --pwd {project} my.sif {project}/stub.sh fit"
    assert bind in log_of(job)
    assert "\ninside\n" in log_of(job)
