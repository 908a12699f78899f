import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from cmdvid import CMDPipeline
from cmdvid.models.autoencoder import Autoencoder
from cmdvid.models.codecs import PixelCodec
from cmdvid.models.conditioning import LabelConditioner, TextConditioner
from cmdvid.models.content_dit import ContentDiT
from cmdvid.models.motion_dit import MotionDiT


@pytest.fixture(scope="module")
def pipe() -> CMDPipeline:
    torch.manual_seed(0)
    dit = {"width": 32, "depth": 1, "num_heads": 4, "condition_dim": 16}
    text = {"width": 16, "num_layers": 1, "num_heads": 2, "context_length": 12}
    parts = {
        "autoencoder": Autoencoder(width=16, depth=1, num_heads=2, patch=4),
        "codec": PixelCodec(),
        "content_denoiser": ContentDiT(**dit, patch=4),
        "content_conditioner": TextConditioner(**text),
        "content_scheduler": DDIMScheduler(clip_sample=False),
        "motion_denoiser": MotionDiT(**dit),
        "motion_conditioner": TextConditioner(**text),
        "motion_scheduler": DDIMScheduler(clip_sample=False),
    }
    for name in ("content_denoiser", "motion_denoiser"):
        for parameter in parts[name].parameters():  # those that start at zero would hide inputs
            torch.nn.init.normal_(parameter, std=0.1)
    pipe = CMDPipeline(**parts, content_shape=[3, 8, 16], motion_shape=[8, 4, 6])
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def labelled(pipe) -> CMDPipeline:
    """The same for classes."""
    parts = {f"{part}_conditioner": LabelConditioner(5, dim=16) for part in ("content", "motion")}
    shapes = {"content_shape": [3, 8, 16], "motion_shape": [8, 4, 6]}
    labelled = CMDPipeline(**{**pipe.components, **parts}, **shapes)
    labelled.set_progress_bar_config(disable=True)
    return labelled


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def sample(pipe, condition="a dog", seeds=(1,), **options):
    options = {"num_inference_steps": 2, "generator": generators(*seeds)} | options
    return pipe(condition, **options)


def test_a_caption_gives_a_clip(pipe):
    output = sample(pipe)
    assert output.frames.shape == (1, 3, 4, 8, 16)
    assert output.content.shape == (1, 3, 8, 16)
    assert output.frames.abs().max() <= 1


def test_class_indices_may_be_plain_numbers(labelled):
    together = sample(labelled, torch.tensor([1, 4]), (1, 2)).frames
    torch.testing.assert_close(sample(labelled, [1, 4], (1, 2)).frames, together, atol=0, rtol=0)
    torch.testing.assert_close(sample(labelled, 4, (2,)).frames[0], together[1], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"class indices must lie in 0\.\.4 .* got 7\.\.7"):
        sample(labelled, 7)


def test_round_trip_through_a_folder_of_safetensors(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    assert list(tmp_path.rglob("*.safetensors"))
    assert not list(tmp_path.rglob("*.bin"))
    loaded = CMDPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    torch.testing.assert_close(sample(loaded).frames, sample(pipe).frames, atol=1e-5, rtol=0)


def test_a_sample_depends_on_its_seed_not_on_its_batch(pipe):
    together = sample(pipe, ["a", "b", "c"], (1, 2, 3)).frames
    torch.testing.assert_close(sample(pipe, "b", (2,)).frames[0], together[1], atol=1e-5, rtol=0)
    assert not torch.allclose(sample(pipe, "b", (9,)).frames[0], together[1], atol=1e-3)


def test_caption_guidance_and_negative_prompt_all_matter(pipe):
    base = sample(pipe).frames
    for change in (
        {"condition": "a cat"},
        {"guidance_scale": 1.0},
        {"negative_prompt": "a cat"},
        {"motion_inference_steps": 4},
    ):
        assert not torch.allclose(sample(pipe, **change).frames, base, atol=1e-4), change


def test_without_a_generator_clips_differ_and_follow_the_seed_of_torch(pipe):
    def clip(seed=None):
        if seed is not None:
            torch.manual_seed(seed)
        return sample(pipe, generator=None).frames

    first, second, again = clip(0), clip(), clip(0)
    assert not torch.allclose(first, second, atol=1e-3)
    torch.testing.assert_close(first, again, atol=1e-5, rtol=0)


def test_new_motion_for_a_fixed_content_frame(pipe):
    """CMD appendix F: with the content frame fixed, new z give new motions."""
    content = torch.randn(1, 3, 8, 16)
    first, second = (sample(pipe, seeds=(s,), content=content) for s in (1, 2))
    torch.testing.assert_close(first.content, second.content)
    assert not torch.allclose(first.frames, second.frames, atol=1e-3)


def test_schedulers_swap_as_in_diffusers(pipe):
    before, kept = sample(pipe).frames, pipe.content_scheduler
    pipe.content_scheduler = DPMSolverMultistepScheduler.from_config(kept.config)
    after = sample(pipe).frames
    pipe.content_scheduler = kept
    assert after.shape == before.shape
    assert not torch.allclose(after, before, atol=1e-4)


def test_encode_and_decode_are_the_autoencoder(pipe):
    clip = torch.rand(2, 3, 4, 8, 16) * 2 - 1
    rebuilt = pipe.decode(pipe.encode(clip))
    torch.testing.assert_close(rebuilt, pipe.autoencoder(clip)[0].clamp(-1, 1))


def test_numpy_frames_follow_diffusers(pipe):
    frames = sample(pipe, output_type="np").frames
    assert frames.shape == (1, 4, 8, 16, 3)
    assert frames.min() >= 0
    assert frames.max() <= 1


def test_numbers_that_do_not_match_are_refused(pipe):
    with pytest.raises(ValueError, match="got 1 generators for 2 conditions"):
        sample(pipe, ["a", "b"], (1,))
    with pytest.raises(ValueError, match="got 1 content frames for 2 conditions"):
        sample(pipe, ["a", "b"], (1, 2), content=torch.zeros(1, 3, 8, 16))


def test_no_motion_steps_are_not_as_many_as_content_steps(pipe):
    with pytest.raises(ValueError, match="num_inference_steps must be at least 1, got 0"):
        sample(pipe, motion_inference_steps=0)


def test_what_only_stable_diffusion_has_is_refused_by_name(pipe):
    with pytest.raises(ValueError, match="denoiser is a ContentDiT; a LoRA needs"):
        pipe.load_lora_weights("style.safetensors")
    with pytest.raises(ValueError, match="codec is a PixelCodec, with no VAE"):
        pipe.enable_vae_tiling()


def test_offload_works_with_every_codec(pipe):
    before = sample(pipe).frames
    pipe.enable_model_cpu_offload(device="cpu")
    torch.testing.assert_close(sample(pipe).frames, before)
    pipe.remove_all_hooks()
