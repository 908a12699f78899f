"""A pipeline whose content model is Stable Diffusion does what Stable Diffusion pipelines do."""

import logging

import pytest
import torch
from accelerate.hooks import CpuOffload
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
)

from cmdvid import CMDPipeline
from cmdvid.models.conditioning import TextConditioner


@pytest.fixture
def pipe(make_sd_pipeline) -> CMDPipeline:
    return make_sd_pipeline()


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def sample(pipe, condition="a dog", seeds=(1,), **options):
    options = {"num_inference_steps": 2, "generator": generators(*seeds)} | options
    return pipe(condition, **options)


def same(one, other) -> bool:
    return torch.allclose(one.frames, other.frames, atol=1e-5, rtol=0)


def test_round_trip_through_a_folder(pipe, tmp_path, caplog):
    pipe.save_pretrained(tmp_path)
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".bin", ".pt", ".ckpt")]
    with caplog.at_level(logging.WARNING):
        logging.getLogger("diffusers").addHandler(caplog.handler)
        loaded = CMDPipeline.from_pretrained(tmp_path, use_safetensors=True)
        logging.getLogger("diffusers").removeHandler(caplog.handler)
    assert not [r.message for r in caplog.records if "Expected types" in r.message]
    loaded.set_progress_bar_config(disable=True)
    assert same(sample(loaded), sample(pipe))


def test_every_caption_is_read_once(pipe, monkeypatch):
    seen = []
    forward = pipe.text_encoder.forward
    monkeypatch.setattr(
        pipe.text_encoder, "forward", lambda ids, **k: seen.append(len(ids)) or forward(ids, **k)
    )
    sample(pipe, ["a dog", "a dog", "a cat"], (1, 2, 3))
    assert seen == [2, 1]  # two captions, the empty one


def test_equal_conditioners_become_one_that_reads_once(pipe, tmp_path, monkeypatch):
    twin = TextConditioner(width=16, num_layers=1, num_heads=2)
    twin.load_state_dict(pipe.motion_conditioner.state_dict())
    text = dict(pipe.components) | {"content_conditioner": twin}
    shared = CMDPipeline(**text, content_shape=[4, 4, 8], motion_shape=[2, 4, 6])
    assert shared.content_conditioner is shared.motion_conditioner
    other = TextConditioner(width=16, num_layers=1, num_heads=2)
    apart = CMDPipeline(**text | {"content_conditioner": other})
    assert apart.content_conditioner is other
    assert apart.motion_conditioner is pipe.motion_conditioner


def test_the_scheduler_is_the_content_models(pipe):
    before, motion = sample(pipe), pipe.motion_scheduler
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    assert pipe.scheduler is pipe.content_scheduler
    assert pipe.components["content_scheduler"] is pipe.scheduler
    assert pipe.config.content_scheduler[1] == "DPMSolverMultistepScheduler"
    assert pipe.motion_scheduler is motion
    assert not same(sample(pipe), before)


def test_a_scheduler_that_draws_noise_draws_each_samples_own(pipe):
    for part in ("content", "motion"):
        old = getattr(pipe, f"{part}_scheduler").config
        setattr(pipe, f"{part}_scheduler", EulerAncestralDiscreteScheduler.from_config(old))
    together = sample(pipe, ["a", "b"], (1, 2)).frames
    alone = sample(pipe, "b", (2,)).frames
    torch.testing.assert_close(alone[0], together[1], atol=1e-4, rtol=0)


def test_negative_prompts_for_each_condition(pipe):
    seeds = {"seeds": (1, 2)}
    one = sample(pipe, ["a", "b"], negative_prompt="a cat", **seeds)
    assert same(sample(pipe, ["a", "b"], negative_prompt=["a cat", "a cat"], **seeds), one)
    mixed = sample(pipe, ["a", "b"], negative_prompt=["a cat", ""], **seeds).frames
    torch.testing.assert_close(mixed[0], one.frames[0], atol=1e-5, rtol=0)
    plain = sample(pipe, ["a", "b"], **seeds).frames
    torch.testing.assert_close(mixed[1], plain[1], atol=1e-5, rtol=0)


def test_several_videos_of_a_prompt_follow_each_other(pipe):
    pairs = sample(pipe, ["a", "b"], (1, 2, 3, 4), num_videos_per_prompt=2).frames
    single = sample(pipe, ["a", "a", "b", "b"], (1, 2, 3, 4)).frames
    torch.testing.assert_close(pairs, single)
    from_one = sample(pipe, "a", num_videos_per_prompt=2, generator=generators(5)[0]).frames
    assert not torch.allclose(from_one[0], from_one[1], atol=1e-3)


