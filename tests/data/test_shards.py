"""Videos in shards are those of the files, on disk and by URL, each once over ranks and workers."""

import json
import logging
import os
import pickle
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pytest
import torch
from torch.utils.data import DataLoader

from cmdvid.data.dataset import ClipDataset, ClipSampler
from cmdvid.data.index import VideoFolder
from cmdvid.data.leakage import refuse_leakage
from cmdvid.data.shards import Shards
from cmdvid.data.skipped import SkippedFiles
from cmdvid.types import ClipBatch, FilePart
from cmdvid.video import ClipSpec, VideoError, read_clip

SPEC = ClipSpec(num_frames=4, image_size=(16, 24))


@pytest.fixture
def shards(tmp_path, make_video, write_tar):
    """Eight videos in four shards; the grey of each is in its caption."""
    (tmp_path / "shards").mkdir()
    for number in range(4):
        members = {}
        for key in (2 * number, 2 * number + 1):
            path = make_video(tmp_path / "files" / f"{key}.mp4", 20 * key)
            members[f"{key}.mp4"] = path.read_bytes()
            members[f"{key}.txt"] = b"grey %d" % (20 * key)
        write_tar(tmp_path / "shards" / f"{number:05d}.tar", members)
    return tmp_path / "shards"


def test_a_clip_of_a_shard_is_that_of_the_file_bit_for_bit(shards):
    index, files = Shards(str(shards)), VideoFolder(str(shards.parent / "files"))
    assert len(index) == len(files) == 8
    for row in range(8):
        entry, file = index[row], files[row]
        assert entry.path == f"{shards}/{row // 2:05d}.tar::{row}.mp4"
        assert entry.condition == f"grey {20 * row}"
        for position in (0, 0.6):
            clip = read_clip(entry.path, SPEC, position, entry.part)
            assert torch.equal(clip, read_clip(file.path, SPEC, position))
    with pytest.raises(IndexError, match="row 8 of 8"):
        index[8]


def test_the_headers_are_read_once(shards, capfd):
    first = Shards(str(shards))
    assert "shards: 100%" in capfd.readouterr().err
    again = Shards(f"{shards}/{{00000..00003}}.tar")
    assert capfd.readouterr().err == ""
    assert [again[row] for row in range(8)] == [first[row] for row in range(8)]
    os.utime(shards / "00002.tar", (1, 1))
    Shards(str(shards))
    assert "1/1" in capfd.readouterr().err
    assert len(pickle.dumps(first)) < 2000  # a worker gets paths, and opens the files itself


