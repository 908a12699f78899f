import pytest
import torch

from cmdvid.models.content_dit import ContentDiT
from cmdvid.models.motion_dit import MotionDiT


def awake(model: torch.nn.Module) -> torch.nn.Module:
    """Give the layers that start at zero random weights, so that the output tells inputs apart."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.abs().sum() == 0:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture
def content_dit() -> torch.nn.Module:
    return awake(ContentDiT(width=32, depth=2, num_heads=4, patch=4, condition_dim=6))


@pytest.fixture
def motion_dit() -> torch.nn.Module:
    return awake(MotionDiT(width=32, depth=2, num_heads=4, condition_dim=6, content_patch=4))


T, CONDITION = torch.tensor([3, 700]), torch.randn(2, 6)


@pytest.mark.parametrize("size", [(8, 12), (16, 4)])
def test_content_prediction_has_the_shape_of_the_content(content_dit, size):
    noisy = torch.randn(2, 3, *size)
    assert content_dit(noisy, T, CONDITION).shape == noisy.shape


def test_content_that_does_not_fit_is_refused(content_dit):
    with pytest.raises(ValueError, match="sides divisible by its patch of 4, got 8x10"):
        content_dit(torch.zeros(2, 3, 8, 10), T, CONDITION)


def test_both_start_by_predicting_nothing():
    noisy, motion = torch.randn(2, 3, 8, 12), torch.randn(2, 8, 4, 10)
    content = ContentDiT(width=32, depth=1, num_heads=4, condition_dim=6)
    assert content(noisy, T, CONDITION).abs().max() == 0
    dit = MotionDiT(width=32, depth=1, num_heads=4, condition_dim=6)
    assert dit(motion, T, CONDITION, content=noisy).abs().max() == 0


@pytest.mark.parametrize("change", ["noisy", "t", "condition"])
def test_content_prediction_depends_on_each_input(content_dit, change):
    inputs = {"noisy": torch.randn(2, 3, 8, 12), "t": T, "condition": CONDITION}
    changed = inputs | {change: inputs[change] + (1 if change != "t" else 100)}
    assert not torch.allclose(content_dit(**inputs), content_dit(**changed), atol=1e-4)


@pytest.mark.parametrize("change", ["noisy", "t", "condition", "content"])
def test_motion_prediction_depends_on_each_input(motion_dit, change):
    inputs = {
        "noisy": torch.randn(2, 8, 4, 10),
        "t": T,
        "condition": CONDITION,
        "content": torch.randn(2, 3, 8, 12),
    }
    changed = inputs | {change: inputs[change] + (1 if change != "t" else 100)}
    assert not torch.allclose(motion_dit(**inputs), motion_dit(**changed), atol=1e-4)


def test_motion_tokens_know_frame_plane_and_position(motion_dit):
    """Equal entries everywhere: only what a token knows of itself can tell predictions apart."""
    noisy, content = torch.ones(1, 8, 4, 16), torch.zeros(1, 3, 16, 16)  # 8 rows, 8 columns
    tokens = motion_dit(noisy, T[:1], CONDITION[:1], content=content)[0, 0, ::2, ::2]  # l/2 s/2
    flat = tokens.flatten()
    distances = (flat[:, None] - flat).abs() + torch.eye(len(flat))
    assert distances.min() > 1e-6


def test_rows_lie_on_the_same_axis_as_content_rows(motion_dit):
    """Positions are in pixels of the content frame, so both kinds of token share one ruler."""
    noisy, content = torch.zeros(1, 8, 4, 10), torch.zeros(1, 3, 16, 24)
    grid = motion_dit._grid(noisy, content)
    assert (grid.rows, grid.columns, grid.stride) == (4, 6, 4.0)


def test_paper_sizes_count_as_printed():
    """DiT-XL/2 as CMD Table 7 uses it has 384 motion tokens and 128 content tokens."""
    with torch.device("meta"):
        dit = MotionDiT(channels=4, width=1152, depth=28, num_heads=16, content_patch=8)
    assert sum(p.numel() for p in dit.parameters()) == pytest.approx(674e6, rel=0.01)


@pytest.mark.parametrize(
    ("motion", "content"), [((2, 8, 4, 11), (2, 3, 8, 12)), ((2, 8, 3, 10), (2, 3, 8, 12))]
)
def test_motion_that_does_not_fit_is_refused(motion_dit, motion, content):
    with pytest.raises(ValueError, match=r"does not fit a content frame of 8x12"):
        motion_dit(torch.zeros(motion), T, CONDITION, content=torch.zeros(content))


def test_a_conditioner_of_another_width_is_named_on_both_sides(content_dit, motion_dit):
    noisy, motion = torch.zeros(2, 3, 8, 12), torch.zeros(2, 8, 4, 10)
    for dit, x, context in ((content_dit, noisy, {}), (motion_dit, motion, {"content": noisy})):
        with pytest.raises(ValueError, match="condition_dim 6, but its conditioner gives 2 9;"):
            dit(x, T, torch.zeros(2, 9), **context)


def test_gradient_checkpointing_changes_no_gradient(motion_dit):
    noisy, content = torch.randn(2, 8, 4, 10), torch.randn(2, 3, 8, 12)

    def gradient() -> torch.Tensor:
        motion_dit.zero_grad()
        motion_dit(noisy, T, CONDITION, content=content).square().mean().backward()
        return motion_dit.motion_in.weight.grad.clone()

    plain = gradient()
    motion_dit.enable_gradient_checkpointing()
    torch.testing.assert_close(gradient(), plain)
