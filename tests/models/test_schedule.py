import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
)

from cmdvid.models.schedule import follow


def test_the_noise_of_training_beats_the_defaults_of_another_class():
    """Betas that training left at DDIM's defaults are not those of LCM."""
    trained = DDIMScheduler(prediction_type="v_prediction")
    assert LCMScheduler().config.beta_start != trained.config.beta_start
    scheduler = follow(trained, LCMScheduler(original_inference_steps=20))
    torch.testing.assert_close(scheduler.alphas_cumprod, trained.alphas_cumprod)
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.original_inference_steps == 20


@pytest.mark.parametrize("trained", [EulerDiscreteScheduler(), DDIMScheduler(clip_sample=False)])
def test_samples_have_no_bounds_whatever_the_defaults_of_the_class(trained):
    assert DDPMScheduler().config.clip_sample
    assert not follow(trained, DDPMScheduler()).config.clip_sample
    with pytest.raises(ValueError, match=r"scheduler\.clip_sample of the LCMScheduler is true"):
        follow(trained, LCMScheduler(clip_sample=True))


def test_what_cannot_follow_is_refused():
    with pytest.raises(ValueError, match="LCMScheduler sets beta_end, which the model was trained"):
        follow(DDIMScheduler(), LCMScheduler(beta_end=0.03))
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler has no alphas_cumprod"):
        follow(DDIMScheduler(), FlowMatchEulerDiscreteScheduler())
