import copy

import pytest
import torch
from torch import nn

from cmdvid.optim import COEFFICIENTS, Muon, orthogonalize


def train(optimizer, parameters, gradients) -> None:
    """Take one step for each list of gradients."""
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()


@pytest.mark.parametrize("shape", [(24, 24), (8, 40), (40, 8), (1, 12)])
def test_singular_values_of_random_matrices_become_about_one(shape):
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
    assert values.min() > 0.6
    assert values.max() < 1.3


@pytest.mark.parametrize("shape", [(16, 32), (32, 16)])
def test_singular_values_far_apart_become_about_one_too(shape):
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    spectrum = torch.logspace(0, -3, 16)
    values = torch.linalg.svdvals(orthogonalize(left * spectrum @ right))
    assert ((values > 0.6) & (values < 1.3)).float().mean() > 0.6
    assert values.max() < 1.3
    assert values.min() > 50 * spectrum.min()  # even the smallest is lifted far


def test_directions_stay_as_they_are():
    """Only the singular values change: U diag(s) V^T becomes about U V^T."""
    matrix = torch.randn(12, 20)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    rest = left.T @ orthogonalize(matrix) @ right.T
    torch.testing.assert_close(rest, rest.diag().diag(), atol=1e-4, rtol=0)
    assert rest.diag().min() > 0.6


@pytest.mark.parametrize("shape", [(12, 100), (30, 20)])
def test_it_is_the_iteration_of_the_matrix_itself(shape):
    """Newton and Schulz: X <- a X + b (X X^T) X + c (X X^T)^2 X."""
    a, b, c = COEFFICIENTS
    matrix = torch.randn(shape)
    x = matrix / matrix.norm()
    for _ in range(5):
        gram = x @ x.T
        x = a * x + b * gram @ x + c * gram @ gram @ x
    torch.testing.assert_close(orthogonalize(matrix), x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_the_sign_passes_through_and_the_scale_does_not_matter(shape):
    matrix = torch.randn(shape)
    result = orthogonalize(matrix)
    torch.testing.assert_close(orthogonalize(-matrix), -result)
    torch.testing.assert_close(orthogonalize(1000 * matrix), result, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(orthogonalize(0.001 * matrix), result, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(orthogonalize(matrix.T), result.T, atol=1e-5, rtol=1e-4)
    assert orthogonalize(torch.zeros(shape)).eq(0).all()


def test_vectors_and_what_is_marked_are_adams():
    shapes = [(7,), (), (5, 4), (2, 3, 4)]
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = copy.deepcopy(ours)
    options = {"lr": 0.02, "betas": (0.8, 0.97), "eps": 1e-6}
    muon = Muon([{"params": ours[:2]}, {"params": ours[2:], "use_fallback": True}], **options)
    adam = torch.optim.Adam(theirs, **options)
    gradients = [[torch.randn(shape) for shape in shapes] for _ in range(12)]
    train(muon, ours, gradients)
    train(adam, theirs, gradients)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_filters_are_matrices_with_a_row_for_each_output():
    kernel = nn.Parameter(torch.randn(4, 3, 2, 2))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    gradients = [torch.randn(4, 3, 2, 2) for _ in range(3)]
    train(Muon([kernel]), [kernel], [[g] for g in gradients])
    train(Muon([matrix]), [matrix], [[g.flatten(1)] for g in gradients])
    assert torch.equal(kernel.flatten(1), matrix)


def test_a_matrix_moves_by_as_much_as_adam_would_move_it():
    """Steps have the root mean square 0.2 lr, whatever the size of matrix and gradient."""
    for shape, size in (((8, 8), 1e-4), ((64, 16), 1.0), ((16, 64), 1e4)):
        matrix = nn.Parameter(torch.zeros(shape))
        train(Muon([matrix], lr=0.1), [matrix], [[size * torch.randn(shape)]])
        assert matrix.square().mean().sqrt().item() == pytest.approx(0.2 * 0.1, rel=0.25)


def test_a_saved_state_goes_on_bit_for_bit():
    shapes = [(6, 10), (10,), (5, 6)]
    gradients = [[torch.randn(shape) for shape in shapes] for _ in range(8)]

    def start(parameters) -> Muon:
        tables = {"params": parameters[2:], "use_fallback": True}
        return Muon([{"params": parameters[:2]}, tables], lr=0.03)

    whole = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    stopped = copy.deepcopy(whole)
    train(start(whole), whole, gradients)
    first = start(stopped)
    train(first, stopped, gradients[:3])
    resumed = copy.deepcopy(stopped)
    second = start(resumed)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(second, resumed, gradients[3:])
    for a, b in zip(resumed, whole, strict=True):
        assert torch.equal(a, b)


def test_a_closure_is_called_with_gradients_on_and_its_loss_returned():
    matrix = nn.Parameter(torch.eye(3, 4))
    optimizer = Muon([matrix], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = matrix.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3
    assert matrix.square().sum() < 3


def test_parameters_without_a_gradient_stay():
    matrix, vector = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(3))
    Muon([matrix, vector]).step()
    assert matrix.eq(1).all()
    assert vector.eq(1).all()


def test_least_squares_are_solved():
    """A linear map whose inputs have very different sizes, matrix and bias."""
    inputs = torch.randn(64, 6) * torch.logspace(0, -1.5, 6)
    truth = nn.Linear(6, 3)
    with torch.no_grad():
        targets = truth(inputs)
    model = nn.Linear(6, 3)
    optimizer = Muon(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    for _ in range(200):
        optimizer.zero_grad()
        (model(inputs) - targets).square().mean().backward()
        optimizer.step()
        schedule.step()
    assert (model(inputs) - targets).square().mean() < 1e-5
    torch.testing.assert_close(model.weight, truth.weight, atol=0.05, rtol=0)
