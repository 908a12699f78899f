"""A table gives back the rows that were kept."""

import numpy as np
import pytest

from cmdvid.data.mapped_table import MappedTable, TableWriter


def write(path, captions, kept):
    with path.open("w+b") as file:
        writer = TableWriter(file)
        for number, caption in enumerate(captions):
            writer.add(f"a/{number}.mp4", caption, number.to_bytes(8, "little"))
        assert writer.name(1) == "a/1.mp4"
        kept = np.array(kept)
        facts = {"source": {}, "folders": {}, "num_missing": 0, "missing": ["ü"], "empty": []}
        writer.finish(kept, writer.keys[kept], **facts)
    return MappedTable(str(path), root="/root")


def test_kept_rows_come_back_in_order(tmp_path):
    captions = ["", "zwei Füße", "a\0b", "four"]
    table = write(tmp_path / "t", captions, [True, True, False, True])
    assert [(entry.path, entry.condition) for entry in table] == [
        ("/root/a/0.mp4", ""),
        ("/root/a/1.mp4", "zwei Füße"),
        ("/root/a/3.mp4", "four"),
    ]
    assert table.keys.tolist() == [0, 1, 3]
    assert (table.facts.num_rows, table.facts.num_bare, table.facts.missing) == (3, 1, ["ü"])
    assert table[-1] == table[2]
    with pytest.raises(IndexError):
        table[3]


def test_the_digest_is_of_rows_and_of_which_are_kept(tmp_path):
    tables = [
        write(tmp_path / f"{number}", captions, kept)
        for number, (captions, kept) in enumerate(
            [
                (["a", "b"], [True] * 2),
                (["a", "b"], [True] * 2),
                (["a", "c"], [True] * 2),
                (["a", "b"], [True, False]),
            ]
        )
    ]
    digests = [table.facts.digest for table in tables]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
