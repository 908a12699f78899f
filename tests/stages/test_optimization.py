import pytest
import torch
from torch import nn

from cmdvid.models.motion_dit import MotionDiT
from cmdvid.optim import Muon
from cmdvid.stages.optimization import clip, configure


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(5, 4)
        self.map = nn.Linear(4, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def test_only_what_is_trained_is_optimised_and_schedules_count_steps():
    network = Network()
    built = configure(
        network,
        lambda groups: torch.optim.Adam(groups, lr=1.0),
        lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer),
    )
    groups = built["optimizer"].param_groups
    parameters = {id(p) for group in groups for p in group["params"]}
    assert parameters == {id(p) for p in (network.words.weight, *network.map.parameters())}
    assert built["lr_scheduler"]["interval"] == "step"


def test_matrices_are_orthogonalised_and_embeddings_are_not():
    """Muon moves a matrix along all directions alike; a table moves only where it was read."""
    network = Network()
    optimizer = configure(network, lambda groups: Muon(groups, lr=0.1), None)
    before = network.words.weight.clone(), network.map.weight.clone()
    network.words(torch.tensor([1])).square().sum().backward()
    network.map.weight.grad = torch.diag(torch.tensor([1.0, 0.3, 0.1, 0.03]))
    optimizer.step()
    moved = network.words.weight - before[0]
    assert moved[1].abs().min() > 0
    assert moved[[0, 2, 3, 4]].abs().max() == 0
    largest, *_, smallest = torch.linalg.svdvals(network.map.weight - before[1])
    assert smallest / largest > 0.3


def test_the_kinds_of_motion_tokens_are_a_table_not_a_matrix():
    network = MotionDiT(width=16, depth=1, num_heads=2)
    built = configure(network, lambda groups: Muon(groups, lr=0.1), None)
    fallback = [p for group in built.param_groups if group["use_fallback"] for p in group["params"]]
    assert [id(p) for p in fallback] == [id(p) for p in network.kind.parameters()]
    assert 0.01 < network.kind.weight.std() < 0.03


def test_gradients_are_clipped_to_the_norm_or_left_alone():
    network = Network()
    for parameter in network.map.parameters():
        parameter.grad = torch.full_like(parameter, 10.0)
    clip(network.map.parameters(), None)
    assert network.map.weight.grad.max() == 10
    clip(network.map.parameters(), 1.0)
    total = sum(p.grad.square().sum() for p in network.map.parameters())
    torch.testing.assert_close(total, torch.tensor(1.0), atol=1e-3, rtol=0)


def test_gradients_are_clipped_by_value_if_the_trainer_says_so():
    network = Network()
    network.map.weight.grad = torch.tensor([[10.0, 0.5, -0.1, 0.0]] * 4)
    network.map.bias.grad = torch.full((4,), -3.0)
    clip(network.map.parameters(), 1.0, "value")
    torch.testing.assert_close(network.map.weight.grad, torch.tensor([[1.0, 0.5, -0.1, 0.0]] * 4))
    torch.testing.assert_close(network.map.bias.grad, torch.full((4,), -1.0))


@pytest.mark.parametrize("max_steps", [-1, 9, 10])
def test_a_schedule_may_end_with_the_training_or_after_it(max_steps):
    assert "lr_scheduler" in configure(
        Network(),
        lambda groups: torch.optim.Adam(groups, lr=1.0),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=10),
        max_steps=max_steps,
    )


def test_conditioners_are_a_group_of_their_own_with_their_own_rate():
    """A schedule gives each group its rate: the text tower learns slower than the denoiser."""
    network = nn.ModuleDict({"denoiser": nn.Linear(4, 4), "conditioner": nn.Linear(4, 4)})
    built = configure(
        network,
        lambda groups: Muon(groups, lr=0.1),
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=[0.1, 0.01], total_steps=10, cycle_momentum=False
        ),
    )
    denoiser, conditioner = built["optimizer"].param_groups
    assert [p.shape for p in conditioner["params"]] == [(4, 4), (4,)]
    assert conditioner["use_fallback"]
    assert conditioner["lr"] == pytest.approx(denoiser["lr"] / 10)
