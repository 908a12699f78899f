import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from torch.utils.data import Dataset

from cmdvid.data.sampling import Sample
from cmdvid.protocols import FOLDER, Protocol, read_protocol
from cmdvid.types import VideoEntry
from cmdvid.video import ClipSpec

PRESETS = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def test_every_published_protocol_has_a_preset():
    wanted = "cmd-2000 msrvtt-1k msrvtt-2990 ucf101-10k ucf101-2048 ucf101-zeroshot webvid-5k"
    assert set(wanted.split()) <= set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_parses_and_only_stand_ins_need_no_weights(name):
    protocol = read_protocol(name)
    assert protocol.name == name
    assert protocol.spec.num_frames == 16
    assert protocol.approximate == (name == "cmd-2000")
    assert ("fvd_shapes" in protocol.metrics) == name.startswith("shapes")
    assert protocol.needs_reals == any("fvd" in metric for metric in protocol.metrics)


def test_ten_thousand_clips_come_from_fewer_videos():
    protocol = read_protocol("ucf101-10k")

    class Rows(list, Dataset):
        pass

    train = Rows(VideoEntry(f"{i:05d}.avi", i % 101) for i in range(9537))
    sample = Sample(train, num=protocol.count_reals, several_windows=protocol.several_windows)
    assert (len(sample), sample.num_files, protocol.repeats) == (10000, 9537, 4)


def test_zero_shot_prompts_are_one_for_each_class():
    prompts = (FOLDER / "ucf101_prompts.txt").read_text().splitlines()
    assert len(set(prompts)) == 101
    assert all(text == text.strip() and len(text.split()) > 2 for text in prompts)
    assert read_protocol("ucf101-zeroshot").num_samples == 101 * 100


def test_a_file_of_ones_own_is_read(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("metrics: [motion]\nnum_samples: 8\nspec: {num_frames: 4, fps: 8.0}\n")
    assert read_protocol(str(path)) == Protocol(
        name="mine", metrics=("motion",), num_samples=8, spec=ClipSpec(4, fps=8.0)
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("metrics: [motion]", "num_samples"),
        ("metrics: [fid]\nnum_samples: 8\nspec: {}", "fid"),
        ("metrics: []\nnum_samples: 8\nspec: {}", "each metric once"),
        ("metrics: [motion]\nnum_samples: 1\nspec: {}", "num_samples must be at least 2, got 1"),
        ("metrics: [motion]\nnum_samples: 8\nspec: {}\nsampels: 3", "sampels"),
        ("metrics: [motion", "mine.yaml"),
        ("", "mine.yaml"),
    ],
)
def test_a_wrong_setting_is_named_with_its_file(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"mine.yaml: .*{message}|{message}: ") as error:
        read_protocol(str(path))
    assert "\n" not in str(error.value)


def test_an_unknown_name_lists_the_presets():
    with pytest.raises(ValueError, match=r"fvd\.yaml: no such protocol; .* ucf101-2048"):
        read_protocol("fvd")


@pytest.mark.slow
def test_an_installed_wheel_has_the_presets(tmp_path):
    pytest.importorskip("hatchling", reason="what the wheel is built with")
    build = ["hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-m", *build], cwd=root, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert {f"cmdvid/presets/{name}.yaml" for name in PRESETS} <= set(names)
    assert "cmdvid/presets/ucf101_prompts.txt" in names
    told = subprocess.run(
        [sys.executable, "-m", "cmdvid", "evaluate", "--generated=clips", "--protocol=unknown"],
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        cwd=tmp_path, capture_output=True, text=True,
    ).stderr  # fmt: skip
    assert str(tmp_path / "site" / "cmdvid" / "presets") in told  # where it looked
    assert all(name in told for name in PRESETS)