@pytest.mark.parametrize("window", [1, 2, 16])
def test_each_sample_comes_once_an_epoch_over_ranks_and_workers(shards, window):
    data = ClipDataset(Shards(str(shards), window=window), spec=SPEC, train=True)

    def epoch_of(rank, epoch):
        sampler = ClipSampler(data, shuffle=True, seed=1, rank=rank, world_size=2, epoch=epoch)
        loader = DataLoader(data, batch_size=2, sampler=sampler, num_workers=2)
        batches = list(loader)
        assert all(isinstance(batch, ClipBatch) for batch in batches)
        return [caption for batch in batches for caption in batch.condition]

    orders = []
    for epoch in range(2):
        ranks = [epoch_of(rank, epoch) for rank in range(2)]
        assert sorted(ranks[0] + ranks[1]) == sorted(f"grey {20 * n}" for n in range(8))
        orders.append([caption for pair in zip(*ranks, strict=True) for caption in pair])
    assert orders[0] != orders[1]
    if window == 1:  # two samples of a shard follow each other
        shard = [int(caption.split()[1]) // 40 for caption in orders[0]]
        assert all(a == b for a, b in zip(shard[::2], shard[1::2], strict=True))


def test_order_does_not_depend_on_the_number_of_ranks(shards):
    data = ClipDataset(Shards(str(shards), window=2), spec=SPEC, train=True)
    alone = list(ClipSampler(data, shuffle=True, epoch=3))
    ranks = [list(ClipSampler(data, shuffle=True, epoch=3, rank=r, world_size=2)) for r in (0, 1)]
    assert [key for pair in zip(*ranks, strict=True) for key in pair] == alone
    plain = list(ClipSampler(range(8), shuffle=True, epoch=3))
    assert plain != alone


def test_a_cut_a_broken_and_a_missing_shard_are_named_and_passed_over(shards, caplog):
    (shards / "00000.tar").write_bytes(b"<html>not here</html>")
    cut = (shards / "00001.tar").read_bytes()
    (shards / "00001.tar").write_bytes(cut[: cut.index(b"3.mp4") + 800])
    with caplog.at_level(logging.WARNING):
        index = Shards(f"{shards}/{{00000..00004}}.tar")
    assert len(index) == 5
    assert index[0].condition == "grey 40"
    assert "3 shards are missing or damaged" in caplog.text
    for number, reason in {0: "no uncompressed tar", 1: "cut", 4: "No such file"}.items():
        assert re.search(rf"{number:05d}\.tar: [^;]*{reason}", caplog.text), number
    data = ClipDataset(index, spec=SPEC)
    assert [data[row].condition for row in range(5)] == [
        f"grey {n}" for n in (40, 80, 100, 120, 140)
    ]
    assert data.num_missing == 3
    ClipDataset(index, spec=SPEC, report=SkippedFiles(shards / "skipped.jsonl"))
    listed = [json.loads(line) for line in (shards / "skipped.jsonl").read_text().splitlines()]
    assert {line["path"] for line in listed} == {f"{shards}/0000{n}.tar" for n in (0, 1, 4)}
    assert any("unexpected end of data" in line["reason"] for line in listed)
    with pytest.raises(ValueError, match=r"3 listed videos are missing .* strict: false"):
        ClipDataset(index, spec=SPEC, strict=True)


def test_a_shard_that_shrinks_during_a_run_costs_its_samples_alone(shards, caplog):
    data = ClipDataset(Shards(str(shards)), spec=SPEC)
    os.truncate(shards / "00003.tar", 600)
    conditions = [data[0, row].condition for row in range(8)]
    assert conditions[:6] == [f"grey {20 * n}" for n in range(6)]
    assert set(conditions[6:]) <= set(conditions[:6])
    assert data.num_unusable == 2
    assert f"{shards}/00003.tar::6.mp4: 88 of " in caplog.text


def test_samples_without_video_are_counted(shards, write_tar, caplog):
    write_tar(shards / "00004.tar", {"8.txt": b"no video", "9.json": b"{}"})
    with caplog.at_level(logging.WARNING):
        index = Shards(str(shards))
    assert (len(index), index.num_missing) == (8, 2)
    assert "2 samples have no video" in caplog.text
    assert index.missing[f"{shards}/00004.tar"].startswith("2 samples have no video")


def test_captions_and_classes_do_not_mix(shards, write_tar):
    write_tar(shards / "00004.tar", {"8.mp4": b"x", "8.cls": b"3"})
    with pytest.raises(ValueError, match=r"00004.tar holds classes .*00003.tar does not"):
        Shards(str(shards))
    index = Shards(str(shards / "00004.tar"))
    assert index[0].condition == 3


def test_nothing_usable_is_an_error_with_reasons(tmp_path, write_tar):
    write_tar(tmp_path / "0.tar", {"0.txt": b"no video"})
    (tmp_path / "1.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no video in these shards: .*1.tar: "):
        Shards(str(tmp_path))
    with pytest.raises(
        ValueError, match=r"Shards.window and min_clips must be at least 1, got 0 and 1"
    ):
        Shards(str(tmp_path), window=0)


def test_a_sample_of_a_shard_is_in_one_split(shards):
    first, rest = f"{shards}/{{00000..00001}}.tar", f"{shards}/{{00002..00003}}.tar"
    assert len(set(Shards(str(shards)).path_keys.tolist())) == 8
    refuse_leakage(Shards(first), {"val": Shards(rest)})
    with pytest.raises(ValueError, match=r"2 of 8 .* data.val .*00001.tar::2.mp4, .*::3.mp4\. "):
        refuse_leakage(Shards(f"{shards}/00001.tar"), {"val": Shards(str(shards))})


@pytest.fixture
def server(shards):
    """An HTTP server of the shards that serves ranges of bytes, as any storage does."""
    requests, busy = [], []  # a path for each time that the server is too busy for it

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = shards / self.path.strip("/")
            if not path.is_file():
                return self.send_error(404)
            if self.path in busy:
                busy.remove(self.path)
                return self.send_error(503)
            data, asked = path.read_bytes(), self.headers.get("Range")
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", asked or "")
            first, last = map(int, found.groups()) if found else (0, len(data) - 1)
            body = data[first : last + 1]
            requests.append((self.command, self.path, len(body) if found else None))
            self.send_response(206 if found else 200)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(body)))
            if found:
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)
            return None

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}", requests, busy
        http.shutdown()
        thread.join()


