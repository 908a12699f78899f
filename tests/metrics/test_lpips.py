import pytest
import torch
from torchvision.models import alexnet

from cmdvid.metrics.lpips import load_lpips
from cmdvid.metrics.reconstruction import Reconstruction


@pytest.fixture(scope="module")
def backbone():
    with torch.device("meta"):
        features = alexnet().features
    features.to_empty(device="cpu")
    for name, value in features.named_parameters():
        torch.nn.init.normal_(value, std=0.02 if "weight" in name else 0.1)
    return features


@pytest.fixture(scope="module")
def file(backbone, tmp_path_factory):
    """AlexNet's file, here without the layers that LPIPS does not read."""
    path = tmp_path_factory.mktemp("lpips") / "alexnet.pth"
    torch.save({f"features.{name}": value for name, value in backbone.state_dict().items()}, path)
    return path


@pytest.fixture
def images():
    return torch.rand(2, 3, 3, 40, 64) * 2 - 1


def test_it_is_torchmetrics_lpips(backbone, file, images):
    from torchmetrics.functional.image.lpips import _LPIPS

    theirs = _LPIPS(pretrained=True, net="alex", pnet_rand=True)
    names = {name.split(".", 1)[1]: name for name in theirs.net.state_dict()}
    given = backbone.state_dict()
    theirs.net.load_state_dict({names[key]: given[key] for key in names})
    torch.testing.assert_close(load_lpips(file)(*images), theirs(*images).flatten())


def test_equal_images_are_at_zero(file, images):
    lpips = load_lpips(file)
    assert lpips(images[0], images[0]).abs().max() == 0
    assert lpips(*images).min() > 0


def test_reconstruction_has_it_where_it_is_given(file):
    clip, reference = torch.rand(2, 2, 3, 4, 32, 40) * 2 - 1
    network = load_lpips(file)
    metric = Reconstruction(network)
    metric.update(clip, reference)
    frames = [x.transpose(1, 2).flatten(0, 1) for x in (clip, reference)]
    assert metric.compute()["lpips"] == pytest.approx(float(network(*frames).mean()), rel=1e-5)
    plain = Reconstruction()
    plain.update(clip, reference)
    assert "lpips" not in plain.compute()


def test_errors_say_what_is_needed(file, tmp_path):
    with pytest.raises(ValueError, match="at least 31x31 pixels, got 16x40"):
        load_lpips(file)(*torch.zeros(2, 1, 3, 16, 40))
    with pytest.raises(ValueError, match=r"alexnet-owt-7be5be79\.pth"):
        load_lpips(tmp_path / "none.pth")
    torch.save({"features.0.weight": torch.zeros(2, 3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth: not the weights of Sequential"):
        load_lpips(tmp_path / "other.pth")
