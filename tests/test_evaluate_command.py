"""`cmdvid evaluate` on real files, from a folder of clips to a report."""

import json
import os
import re
import shutil

import numpy as np
import pytest
from einops import rearrange

from cmdvid.__main__ import main
from cmdvid.video import ClipSpec, read_clip

PROTOCOL = """
metrics: [fvd_shapes, motion]
num_samples: 6
spec: {num_frames: 4, image_size: [24, 32]}
split: val
random_window: false
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A data set in `data`, its held-out clips as a model's arrays in `made`, and a protocol."""
    folder = tmp_path_factory.mktemp("project")
    counts = ["--num-videos=2", "--val-videos=12", "--heldout-videos=8"]
    clips = ["--num-frames=4", "--image-size=[24,32]"]
    main(["shapes", "--out", str(folder / "data"), *counts, *clips])
    # as if a model had made them
    shutil.move(folder / "data" / "videos" / "heldout_000", folder / "clips")
    (folder / "made").mkdir()
    spec = ClipSpec(4, (24, 32))
    for path in sorted((folder / "clips").iterdir()):
        frames = rearrange(read_clip(path, spec), "c l h w -> l h w c").numpy()
        np.savez(folder / "made" / f"{path.stem}.npz", frames)
    (folder / "p.yaml").write_text(PROTOCOL)
    return folder


@pytest.fixture
def here(project, monkeypatch, tmp_path):
    monkeypatch.chdir(project)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def command(out, *more, generated="made", protocol="p.yaml"):
    sides = ["--real", "data", "--generated", generated, "--protocol", protocol]
    return ["evaluate", *sides, "--out", str(out), "--num-workers=0", "--device=cpu", *more]


def error_of(args, capsys):
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main(args)
    assert exit_.value.code == 2
    return capsys.readouterr().err


def test_a_folder_of_clips_becomes_a_report_that_says_what_made_it(here, capsys):
    main(command(here / "a"))
    printed = capsys.readouterr().out
    assert "| p        | generated | 6     |" in printed
    report = json.loads((here / "a" / "report.json").read_text())
    levels = report["scores"]["p"]
    assert list(levels) == ["real", "generated"]
    assert levels["real"]["fvd_shapes"]["n"] == 6  # six others of the twelve
    assert levels["generated"]["fvd_shapes"]["low"] is not None
    settings = report["settings"]
    assert settings["protocol"]["spec"]["image_size"] == [24, 32]
    assert (settings["generated"]["folder"], settings["generated"]["found"]) == ("made", 8)
    assert len(settings["real"]["data"][0]) == 64
    assert settings["networks"]["fvd_shapes"]["network"] == "oracle"
    assert "torch" in settings["versions"]
    page = (here / "a" / "report.html").read_text()
    assert page.count("<video") == 12
    assert list((here / "a").glob("events*"))
    assert list((here / "cache" / "cmdvid" / "evaluation").iterdir())


def test_other_arrays_of_the_same_names_sizes_and_times_are_measured_anew(here):
    (here / "q.yaml").write_text(PROTOCOL.replace("fvd_shapes, ", "") + "guidance_scale: 9.0\n")
    rng, values = np.random.default_rng(0), []
    for name in ("one", "two"):
        (here / name).mkdir()
        for i in range(6):
            clip = rng.integers(256, size=(4, 24, 32, 3), dtype=np.uint8)
            np.savez(here / name / f"{i}.npz", clip)
            os.utime(here / name / f"{i}.npz", (10, 10))
        alone = [f"--generated={here / name}", f"--out={here / 'out'}", "--num-workers=0"]
        main(["evaluate", *alone, f"--protocol={here / 'q.yaml'}", "--device=cpu"])
        report = json.loads((here / "out" / "report.json").read_text())
        values.append(report["scores"]["q"]["generated"]["frame_difference"]["value"])
    assert values[0] != values[1]
    assert report["notes"] == ["q wants guidance 9.0; no folder tells it: not checked"]


def test_without_weights_the_rest_is_measured_and_the_report_says_which_file_to_give(here, capsys):
    (here / "q.yaml").write_text(PROTOCOL.replace("fvd_shapes", "fvd"))
    main(command(here / "a", protocol=str(here / "q.yaml")))
    assert "Note: fvd is not measured; give i3d: i3d.pt: no such file" in capsys.readouterr().out
    report = json.loads((here / "a" / "report.json").read_text())
    assert "dynamics" in report["scores"]["q"]["generated"]
    assert "fvd" not in report["scores"]["q"]["generated"]
    (note,) = report["notes"]
    assert "i3d_torchscript.pt" in note
    for kind in ("md", "html"):
        assert "fvd is not measured; give i3d" in (here / "a" / f"report.{kind}").read_text()


def test_two_reports_are_compared_or_refused(here, capsys):
    main(command(here / "a"))
    main(command(here / "b", generated="clips"))
    capsys.readouterr()
    main(["evaluate", "compare", str(here / "a"), str(here / "b" / "report.json")])
    assert "+0.00" in capsys.readouterr().out  # arrays and videos of the same clips
    (here / "q.yaml").write_text(PROTOCOL.replace("num_samples: 6", "num_samples: 5"))
    main(command(here / "c", protocol=str(here / "q.yaml")))
    line = error_of(["evaluate", "compare", str(here / "a"), str(here / "c")], capsys)
    assert "protocol.num_samples: 6 and 5" in line
    assert "two reports" in error_of(["evaluate", "compare", str(here / "a")], capsys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("num_samples: 6", "num_samples: 9"), "needs 9 generated clips, found 8"),
        (("num_frames: 4", "num_frames: 5"), "5 frames are needed, but"),
        (("fvd_shapes, motion", "fvd"), "i3d.pt: no such file; download"),
        (("fvd_shapes, motion", "clipsim"), "needs the caption of each"),
        (
            ("num_samples: 6", "num_samples: 8\nnum_reals: 13"),
            "13 videos are needed, but there are",
        ),
    ],
)
def test_what_does_not_fit_the_protocol_is_told_in_one_line(here, capsys, change, message):
    (here / "q.yaml").write_text(PROTOCOL.replace(*change))
    line = error_of(command(here / "x", protocol=str(here / "q.yaml")), capsys)
    assert re.search(message, line), line


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--generated=data", "--real=made"], "data: looks like a data set"),
        (["--generated=made", "--real=made"], "folders of their own"),
        (["--generated=nowhere"], "nowhere: no such folder of clips"),
        (["--protocol=fid"], "no such protocol"),
        (["--captions=p.yaml"], "captions for 8 clips"),
        (["--weights=3"], "weights"),
    ],
)
def test_a_wrong_option_is_told(here, capsys, args, message):
    assert message in error_of([*command(here / "x"), *args], capsys)


def test_only_some_protocols_go_without_real_clips(here, capsys):
    (here / "q.yaml").write_text(PROTOCOL.replace("fvd_shapes, ", ""))
    alone = ["--generated=made", f"--out={here / 'x'}", "--num-workers=0"]
    main(["evaluate", *alone, f"--protocol={here / 'q.yaml'}"])
    assert "| generated |" in capsys.readouterr().out
    assert "give --real DIR" in error_of(["evaluate", *alone, "--protocol=p.yaml"], capsys)
