import pytest
import torch

from cmdvid.models.layers import (
    AdaLNBlock,
    Attention,
    axial_sincos,
    rotary_angles,
    rotate,
)


def test_rotation_keeps_lengths():
    x = torch.randn(2, 3, 5, 8)
    angles = rotary_angles(torch.arange(5.0)[:, None], 8)
    torch.testing.assert_close(rotate(x, angles).norm(dim=-1), x.norm(dim=-1))


def test_rotated_products_depend_on_distance_alone():
    q, k = torch.randn(2, 1, 1, 1, 8)

    def product(i: float, j: float) -> torch.Tensor:
        turned = [
            rotate(x, rotary_angles(torch.tensor([[p, 2.0 * p]]), 8)) for x, p in ((q, i), (k, j))
        ]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(product(1.0, 4.0), product(6.0, 9.0), rtol=1e-4, atol=1e-5)
    assert not torch.isclose(product(1.0, 4.0), product(1.0, 5.0), rtol=1e-3)


def test_attention_without_positions_ignores_order_and_with_them_does_not():
    torch.manual_seed(0)
    attention, x = Attention(16, num_heads=2), torch.randn(1, 6, 16)
    order = torch.randperm(6)
    angles = rotary_angles(torch.arange(6.0)[:, None], 8)
    torch.testing.assert_close(attention(x)[:, order], attention(x[:, order]))
    assert not torch.allclose(attention(x, angles)[:, order], attention(x[:, order], angles))


def test_adaln_block_starts_as_identity():
    x = torch.randn(2, 4, 16)
    torch.testing.assert_close(AdaLNBlock(16, num_heads=2)(x, torch.randn(2, 16)), x)


def test_axial_positions_differ_on_each_axis():
    zero, one = torch.zeros(1), torch.ones(1)
    places = [(zero, zero, zero), (one, zero, zero), (zero, one, zero), (zero, zero, one)]
    embeddings = torch.cat([axial_sincos(*place, 32) for place in places])
    distances = torch.cdist(embeddings, embeddings) + torch.eye(4)
    assert distances.min() > 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Attention(10, num_heads=3), "width of 10 does not split into 3 heads"),
        (lambda: rotary_angles(torch.zeros(4, 2), 6), "head width of 6 does not split into pairs"),
        (lambda: axial_sincos(*torch.zeros(3, 1), 12), "divisible by 8, got 12"),
    ],
)
def test_widths_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
