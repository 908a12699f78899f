import warnings

import pytest
import torch
from torch import nn

from cmdvid.metrics.inception import VideoInceptionScore, load_c3d


class Table(nn.Module):
    """Looks up each clip's class by its first pixel; no doubt about any."""

    def forward(self, clip):
        return nn.functional.one_hot(clip[:, 0, 0, 0, 0].long(), 5).float()


class Script(nn.Module):
    def __init__(self, sharp: bool):
        super().__init__()
        self.sharp = sharp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        colours = x.float().mean(dim=[2, 3, 4]) / 30
        return colours.softmax(dim=1) if self.sharp else colours


class TwoArguments(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y


def saved(module, path):
    with warnings.catch_warnings():  # torch advises against TorchScript
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.script(module).save(path)
    return path


def of_classes(labels):
    return torch.tensor(labels, dtype=torch.uint8).view(-1, 1, 1, 1, 1).expand(-1, 3, 16, 2, 2)


def scored(clips, network, **options):
    metric = VideoInceptionScore(network, **options)
    metric.update(clips)
    return metric.compute()


def test_known_scores():
    every = of_classes([0, 1, 2, 3, 4] * 4)
    assert scored(every, Table(), num_classes=5, num_splits=1) == {
        "inception_score": pytest.approx(5),  # sure of each, and all classes alike
        "inception_score_spread": 0,
        "count": 20,
    }
    one = scored(of_classes([3] * 8), Table(), num_classes=5, num_splits=4)
    assert one["inception_score"] == pytest.approx(1)


def test_order_and_batches_do_not_matter(tmp_path):
    clips = torch.randint(256, (30, 3, 16, 2, 2), dtype=torch.uint8)
    network = load_c3d(saved(Script(sharp=True), tmp_path / "c3d.pt"))
    options = {"num_classes": 3, "num_splits": 4}
    whole = scored(clips, network, **options)
    metric = VideoInceptionScore(network, **options)
    for part in clips.flip(0).split(7):
        metric.update(part)
    assert metric.compute() == pytest.approx(whole, rel=1e-6)
    assert whole["inception_score_spread"] > 0


def test_splits_are_even_draws_and_no_ranges_of_likeness():
    labels = [0] * 50 + [1] * 50
    found = scored(of_classes(labels), Table(), num_classes=5, num_splits=5)
    assert found["inception_score"] > 1.9  # splits of one class each would have 1


def test_too_few_clips_or_classes_are_errors(tmp_path):
    with pytest.raises(ValueError, match="10 splits need as many clips at least, got 3"):
        scored(of_classes([0, 1, 2]), Table(), num_classes=5)
    with pytest.raises(ValueError, match="tells 5 classes apart, needed are 101"):
        scored(of_classes([0]), Table())


def test_files_of_another_kind_say_what_they_are(tmp_path):
    clip = torch.full((1, 3, 16, 2, 2), 9, dtype=torch.uint8)
    blunt = load_c3d(saved(Script(sharp=False), tmp_path / "blunt.pt"))
    with pytest.raises(ValueError, match="gives no probabilities of classes"):
        blunt(clip)
    with pytest.raises(ValueError, match="at least 16 frames"):
        blunt(clip[:, :, :8])
    with pytest.raises(ValueError, match=r"two\.pt: a TorchScript program that takes x, y"):
        load_c3d(saved(TwoArguments(), tmp_path / "two.pt"))
    torch.save({"w": torch.zeros(2)}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"state\.pt: a state dict, but C3D is needed"):
        load_c3d(tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"none\.pt: no such file;(.|\n)*c3d_ucf101\.pt"):
        load_c3d(tmp_path / "none.pt")
