"""Signals that come early, late, and to the wrong process; in real processes."""

import signal
import subprocess
import sys

import pytest

ME = "import os, signal\nfrom cmdvid.signals import LISTENER, Notice\n"


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", ME + code], check=False, timeout=60)


@pytest.mark.parametrize(
    ("sent", "notice", "exit_code"),
    [
        (["SIGUSR1"], "AGAIN", 75),
        (["SIGTERM"], "STOP", 143),
        (["SIGUSR1", "SIGTERM"], "AGAIN", 75),
        (["SIGTERM", "SIGUSR1"], "AGAIN", 75),
        ([], "NONE", 0),
    ],
)
def test_the_strongest_signal_is_noted(sent, notice, exit_code):
    lines = ["LISTENER.listen()", *(f"os.kill(os.getpid(), signal.{name})" for name in sent)]
    lines += [f"assert LISTENER.noted == Notice.{notice}", "os._exit(LISTENER.noted.exit_code)"]
    assert run("\n".join(lines)).returncode == exit_code


def test_a_forked_worker_notes_nothing_and_lives():
    code = """
LISTENER.listen()
if (child := os.fork()) == 0:
    LISTENER.ignore_in_worker(0)
    for name in (signal.SIGUSR1, signal.SIGTERM):
        os.kill(os.getpid(), name)
    os._exit(int(LISTENER.noted))
assert os.waitpid(child, 0)[1] == 0
"""
    assert run(code).returncode == 0


def test_signals_during_shutdown_do_not_fail_a_finished_run():
    """Python puts its own handlers back to the default there, but leaves ignored signals."""
    code = """
import atexit
LISTENER.listen()
LISTENER.ignore()
atexit.register(os.kill, os.getpid(), signal.SIGUSR1)
"""
    assert run(code).returncode == 0


def test_a_training_listens_before_it_imports_anything_heavy(monkeypatch):
    monkeypatch.setenv("CMDVID_PREEMPTIBLE", "1")
    words = [sys.executable, "-v", "-m", "cmdvid", "fit", "--config", "no.yaml"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "import 'torch._C'" in line:
                process.send_signal(signal.SIGUSR1)
                break
        said = process.stderr.read()
    assert process.returncode == 2, said[-500:]
    assert "no.yaml" in said
