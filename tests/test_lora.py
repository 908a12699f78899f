"""LoRA files made for Stable Diffusion, on a content model that is one."""

import logging
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from cmdvid import CMDPipeline


@pytest.fixture
def pipe(make_sd_pipeline) -> CMDPipeline:
    return make_sd_pipeline()


def sample(pipe):
    generator = torch.Generator().manual_seed(1)
    return pipe("a dog", num_inference_steps=2, generator=generator)


def same(one, other) -> bool:
    return torch.allclose(one.frames, other.frames, atol=1e-5, rtol=0)


def write_lora(sd_folder: str, folder: Path, **targets: list[str]) -> Path:
    """A LoRA file as diffusers' own training scripts write it."""
    image = StableDiffusionPipeline.from_pretrained(sd_folder, safety_checker=None)
    weights = {}
    for part, names in targets.items():
        network = getattr(image, part)
        network.add_adapter(LoraConfig(r=2, target_modules=names))
        for name, parameter in network.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.5)
        weights[f"{part}_lora_layers"] = get_peft_model_state_dict(network, adapter_name="default")
    StableDiffusionPipeline.save_lora_weights(folder, **weights)
    return folder / "pytorch_lora_weights.safetensors"


@pytest.fixture
def lora(sd_folder, tmp_path) -> Path:
    return write_lora(sd_folder, tmp_path, unet=["to_q", "to_v"])


def test_a_lora_file_loads_fuses_and_unloads(pipe, lora, tmp_path):
    before = sample(pipe)
    pipe.load_lora_weights(lora.parent, weight_name=lora.name)
    with pytest.raises(ValueError, match=r"LoRA is not saved: fuse_lora\(\), then"):
        pipe.save_pretrained(tmp_path / "lost")
    loaded = sample(pipe)
    assert not torch.allclose(loaded.frames, before.frames, atol=1e-3)
    pipe.fuse_lora()
    assert same(sample(pipe), loaded)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert same(sample(pipe), before)
    pipe.load_lora_weights(str(lora))
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert same(sample(pipe), loaded)
    pipe.save_pretrained(tmp_path / "fused")
    again = CMDPipeline.from_pretrained(tmp_path / "fused")
    again.set_progress_bar_config(disable=True)
    assert same(sample(again), loaded)


def test_a_lora_does_to_content_frames_what_it_does_to_images(pipe, lora, sd_folder):
    image = StableDiffusionPipeline.from_pretrained(sd_folder, safety_checker=None)
    for each in (image, pipe):
        each.load_lora_weights(str(lora))
    noisy, t = torch.randn(1, 4, 4, 8), torch.tensor([500])
    ids = pipe.content_conditioner._tokens(["a dog"])
    with torch.no_grad():
        text = image.text_encoder(ids).last_hidden_state
        torch.testing.assert_close(pipe.content_conditioner(["a dog"]), text)
        expected = image.unet(noisy, t, text).sample
        torch.testing.assert_close(pipe.content_denoiser(noisy, t, text), expected)


def kohya(weights: dict[str, torch.Tensor], alpha: float) -> dict[str, torch.Tensor]:
    """The same LoRA in the names of kohya's scripts, scaled by ``alpha`` over its rank."""
    renamed = {}
    for name, value in weights.items():
        place, kind, _ = name.removeprefix("unet.").rsplit(".", 2)
        module = f"lora_unet_{place.replace('.', '_')}"
        renamed[f"{module}.{'lora_down' if kind == 'lora_A' else 'lora_up'}.weight"] = value
        renamed[f"{module}.alpha"] = torch.tensor(alpha)
    return renamed


def test_a_lora_of_kohyas_scripts_does_the_same_by_its_own_alpha(pipe, lora, tmp_path):
    weights, before = load_file(lora), sample(pipe)
    halved = {k: v / 2 if "lora_B" in k else v for k, v in weights.items()}
    pipe.load_lora_weights(halved)
    expected = sample(pipe)
    pipe.unload_lora_weights()
    save_file(kohya(weights, alpha=1.0), tmp_path / "kohya.safetensors")  # of rank 2
    pipe.load_lora_weights(str(tmp_path / "kohya.safetensors"))
    assert same(sample(pipe), expected)
    assert not same(expected, before)


def test_a_loaded_lora_comes_on_top_of_the_one_of_training(make_sd_pipeline, lora):
    pipe = make_sd_pipeline(lora_rank=2)
    for name, parameter in pipe.unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    before = sample(pipe)
    pipe.load_lora_weights(str(lora))
    assert not torch.allclose(sample(pipe).frames, before.frames, atol=1e-3)
    pipe.unload_lora_weights()
    assert same(sample(pipe), before)


def test_a_text_part_that_cannot_be_loaded_is_left_out_and_named(pipe, lora, caplog, monkeypatch):
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "99.0")
    place = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_{}.weight"
    text = {place.format("A"): torch.randn(2, 16), place.format("B"): torch.randn(16, 2)}
    before = sample(pipe)
    with pytest.raises(ValueError, match=r"text encoder alone, and transformers .* needs 99\.0"):
        pipe.load_lora_weights(text)
    assert same(sample(pipe), before)
    with caplog.at_level(logging.WARNING):
        pipe.load_lora_weights(load_file(lora) | text)
    assert "text encoder part is left out" in caplog.text
    assert f"by peft {version('peft')}, it needs 99.0" in caplog.text
    assert not getattr(pipe.text_encoder, "peft_config", None)
    assert not same(sample(pipe), before)
    pipe.unload_lora_weights()
    assert same(sample(pipe), before)


def test_a_lora_of_the_text_encoder_loads_too(pipe, sd_folder, tmp_path):
    pytest.importorskip(
        "peft", minversion="0.22", reason="transformers adds no adapter by an older"
    )
    file = write_lora(sd_folder, tmp_path, text_encoder=["q_proj", "v_proj"])
    before = sample(pipe)
    pipe.load_lora_weights(str(file))
    loaded = sample(pipe)
    assert not same(loaded, before)
    pipe.fuse_lora()
    assert same(sample(pipe), loaded)
