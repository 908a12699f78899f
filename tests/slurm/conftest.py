"""A real Slurm of separate machines, started by Debian's own programs, and a stub of cmdvid."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "cluster"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "ip", "unshare", "nsenter")
WRAPPED = ("sbatch", "srun", "scancel", "scontrol", "squeue", "sinfo")
PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])

CONFIG = """
model:
  class_path: AutoencoderStage
  init_args:
    autoencoder:
      class_path: cmdvid.models.autoencoder.Autoencoder
      init_args: {width: 16, depth: 1, num_heads: 2, patch: 4}
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
  logger: false
  default_root_dir: run
  enable_progress_bar: false
  enable_model_summary: false
  num_sanity_val_steps: 0
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {dirpath: run, save_last: true, save_top_k: 0, enable_version_counter: false}
"""


class Slurm:
    """The cluster: its head's commands are on PATH, and jobs can be waited for."""

    def __init__(self, folder: Path):
        self.folder = folder

    def run(self, *words: str) -> str:
        """What a command prints on the head."""
        return subprocess.run(
            [self.folder / "on", "head", *words], env=os.environ | {"PATH": PATH},
            check=True, capture_output=True, text=True, timeout=60,
        ).stdout.strip()  # fmt: skip

    def node(self, what: str, name: str) -> None:
        """Crash or boot a machine."""
        subprocess.run([HERE / "node.sh", what, name, self.folder], check=True, timeout=60)

    def wait(self, *jobs: str, seconds: float = 60) -> list[str]:
        """Wait until Slurm has nothing more to do for jobs, and give their states."""
        self.until(lambda: not self.run("squeue", "-h", "-j", ",".join(jobs)), seconds)
        return [self.show(job, "JobState") for job in jobs]

    def until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        """Wait for something to become true; a busy controller does not answer every question."""
        deadline, trouble = time.monotonic() + seconds, ""
        while time.monotonic() < deadline:
            try:
                if condition():
                    return
            except subprocess.CalledProcessError as error:
                trouble = error.stderr
            time.sleep(0.2)
        raise AssertionError(f"not within {seconds} s; {self.run('squeue', '-h')} {trouble}")

    def show(self, job: str, field: str) -> str:
        """One field of what Slurm knows of a job."""
        text = self.run("scontrol", "-o", "show", "job", job).split()
        return next(word.partition("=")[2] for word in text if word.startswith(f"{field}="))


def unavailable() -> str | None:
    """Why no cluster can be started here."""
    if missing := [name for name in PROGRAMS if not shutil.which(name, path=PATH)]:
        return f"{', '.join(missing)} not installed; `make test-slurm` installs them"
    if os.getuid() != 0:
        return "only root can start the daemons of a cluster"
    trial = ["unshare", "--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "true"]
    done = subprocess.run(trial, capture_output=True, text=True, check=False)
    return f"no namespaces here: {done.stderr.strip()}" if done.returncode else None


@pytest.fixture(scope="session")
def slurm(tmp_path_factory) -> Iterator[Slurm]:
    """A cluster of two machines with four cores and two pretended GPUs each."""
    if reason := unavailable():
        pytest.skip(reason)
    folder = Path("/tmp") / f"cmdvid-slurm-{os.getpid()}"  # sockets want short names
    log = tmp_path_factory.mktemp("slurm") / "up.log"
    try:
        with log.open("w") as file:
            subprocess.run([HERE / "up.sh", folder], check=True, stdout=file, stderr=file)
        (folder / "bin").mkdir()
        for name in WRAPPED:
            script = folder / "bin" / name
            # with the old PATH: inside the machines the programs are themselves
            script.write_text(f'#!/bin/sh\nPATH="{PATH}" exec "{folder}/on" head {name} "$@"\n')
            script.chmod(0o755)
        print(f"\n{log.read_text()}")  # versions and times, for those who read the log
        yield Slurm(folder)
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"the cluster did not start: {log.read_text()}") from error
    finally:
        subprocess.run([HERE / "down.sh", folder], check=True, timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder with a config, the index it names, and a cluster's YAML."""
    monkeypatch.chdir(tmp_path)
    Path("ae.yaml").write_text(CONFIG)
    Path("data").mkdir()
    for split in ("train", "val"):
        Path(f"data/{split}.csv").write_text("videoid,contentUrl,duration,page_dir,name\n")
    return tmp_path


@pytest.fixture
def stub(project, slurm, monkeypatch):
    """A function that makes a shell script stand in for Python, and submits by the real command."""
    from cmdvid.__main__ import main

    monkeypatch.setenv("PATH", f"{slurm.folder / 'bin'}{os.pathsep}{PATH}")

    def submit(capsys, body: str, *words: str, **cluster: object) -> list[str]:
        script = project / "stub.sh"
        script.write_text(f"#!/bin/bash\n{body}\n")
        script.chmod(0o755)
        settings = {"command": script, "cpus_per_task": 1, "gpus": "null", "warning": 1}
        lines = [f"{key}: {value}\n" for key, value in (settings | cluster).items()]
        Path("slurm.yaml").write_text("time: '5'\n" + "".join(lines))
        capsys.readouterr()
        main(["slurm", *words, "--cluster", "slurm.yaml"])
        lines = capsys.readouterr().out.splitlines()
        return [
            line.split(": job ")[1].split(",")[0].split(";")[0]
            for line in lines
            if ": job " in line
        ]

    return submit
