"""What the checkpoints of a pipeline must have in common."""

import pytest

from cmdvid.export import _shared_shapes

PATHS = {"content": "content.ckpt", "motion": "motion.ckpt"}


def test_stages_of_different_sizes_are_named_with_both_shapes():
    small, large = {"content": [4, 32, 32]}, {"content": [4, 64, 128]}
    shapes = _shared_shapes({part: {"latent_shapes": small} for part in PATHS}, PATHS)
    assert shapes == small
    different = {"content": {"latent_shapes": small}, "motion": {"latent_shapes": large}}
    with pytest.raises(ValueError, match=r"motion.ckpt: .*64, 128.* but content.ckpt .*32, 32"):
        _shared_shapes(different, PATHS)
