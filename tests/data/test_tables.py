"""Text tables are read row by row, and what is wrong with one is said with its place."""

import pytest

from cmdvid.data.tables import csv_rows, read_lines


def test_stray_bytes_and_blank_lines_do_not_stop_it(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"b,a\n\n1,caf\xe9\n\n2,x\n")
    assert list(csv_rows(path, "a", "b")) == [("caf\ufffd", "1"), ("x", "2")]
    path.write_bytes(b"\xef\xbb\xbfone\r\n\r\n two \r")
    assert read_lines(path) == ["one", "two"]
    path.write_text("one\u2028and more\n")
    assert read_lines(path) == ["one\u2028and more"]


def test_a_row_that_is_cut_short_names_nothing(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1\n")
    assert list(csv_rows(path, "a", "b")) == [("", "")]


def test_a_quote_that_never_ends_is_named_with_its_line(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('a,b\n1,x\n2,"y\n' + "3,z\n" * 50_000)
    with pytest.raises(ValueError, match=r"a.csv: line \d+ is no csv \(field larger"):
        list(csv_rows(path, "a", "b"))


@pytest.mark.parametrize("text", ["", "\n"])
def test_a_csv_without_a_header_found_nothing(tmp_path, text):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match="lacks a, found nothing"):
        list(csv_rows(path, "a"))


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
    for read in (read_lines, lambda path: list(csv_rows(path, "a"))):
        with pytest.raises(ValueError, match=r"cannot be read \(Is a directory\)"):
            read(tmp_path)
