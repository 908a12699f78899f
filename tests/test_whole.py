"""A file is there whole, or as it was before."""

import multiprocessing
import os
import signal
import time

import pytest

from cmdvid.whole import whole, write_text


def test_a_file_appears_when_all_is_written(tmp_path):
    path = tmp_path / "folder" / "clip.mp4"
    with whole(path) as part:
        part.write_text("new")
        assert part.suffix != ".mp4"  # whoever looks for videos finds none
        assert not path.exists()
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["clip.mp4"]


@pytest.mark.parametrize("shared", [False, True])
def test_an_error_leaves_the_file_as_it_was(tmp_path, shared):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail():
        with whole(path, shared=shared) as part:
            part.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def _stop_in_the_middle(path):
    with whole(path) as part:
        part.write_text("half")
        time.sleep(60)


def test_a_kill_leaves_the_file_as_it_was_and_the_next_writer_clears_up(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    process = multiprocessing.get_context("fork").Process(target=_stop_in_the_middle, args=(path,))
    process.start()
    deadline = time.monotonic() + 30
    while len(os.listdir(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert path.read_text() == "old"
    assert len(os.listdir(tmp_path)) == 2
    assert write_text(path, "line\r\n") == path
    assert path.read_bytes() == b"line\r\n"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_writers_of_a_shared_file_do_not_meet(tmp_path):
    path = tmp_path / "a.txt"
    with whole(path, shared=True) as first:
        first.write_text("first")
        process = multiprocessing.get_context("fork").Process(target=_write_shared, args=(path,))
        process.start()
        process.join()
        assert path.read_text() == "second"
    assert path.read_text() == "first"


def _write_shared(path):
    with whole(path, shared=True) as part:
        part.write_text("second")
