import http.server
import pickle
import threading
from functools import partial

import pytest
import torch

from cmdvid.metrics.weights import Published, digest, fetch, fill, read_weights


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch/hub/checkpoints"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.ones(2, 3)}, path)
    return path


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def site(tmp_path):
    """A web server of the test's folder; gives its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_download_is_checked_and_made_once(file, site, hub):
    url, sha256 = f"{site}/weights.pt", digest(file)
    first = fetch(url, sha256)
    assert first.read_bytes() == file.read_bytes()
    assert list(hub.iterdir()) == [first]
    file.unlink()
    assert fetch(url, sha256) == first


def test_a_damaged_download_is_made_again(file, hub):
    path = fetch(file.as_uri(), digest(file))
    path.write_bytes(b"cut off")
    assert fetch(file.as_uri(), digest(file)) == path
    assert path.read_bytes() == file.read_bytes()


def test_another_file_behind_the_url_is_refused(file, hub):
    with pytest.raises(ValueError, match="another file lies there by now"):
        fetch(file.as_uri(), "0" * 64)
    assert not list(hub.iterdir())


def test_a_url_needs_a_hash_unless_it_is_known(file, site):
    url = f"{site}/weights.pt"
    with pytest.raises(ValueError, match="give the SHA-256"):
        fetch(url, None)
    assert fetch(f"{url}#sha256={digest(file)}", None).is_file()
    offer = Published("a network", url, sha256=digest(file))
    assert fetch(url, None, (offer,)).is_file()


def test_what_cannot_be_downloaded_is_said(site):
    with pytest.raises(ValueError, match=r"none\.pt: cannot be downloaded .*give its path"):
        fetch(f"{site}/none.pt", "0" * 64)


def test_a_missing_file_tells_what_to_download(tmp_path):
    offer = Published("a network", "https://example.org/net.pt", sha256="ab" * 32, size=51_235_320)
    unknown = Published("another", "https://example.org/other.pt")
    with pytest.raises(ValueError, match="no such file") as caught:
        fetch(tmp_path / "net.pt", None, (offer, unknown))
    for part in ("example.org/net.pt", "51,235,320 bytes", "ab" * 32, "not known to us"):
        assert part in str(caught.value)


def test_a_local_file_of_another_hash_is_refused(file):
    assert fetch(file, digest(file).upper()) == file
    with pytest.raises(ValueError, match=f"its SHA-256 is {digest(file)}, but {'0' * 64}"):
        fetch(file, "0" * 64)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n<!DOCTYPE html><html>", "an HTML or XML page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"", "the file is empty"),
    ],
)
def test_what_is_no_weights_is_named(tmp_path, content, message):
    (tmp_path / "i3d.pt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        fetch(tmp_path / "i3d.pt", None)


def test_other_files_are_neither_program_nor_state_dict(tmp_path, file):
    broken = tmp_path / "broken.pt"
    broken.write_bytes(file.read_bytes()[:300])
    harmful = tmp_path / "harmful.pt"
    harmful.write_bytes(pickle.dumps(print, protocol=2))
    tensor = tmp_path / "x.safetensors"
    tensor.write_bytes(b"\x00" * 20)
    for path in (broken, harmful, tensor):
        with pytest.raises(ValueError, match=f"{path.name}: neither a TorchScript program"):
            read_weights(path)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="a list, where a state dict is needed"):
        read_weights(tmp_path / "list.pt")


def test_other_names_and_shapes_are_refused_before_anything_is_loaded():
    network = torch.nn.Linear(3, 2)
    before = network.weight.clone()
    given = {"weight": torch.zeros(2, 3), "bias": torch.zeros(4)}
    with pytest.raises(ValueError, match=r"1 names or shapes differ: bias \(needed 2, found 4\)"):
        fill(network, given, source="x.pt")
    assert torch.equal(network.weight, before)
    with pytest.raises(ValueError, match=r"bias \(needed 2, found none\)"):
        fill(network, {"weight": given["weight"]}, source="x.pt")
