import json

import pytest

from cmdvid.evaluation import fraction, mean
from cmdvid.report import Interval, Report, compare, log_scores, read_report

FVD = Interval(90.0, 80.0, 95.5, 8)


@pytest.fixture
def report():
    scores = {
        "seen": {
            "reconstruction": {
                "colour": fraction(0.75, 8),
                "psnr": mean(31.234, 0.1, 8),
                "ssim": Interval(0.98765, None, None, 8),
            },
            "generated": {"colour": fraction(0.5, 8)},
        }
    }
    return Report({"pipeline": "runs/é", "seed": 0, "versions": {"torch": "2.14.1"}}, scores)


def test_json_holds_every_number_and_the_settings(report, tmp_path):
    paths = report.write(tmp_path / "new" / "eval")
    assert [path.name for path in paths] == ["report.json", "report.md"]
    assert sorted(path.name for path in paths[0].parent.iterdir()) == ["report.json", "report.md"]
    content = json.loads(paths[0].read_text(encoding="utf-8"))
    assert content["settings"]["pipeline"] == "runs/é"
    colour = content["scores"]["seen"]["generated"]["colour"]
    assert set(colour) == {"value", "low", "high", "n"}
    assert (colour["value"], colour["n"]) == (0.5, 8)
    assert colour["low"] < 0.5 < colour["high"]
    assert content["scores"]["seen"]["reconstruction"]["ssim"]["low"] is None


def test_markdown_has_a_row_for_each_set_and_level(report):
    head, line, *rows = [row for row in report.to_markdown().splitlines() if row.startswith("|")]
    names = [cell.strip() for cell in head.strip("|").split("|")]
    assert names == ["test set", "level", "clips", "colour", "PSNR", "SSIM"]
    assert len({len(row) for row in (head, line, *rows)}) == 1  # aligned
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert cells[0] == [
        *("seen", "reconstruction", "8", "75.0 (40.9 to 92.9)"),
        *("31.23 (31.04 to 31.43)", "0.988"),
    ]
    assert cells[1] == ["seen", "generated", "8", "50.0 (21.5 to 78.5)", "", ""]


def test_the_printed_table_has_intervals_where_a_protocol_measures(report):
    assert "75.0 " in report.printed()
    assert "(" not in report.printed()
    levels = {"real": {"fvd": Interval(12.0, 10.0, 15.0, 4)}, "generated": {"fvd": FVD}}
    printed = Report({}, {"train": levels}).printed()
    assert "90.00 (80.00 to 95.50)" in printed
    assert "| train    | generated | 8 " in printed


def test_a_score_of_fewer_clips_says_so():
    scores = {"real": {"fvd": FVD._replace(n=4), "frame_difference": Interval(1.0, None, None, 8)}}
    assert "90.00 (80.00 to 95.50), n = 4" in Report({}, {"val": scores}).table()


def made(value=90.0, protocol="ucf101-2048", seed=0):
    settings = {
        "protocol": {"name": protocol, "seed": seed, "spec": {"image_size": (64, 64)}},
        "networks": {"fvd": {"weights": "sha256:1"}},
        "real": {"data": ["2"]},
        "generated": {"folder": str(value)},
    }
    return Report(settings, {"train": {"generated": {"fvd": FVD._replace(value=value)}}})


def test_a_report_is_read_as_it_was_written(report, tmp_path):
    for each in (report, made()):
        each.write(tmp_path)
        assert read_report(tmp_path).scores == each.scores
        assert read_report(tmp_path / "report.json").to_json() == each.to_json()
    (tmp_path / "report.json").write_text('{"scores": 3}')
    with pytest.raises(ValueError, match="no report of"):
        read_report(tmp_path)
    with pytest.raises(ValueError, match=r"none.report\.json|none: no report can be read"):
        read_report(tmp_path / "none")


def test_reports_of_one_protocol_are_compared_score_by_score(tmp_path):
    made().write(tmp_path)  # lists of JSON in place of tuples are no difference
    table = compare(read_report(tmp_path), made(78.25))
    assert "| 90.00 (80.00 to 95.50) | 78.25 (80.00 to 95.50) | -11.75 " in table


def test_reports_of_different_protocols_are_refused_by_field(report):
    with pytest.raises(ValueError, match=r"protocol.name: ucf101-2048 and ucf101-10k; protocol"):
        compare(made(), made(protocol="ucf101-10k", seed=1))
    other = made()
    other.settings["real"] = {"data": ["3"]}
    with pytest.raises(ValueError, match=r"alike, so they say nothing: real\.data: 2 and 3$"):
        compare(made(), other)
    with pytest.raises(ValueError, match="only reports that were made by a protocol"):
        compare(made(), report)


def test_a_run_of_one_test_set_is_compared_with_a_folder():
    tested = made(80.0)
    tested.settings["real"] = {"val": tested.settings["real"]}
    assert "| train, val " in compare(
        made(), Report(tested.settings, {"val": tested.scores["train"]})
    )
    assert "-10.00 " in compare(made(), tested)
    tested.settings["real"] = {"val": {"data": ["3"]}}
    with pytest.raises(ValueError, match=r"nothing: real\.data: 2 and 3$"):
        compare(made(), tested)


def test_reports_without_a_common_score_are_refused():
    one = made()
    other = Report(one.settings, {"train": {"real": one.scores["train"]["generated"]}})
    with pytest.raises(ValueError, match=r"no score in common; .* train \(generated\) and train"):
        compare(one, other)
    several = Report(one.settings, {"a": {}, "b": {}})
    with pytest.raises(ValueError, match="no score in common"):
        compare(one, several)


def test_tensorboard_gets_the_scores(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log_scores(made(), tmp_path)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (scalar,) = events.Scalars("train/generated/fvd")
    assert scalar.value == 90
