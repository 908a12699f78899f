import torch

from cmdvid.models.conditioning import LabelConditioner, TextConditioner
from cmdvid.models.null import null_conditions, nullify


def test_every_conditioner_takes_its_null_conditions():
    for conditioner in (LabelConditioner(3, dim=8), TextConditioner(width=16, num_layers=1)):
        first, second = conditioner(null_conditions(conditioner, 2))
        torch.testing.assert_close(first, second)


def test_only_the_chosen_become_null():
    where = torch.tensor([True, False])
    labels = nullify(torch.tensor([1, 2]), where, conditioner=LabelConditioner(3))
    assert labels.tolist() == [3, 2]
    text = TextConditioner(width=16, num_layers=1)
    assert nullify(("a", "b"), where, conditioner=text) == ["", "b"]
