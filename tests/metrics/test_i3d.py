"""The golden logits are those of two public graphs that agree, for weights filled by a rule:
songweige/TATS tats/fvd/pytorch_i3d.py and hassony2/kinetics_i3d_pytorch src/i3dpt.py; here every
50th of 400, from our own run, which agreed with theirs to 1e-15 in float64."""

import math

import pytest
import torch
from torch import nn

from cmdvid.metrics.i3d import I3D, ScriptedI3D, load_i3d

GOLDEN = {  # by eps of batch normalisation
    1e-5: [
        *(-0.15048138, 0.33260218, -0.17400285, 0.1292239),
        *(0.02673702, -0.19743382, 0.19362601, -0.33676489),
    ],
    1e-3: [
        *(-0.15025977, 0.33231169, -0.17372805, 0.12904481),
        *(0.02676827, -0.19730812, 0.19337996, -0.33647013),
    ],
}


class Script(nn.Module):
    """Called like StyleGAN-V's I3D, and as careless with its argument."""

    def __init__(self, num_features: int = 400):
        super().__init__()
        self.head = nn.Linear(3, num_features)

    def forward(
        self,
        x: torch.Tensor,
        rescale: bool = False,
        resize: bool = False,
        return_features: bool = False,
    ) -> torch.Tensor:
        x.sub_(1)
        scale = 255.0 if rescale and resize and return_features else 1.0
        return self.head(x.float().mean(dim=[2, 3, 4]) / scale)


class PlainScript(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float().mean(dim=[2, 3, 4])


def save_script(module, path):
    import warnings

    with warnings.catch_warnings():  # torch advises against TorchScript
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.script(module).save(path)
    return path


def fill(name, shape, index):
    """The rule: a sine of the place in the tensor and of the tensor's place in the list."""
    j = torch.arange(math.prod(shape), dtype=torch.float64)
    match name.split(".")[-2:]:
        case ["conv3d", "weight"]:
            scale = 2 / math.prod(shape[1:]) ** 0.5
            value = scale * torch.sin(12.9898 * j + 78.233 * (index + 1))
        case ["conv3d", "bias"]:
            value = 0.1 * torch.sin(j + index)
        case [_, "weight"]:
            value = 1 + 0.2 * torch.sin(j + index)
        case [_, "bias"]:
            value = 0.1 * torch.sin(1.3 * j + index)
        case [_, "running_mean"]:
            value = 0.1 * torch.sin(0.7 * j + index)
        case [_, "running_var"]:
            value = 1 + 0.3 * torch.sin(0.9 * j + index)
    return value.reshape(shape).float()


@pytest.fixture(scope="module")
def weights():
    shapes = {k: v.shape for k, v in I3D().state_dict().items() if "num_batches" not in k}
    names = sorted(shapes, key=lambda name: not name.startswith("logits"))  # the list's order
    return {name: fill(name, shapes[name], i) for i, name in enumerate(names)}


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("i3d") / "i3d_pretrained_400.pt"
    torch.save(weights, path)
    return path


@pytest.mark.parametrize("eps", GOLDEN)
def test_golden_logits(file, eps):
    c, t, h, w = torch.meshgrid(*map(torch.arange, (3, 16, 224, 224)), indexing="ij")
    clip = torch.sin(0.05 * (h + 1) * (c + 1) + 0.03 * w + 0.2 * t)
    found = load_i3d(file, eps=eps).classify(clip[None])[0]
    torch.testing.assert_close(found[::50], torch.tensor(GOLDEN[eps]), rtol=0, atol=2e-6)


def test_it_has_the_tensors_of_the_port(weights):
    assert len(weights) == 287
    network = I3D()
    assert sum(p.numel() for p in network.parameters()) == 12_697_264
    assert not network.training
    assert weights["Mixed_4e.b2b.conv3d.weight"].shape == (64, 32, 3, 3, 3)


def test_clips_of_any_size_are_scaled_to_224_and_stay_as_they_were(file):
    network = load_i3d(file)
    clip = torch.randint(256, (1, 3, 16, 1, 2), dtype=torch.uint8).repeat_interleave(2, dim=-2)
    before = clip.clone()
    frames = nn.functional.interpolate(clip[0].transpose(0, 1).float(), (224, 224), mode="bilinear")
    wanted = network.classify(frames.transpose(0, 1)[None] / 127.5 - 1)
    torch.testing.assert_close(network(clip), wanted)
    assert torch.equal(clip, before)


def test_safetensors_and_training_checkpoints_load_too(weights, tmp_path):
    from safetensors.torch import save_file

    save_file(weights, tmp_path / "i3d.safetensors")
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "checkpoint.pt")
    for name in ("i3d.safetensors", "checkpoint.pt"):
        network = load_i3d(tmp_path / name)
        torch.testing.assert_close(
            network.get_parameter("Mixed_5c.b0.conv3d.weight"), weights["Mixed_5c.b0.conv3d.weight"]
        )


def test_a_program_is_called_as_stylegan_v_calls_it(tmp_path):
    module = Script()
    network = load_i3d(save_script(module, tmp_path / "i3d.pt"))
    assert isinstance(network, ScriptedI3D)
    clip = torch.randint(1, 256, (2, 3, 16, 4, 6), dtype=torch.uint8)
    before = clip.clone()
    found = network(clip)
    assert torch.equal(clip, before)  # though the program changes its argument
    wanted = module.head((clip - 1).float().mean(dim=(2, 3, 4)) / 255)
    torch.testing.assert_close(found, wanted)


def test_short_clips_are_refused(tmp_path):
    clip = torch.zeros(1, 3, 8, 4, 6, dtype=torch.uint8)
    for network in (I3D(), load_i3d(save_script(Script(), tmp_path / "i3d.pt"))):
        with pytest.raises(ValueError, match="at least 16 frames to be scored by this network"):
            network(clip)


def test_files_of_another_kind_say_what_they_are(tmp_path):
    plain = save_script(PlainScript(), tmp_path / "c3d.pt")
    with pytest.raises(
        ValueError, match=r"c3d\.pt: a TorchScript program that takes x, but not re"
    ):
        load_i3d(plain)
    other = load_i3d(save_script(Script(512), tmp_path / "other.pt"))
    with pytest.raises(ValueError, match=r"no I3D with 400 logits: it made \(1, 512\)"):
        other(torch.zeros(1, 3, 16, 4, 6, dtype=torch.uint8))
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "resnet.pt")
    with pytest.raises(ValueError, match=r"resnet\.pt: not the weights of I3D: 288 names"):
        load_i3d(tmp_path / "resnet.pt")
    with pytest.raises(ValueError, match=r"none\.pt: no such file; (.|\n)*bec6519f66ea534e"):
        load_i3d(tmp_path / "none.pt")