def test_output_types(pipe):
    frames = sample(pipe, ["a", "b"], (1, 2)).frames
    pictures = sample(pipe, ["a", "b"], (1, 2), output_type="pil").frames
    assert [len(clip) for clip in pictures] == [4, 4]
    assert pictures[0][0].size == (64, 32)
    latent = sample(pipe, ["a", "b"], (1, 2), output_type="latent").frames
    torch.testing.assert_close(pipe.decode(latent), frames)


def test_callbacks_see_and_change_every_step(pipe):
    calls = []

    def callback(pipeline, step, t, kwargs):
        calls.append((pipeline is pipe, step, kwargs["latents"].shape[1:]))
        return {"latents": torch.zeros_like(kwargs["latents"])}

    latent = sample(pipe, output_type="latent", callback_on_step_end=callback).frames
    shapes = [(4, 4, 8)] * 2 + [(2, 4, 6)] * 2
    assert calls == [(True, i % 2, shape) for i, shape in enumerate(shapes)]
    assert not latent.content.any()
    assert not latent.motion.any()
    assert same(sample(pipe, callback_on_step_end=lambda *_: {}), sample(pipe))


def test_the_progress_bar_counts_the_steps_of_both_models(pipe, capsys):
    pipe.set_progress_bar_config(desc="clips", ascii=True)
    sample(pipe, motion_inference_steps=3)
    assert "clips: 100%" in (err := capsys.readouterr().err)
    assert "5/5" in err


def test_the_progress_bar_counts_every_call_of_a_scheduler_of_second_order(pipe, capsys):
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(desc="clips", ascii=True)
    sample(pipe, num_inference_steps=3)
    assert "8/8" in capsys.readouterr().err  # Heun's step is two calls, but the last; and 3 of DDIM


def test_content_frames_of_another_type_are_animated_too(pipe):
    latent = sample(pipe, output_type="latent").frames
    clip = sample(pipe, content=latent.content)
    assert same(sample(pipe, content=latent.content.double()), clip)


def test_a_pipeline_in_half_precision_takes_any_clip(pipe):
    clip = torch.rand(1, 3, 4, 32, 64) * 2 - 1
    before = pipe.decode(pipe.encode(clip))
    pipe.to(torch.bfloat16)
    latent = pipe.encode(clip)
    assert latent.content.dtype == torch.bfloat16
    torch.testing.assert_close(pipe.decode(latent).float(), before, atol=0.1, rtol=0)


def test_tiling_and_slicing_are_the_codecs(pipe):
    pipe.enable_vae_tiling()
    pipe.enable_vae_slicing()
    assert pipe.codec.tiling
    assert pipe.codec.chunk_size == 1
    pipe.disable_vae_tiling()
    sliced = sample(pipe)
    pipe.disable_vae_slicing()
    assert not pipe.codec.tiling
    assert pipe.codec.chunk_size == 2
    assert same(sample(pipe), sliced)


def test_offload_brings_each_part_in_its_turn(pipe, monkeypatch):
    """On a machine without accelerator the processor stands for one."""
    order = pipe.model_cpu_offload_seq.split("->")
    networks = {n: c for n, c in pipe.components.items() if isinstance(c, torch.nn.Module)}
    assert sorted(order) == sorted(networks)
    before, turns = sample(pipe), []
    bring = CpuOffload.pre_forward

    def record(hook, module, *args, **kwargs):
        turns.append(next(name for name, network in networks.items() if network is module))
        return bring(hook, module, *args, **kwargs)

    monkeypatch.setattr(CpuOffload, "pre_forward", record)
    pipe.enable_model_cpu_offload(device="cpu")
    assert same(sample(pipe), before)
    assert list(dict.fromkeys(turns)) == order
    turns.clear()
    pipe.decode(pipe.encode(torch.zeros(1, 3, 4, 32, 64)))
    assert set(turns) == {"codec", "autoencoder"}


def test_hidden_networks_move_with_their_part(pipe):
    for part in (pipe.codec, pipe.content_conditioner):
        assert next(part.parameters()).device.type == "cpu"  # accelerate asks in this way
        part.to("meta")
        assert {p.device.type for p in part.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_type": "mp4"}, "output_type must be one of pt, np, pil, latent, got 'mp4'"),
        ({"num_videos_per_prompt": 0}, "num_videos_per_prompt must be at least 1, got 0"),
        ({"negative_prompt": ["a", "b"]}, "got 2 negative prompts for 1 conditions"),
        ({"num_videos_per_prompt": 2}, "got 1 generators for 2 conditions"),
        ({"callback_on_step_end_tensor_inputs": ["text"]}, "may hold latents, got text"),
    ],
)
def test_settings_that_cannot_be_are_refused(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        sample(pipe, **options)