@pytest.fixture
def memory(shards):
    storage = fsspec.filesystem("memory")
    storage.put(str(shards), "/test_shards", recursive=True)
    yield "memory://test_shards"
    storage.rm("/test_shards", recursive=True)


def test_shards_at_urls_are_read_by_ranges(shards, server, memory, tmp_path):
    here = ClipDataset(Shards(str(shards)), spec=SPEC)
    urls = (f"file://{shards}", memory, f"{server[0]}/{{00000..00003}}.tar")
    for url in urls:
        index = Shards(url, index_folder=str(tmp_path / "indexes"))
        assert index[3].path.endswith("00001.tar::3.mp4")
        there = ClipDataset(index, spec=SPEC)
        for row in range(8):
            assert torch.equal(there[row].clip, here[row].clip)
            assert there[row].condition == here[row].condition
    fetched = Counter(size for command, _, size in server[1] if command == "GET")
    assert fetched[None] == 0  # never a whole file
    assert fetched[here.index[0].part.size] > 0


def test_a_server_that_is_busy_once_is_asked_again(server, tmp_path):
    index = Shards(f"{server[0]}/{{00000..00003}}.tar", index_folder=str(tmp_path))
    data = ClipDataset(index, spec=SPEC)
    server[2].append("/00001.tar")
    assert data[3].condition == "grey 60"
    assert server[2] == []
    assert data.num_unusable == 0


def test_workers_read_urls(server, tmp_path):
    index = Shards(f"{server[0]}/{{00000..00003}}.tar", index_folder=str(tmp_path))
    loader = DataLoader(ClipDataset(index, spec=SPEC), batch_size=4, num_workers=2)
    captions = [caption for batch in loader for caption in batch.condition]
    assert captions == [f"grey {20 * n}" for n in range(8)]


def test_what_a_server_lacks_is_named(server, tmp_path, caplog):
    url = f"{server[0]}/{{00000..00004}}.tar"
    with caplog.at_level(logging.WARNING):
        assert len(Shards(url, index_folder=str(tmp_path))) == 8
    assert f"{server[0]}/00004.tar" in caplog.text
    gone = FilePart(f"{server[0]}/00004.tar", 0, 10)
    with pytest.raises(VideoError, match=r"4.tar::x.mp4: cannot be read"):
        read_clip("4.tar::x.mp4", SPEC, part=gone)


def test_the_digest_tells_rows_from_others(shards, write_tar):
    first = Shards(str(shards)).digest
    assert Shards(str(shards), min_clips=50).digest == first
    assert Shards(f"{shards}/{{00000..00002}}.tar").digest != first
    os.utime(shards / "00003.tar", (1, 1))
    assert Shards(str(shards)).digest == first  # its rows are the same
    members = {"6.mp4": b"x", "6.txt": b"another", "7.mp4": b"x", "7.txt": b"grey 140"}
    write_tar(shards / "00003.tar", members)
    assert Shards(str(shards)).digest != first


def test_few_videos_are_named_again_and_again(shards):
    index = Shards(str(shards), min_clips=50)
    alone = Shards(str(shards))
    assert len(index) == 50
    assert index.num_files == len(alone)
    assert index[len(alone) + 1] == alone[1]
    assert len(Shards(str(shards), min_clips=2)) == len(alone)
