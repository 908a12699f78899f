import hashlib
import subprocess
import sys
from pathlib import Path

from cmdvid.manifest import (
    commit,
    data_digest,
    digest,
    source_digest,
    versions,
    weights_digests,
)
from cmdvid.types import VideoEntry


def entries(folder, texts=("a", "bb"), conditions=(0, "a caption")):
    folder.mkdir(exist_ok=True)
    found = []
    for i, (text, condition) in enumerate(zip(texts, conditions, strict=True)):
        (folder / f"{i}.mp4").write_text(text)
        found.append(VideoEntry(str(folder / f"{i}.mp4"), condition))
    return found


def test_data_have_a_hash_of_names_sizes_and_conditions_wherever_they_are(tmp_path):
    here, there = entries(tmp_path / "here"), entries(tmp_path / "there")
    first = data_digest(here, tmp_path / "here")
    assert data_digest(there, tmp_path / "there") == first
    for other in (
        entries(tmp_path / "1", texts=("a", "bbb")),
        entries(tmp_path / "2", conditions=(1, "a caption")),
        entries(tmp_path / "3")[::-1],
    ):
        assert data_digest(other, Path(other[0].path).parent) != first


def test_weights_are_told_by_their_bytes(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "notes.txt").write_text("not read")
    wanted = hashlib.sha256(b"weights").hexdigest()
    assert weights_digests(tmp_path) == {"unet/model.safetensors": wanted}


def test_settings_have_one_hash_whatever_their_order():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})


def test_versions_source_and_commit_are_told(monkeypatch, tmp_path):
    assert versions()["torch"][0].isdigit()
    assert len(source_digest()) == 64
    head = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if head.returncode == 0:
        assert commit().removesuffix("+changes") == head.stdout.strip()
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent / "nothing"))
    assert commit() is None
