import json

import pytest
import torch
from torch.utils.data import Dataset

from cmdvid import vectors
from cmdvid.metrics.weights import digest
from cmdvid.types import ClipBatch
from cmdvid.vectors import Network, Share, Weights, load_networks, read_vectors

CPU = torch.device("cpu")


class Clips(Dataset):
    """Clips of one grey each that count how often they are read."""

    def __init__(self, num):
        self.num, self.read = num, []

    def __len__(self):
        return self.num

    def __getitem__(self, index):
        self.read.append(index)
        return ClipBatch(torch.full((3, 2, 8, 8), index % 256, dtype=torch.uint8), "", index)


def level(clip, captions):
    told = torch.tensor([len(text) for text in captions], device=clip.device)
    return torch.stack([clip.float().mean((1, 2, 3, 4)), told], dim=1)


NETWORKS = {"grey": Network(level, {"network": "mean"})}


def read(clips, folder, made_of="a", captions=None, **options):
    made = {"data": made_of}
    options = {"device": CPU, "captions": captions} | options
    return read_vectors(clips, NETWORKS, folder, made_of=made, **options)["grey"]


def test_vectors_are_in_the_order_of_the_clips_and_their_captions(tmp_path):
    said = ["x" * (i % 7) for i in range(150)]
    found = read(Clips(150), tmp_path, captions=said)
    assert found[:, 0].tolist() == list(range(150))
    assert found[:, 1].tolist() == [len(text) for text in said]


def test_what_was_read_is_never_read_again(tmp_path):
    clips = Clips(150)
    first = read(clips, tmp_path)
    assert sorted(clips.read) == list(range(150))
    again = Clips(150)
    assert torch.equal(read(again, tmp_path), first)
    assert again.read == []
    (folder,) = tmp_path.iterdir()
    (folder / "00000064.safetensors").unlink()  # as a kill in the middle leaves it
    assert torch.equal(read(again, tmp_path), first)
    assert again.read == list(range(64, 128))
    assert json.loads((folder / "made_of.json").read_text())["clips"] == {"data": "a"}


def test_other_clips_or_networks_have_vectors_of_their_own(tmp_path, monkeypatch):
    read(Clips(3), tmp_path)
    for made_of, network in (("b", "mean"), ("a", "other")):
        monkeypatch.setitem(NETWORKS, "grey", Network(level, {"network": network}))
        clips = Clips(3)
        read(clips, tmp_path, made_of)
        assert len(clips.read) == 3


@pytest.mark.parametrize("name", ["source_digest", "versions"])
def test_other_code_has_vectors_of_its_own(tmp_path, monkeypatch, name):
    read(Clips(3), tmp_path)
    monkeypatch.setattr(vectors, name, lambda: "another")
    clips = Clips(3)
    read(clips, tmp_path)
    assert len(clips.read) == 3


def test_processes_share_the_work(tmp_path):
    one = Clips(200)
    waited = []

    def wait():  # the second process does its share while the first waits for it
        waited.append(None)
        if len(waited) == 2:
            for start in (64, 192):
                rows = torch.arange(start, min(start + 64, 200))
                value = torch.stack([rows.float() % 256, torch.zeros(len(rows))], dim=1)
                (folder,) = tmp_path.iterdir()
                found = {"grey": value, vectors.REPLACED: value[:, 1:]}
                vectors._save(folder / f"{start:08d}.safetensors", found)

    found = read(one, tmp_path, share=Share(0, 2, wait))
    assert sorted(one.read) == [*range(64), *range(128, 192)]
    assert found[:, 0].tolist() == list(range(200))


def test_a_broken_file_is_named(tmp_path):
    read(Clips(3), tmp_path)
    (folder,) = tmp_path.iterdir()
    (folder / "00000000.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"00000000\.safetensors: cannot be read .* delete it"):
        read(Clips(3), tmp_path)


def test_missing_or_wrong_weights_say_what_is_needed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"give i3d: i3d\.pt: no such file; download one of these"):
        load_networks(["fvd"], Weights(), CPU)
    found, missing = load_networks(["fvd", "motion"], Weights(), CPU)
    assert list(found) == ["motion"]
    assert "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2" in missing["fvd"]
    with pytest.raises(ValueError, match=r"nowhere/c3d\.pt: no such file"):
        load_networks(["inception"], Weights(c3d="nowhere/c3d.pt"), CPU)
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt: not the weights of I3D"):
        load_networks(["fvd"], Weights(i3d=str(tmp_path / "other.pt")), CPU)
    (tmp_path / "other.pt").rename(tmp_path / "i3d.pt")  # where it is looked for
    with pytest.raises(ValueError, match=r"i3d\.pt: not the weights of I3D"):
        load_networks(["fvd", "motion"], Weights(), CPU)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch, on TorchScript
def test_a_network_is_told_by_the_hash_of_its_file(tmp_path, monkeypatch):
    class C3D(torch.nn.Module):
        def forward(self, clip: torch.Tensor) -> torch.Tensor:
            return torch.full([clip.shape[0], 101], 1 / 101)

    torch.jit.script(C3D()).save(str(tmp_path / "c3d.pt"))
    made = tmp_path / "c3d.pt"
    network = load_networks(["inception"], Weights(c3d=str(made)), CPU).found["inception"]
    assert network.made_by["weights"] == f"sha256:{digest(made)}"
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    url = f"{made.as_uri()}#sha256={digest(made)}"
    assert load_networks(["inception"], Weights(c3d=url), CPU).found["inception"][1] == network[1]
    clip = torch.zeros(2, 3, 16, 8, 8, dtype=torch.uint8)
    assert network.read(clip, ["", ""]).shape == (2, 101)


def test_motion_and_the_stand_in_need_no_file():
    networks = load_networks(["motion", "fvd_shapes"], Weights(), CPU).found
    clip = torch.zeros(2, 3, 4, 24, 24, dtype=torch.uint8)
    clip[1, :, ::2] = 100
    moved = networks["motion"].read(clip, ["", ""])
    assert moved[:, 0].tolist() == [0, 100]
    assert networks["fvd_shapes"].read(clip, ["", ""]).shape[0] == 2
