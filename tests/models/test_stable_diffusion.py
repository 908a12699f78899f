import copy
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from jsonargparse import ArgumentParser

from cmdvid.models import stable_diffusion
from cmdvid.models.diffusion import Diffusion
from cmdvid.models.sd_text import StableDiffusionText
from cmdvid.models.stable_diffusion import (
    StableDiffusionUNet,
    check_pretrained,
    stable_diffusion_scheduler,
)
from cmdvid.stages.networks import describe, load_network

T = torch.tensor([3, 700])


@pytest.fixture
def inputs() -> tuple[torch.Tensor, ...]:
    return torch.randn(2, 4, 8, 12), T, torch.randn(2, 77, 16)


def changed(unet: StableDiffusionUNet) -> StableDiffusionUNet:
    """The same network with other weights that train, as after some steps."""
    with torch.no_grad():
        for parameter in unet.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return unet


def trained(unet: StableDiffusionUNet) -> set[str]:
    return {name for name, p in unet.named_parameters() if p.requires_grad}


def test_it_is_the_pretrained_unet_and_all_of_it_trains(sd_folder, inputs):
    noisy, t, text = inputs
    unet = StableDiffusionUNet(sd_folder)
    plain = UNet2DConditionModel.from_pretrained(sd_folder, subfolder="unet")
    expected = plain(noisy, t, encoder_hidden_states=text).sample
    torch.testing.assert_close(unet(noisy, t, text), expected)
    assert len(trained(unet)) == len(list(plain.parameters()))
    assert {p.dtype for p in unet.parameters()} == {torch.float32}


@pytest.mark.parametrize("options", [{"channels_last": True}, {"gradient_checkpointing": True}])
def test_options_change_cost_and_nothing_else(sd_folder, inputs, options):
    results = []
    for unet in (StableDiffusionUNet(sd_folder), StableDiffusionUNet(sd_folder, **options)):
        prediction = unet(*inputs)
        prediction.square().mean().backward()
        gradient = unet.unet.conv_in.weight.grad
        results.append((prediction, gradient))
        weights = [unet.unet.conv_in.weight, copy.deepcopy(unet).unet.conv_in.weight]
        last = [w.is_contiguous(memory_format=torch.channels_last) for w in weights]
        assert last == [unet.channels_last] * 2
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-4)


def test_checkpointing_reaches_the_blocks(sd_folder):
    unet = StableDiffusionUNet(sd_folder, gradient_checkpointing=True)
    assert unet.unet.is_gradient_checkpointing
    assert not StableDiffusionUNet(sd_folder).unet.is_gradient_checkpointing


def test_lora_starts_as_the_model_and_trains_nothing_but_lora(sd_folder, inputs):
    plain, unet = StableDiffusionUNet(sd_folder), StableDiffusionUNet(sd_folder, lora_rank=2)
    torch.testing.assert_close(unet(*inputs), plain(*inputs))
    assert trained(unet)
    assert all("lora_" in name for name in trained(unet))
    before = {name: p.clone() for name, p in unet.named_parameters()}
    optimizer = torch.optim.Adam([p for p in unet.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        unet(*inputs).square().mean().backward()
        optimizer.step()
    moved = {name for name, p in unet.named_parameters() if not torch.equal(p, before[name])}
    assert moved == trained(unet)
    assert not torch.allclose(unet(*inputs), plain(*inputs), atol=1e-4)


def test_lora_fuses_into_a_plain_unet(sd_folder, inputs):
    noisy, t, text = inputs
    unet = changed(StableDiffusionUNet(sd_folder, lora_rank=2, channels_last=True))
    plain = unet.plain()
    assert not any("lora" in name for name in plain.state_dict())
    assert plain.state_dict().keys() == StableDiffusionUNet(sd_folder).unet.state_dict().keys()
    fused = plain(noisy, t, encoder_hidden_states=text).sample
    torch.testing.assert_close(fused, unet(*inputs), atol=1e-5, rtol=1e-4)
    assert any("lora" in name for name in unet.state_dict())


@pytest.mark.parametrize(("rank", "shared"), [(None, False), (2, True)])
def test_copies_share_what_is_not_trained(sd_folder, rank, shared):
    unet = StableDiffusionUNet(sd_folder, lora_rank=rank)
    twin = dict(copy.deepcopy(unet).named_parameters())
    for name, parameter in unet.named_parameters():
        assert (twin[name] is parameter) == (shared and not parameter.requires_grad)


@pytest.mark.parametrize("options", [{}, {"lora_rank": 2, "channels_last": True}])
def test_a_checkpoint_rebuilds_it_without_the_folder(sd_folder, inputs, tmp_path, options):
    model = shutil.copytree(Path(sd_folder) / "unet", tmp_path / "model")
    unet = changed(StableDiffusionUNet(str(model), **options)).eval()
    shutil.rmtree(model)
    file = tmp_path / "last.ckpt"
    entry = describe(prefix="x.", network=unet)
    weights = {f"x.{k}": v for k, v in unet.state_dict().items()}
    torch.save({"networks": {"content_denoiser": entry}, "state_dict": weights}, file)
    checkpoint = torch.load(file, weights_only=True)
    loaded = load_network(checkpoint, "content_denoiser", source=file)
    torch.testing.assert_close(loaded(*inputs), unet(*inputs))


@pytest.mark.parametrize("options", [{}, {"lora_rank": 2}, {"channels_last": True}])
def test_save_pretrained_round_trip(sd_folder, inputs, tmp_path, options):
    unet = changed(StableDiffusionUNet(sd_folder, **options)).eval()
    unet.save_pretrained(tmp_path)
    loaded = StableDiffusionUNet.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(*inputs), unet(*inputs))


@pytest.mark.parametrize("rank", [None, 2])
def test_on_meta_it_has_sizes_but_reads_no_weights(sd_folder, rank):
    with torch.device("meta"):
        unet = StableDiffusionUNet(sd_folder, lora_rank=rank)
        noisy, text = torch.empty(1, 4, 8, 12), torch.empty(1, 77, 16)
        assert unet(noisy, torch.zeros(1, dtype=torch.long), text).shape == noisy.shape
    assert {p.device.type for p in unet.parameters()} == {"meta"}


@pytest.mark.parametrize("rank", [None, 4])
def test_diffusion_trains_averages_and_samples_with_captions(sd_folder, rank):
    diffusion = Diffusion(
        StableDiffusionUNet(sd_folder, lora_rank=rank),
        conditioner=StableDiffusionText(sd_folder),
        scheduler=stable_diffusion_scheduler(sd_folder),
        condition_dropout=0.5,
    )
    x, captions = torch.randn(4, 4, 8, 12), ["a dog", "a cat", "a dog", ""]
    optimizer = torch.optim.Adam([p for p in diffusion.parameters() if p.requires_grad], lr=2e-2)
    losses = []
    for step in range(24):
        torch.manual_seed(step % 2)
        optimizer.zero_grad()
        loss = diffusion.loss(x, captions)
        loss.backward()
        optimizer.step()
        diffusion.update_ema()
        losses.append(float(loss.detach()))
    assert sum(losses[-4:]) < 0.95 * sum(losses[:4])
    assert torch.isfinite(diffusion.ema_loss(x, captions))
    sample = diffusion.sample(x, captions, num_inference_steps=2, guidance_scale=3.0)
    assert sample.shape == x.shape
    assert torch.isfinite(sample).all()
    assert not any("text" in name for name in diffusion.state_dict())


def test_the_scheduler_is_the_models_own(sd_folder):
    scheduler = stable_diffusion_scheduler(sd_folder)
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.beta_schedule == "scaled_linear"
    assert scheduler.config.beta_end == 0.012
    assert scheduler.config.steps_offset == 1
    assert scheduler.config.clip_sample is False
    again = load_network(
        {"networks": {"s": describe(prefix="", network=scheduler)}, "state_dict": {}},
        "s",
        source="x",
    )
    torch.testing.assert_close(again.alphas_cumprod, scheduler.alphas_cumprod)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            "is a FlowMatchEulerDiscreteScheduler",
        ),
        ({"beta_schedule": "linear", "prediction_type": "flow"}, "has prediction_type 'flow'"),
    ],
)
def test_a_scheduler_of_another_kind_is_refused(tmp_path, config, message):
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        stable_diffusion_scheduler(str(tmp_path))


def test_a_unet_is_trained_on_what_its_own_model_knows(sd_folder):
    unet = StableDiffusionUNet(sd_folder)
    own = SimpleNamespace(scale=0.5, shift=0.25)
    check_pretrained(unet, own, "v_prediction")
    with pytest.raises(ValueError, match=r"scale 0\.5 and shift 0\.25, but .* scale 0\.13 and shi"):
        check_pretrained(unet, SimpleNamespace(scale=0.13, shift=0.25), "v_prediction")
    with pytest.raises(ValueError, match=r"U-Net predicts v_prediction, but .* asks for epsilon"):
        check_pretrained(unet, own, "epsilon")
    alone = StableDiffusionUNet(str(Path(sd_folder) / "unet"))
    check_pretrained(alone, SimpleNamespace(scale=0.13, shift=0.0), "epsilon")
    alone.register_to_config(model="stable-diffusion-v1-5/stable-diffusion-v1-5")
    with pytest.raises(ValueError, match=r"scale 0\.18215 and shift 0, but"):
        check_pretrained(alone, own, "epsilon")


def test_a_config_can_name_it(sd_folder):
    parser = ArgumentParser()
    parser.add_class_arguments(Diffusion, "diffusion")
    of_models = "cmdvid.models.{}"
    settings = {
        "denoiser": {
            "class_path": of_models.format("stable_diffusion.StableDiffusionUNet"),
            "init_args": {"model": sd_folder, "lora_rank": 2},
        },
        "conditioner": {
            "class_path": of_models.format("sd_text.StableDiffusionText"),
            "init_args": {"model": sd_folder},
        },
        "scheduler": {
            "class_path": of_models.format("stable_diffusion.stable_diffusion_scheduler"),
            "init_args": {"model": sd_folder},
        },
    }
    parsed = parser.parse_object({"diffusion": settings})
    diffusion = parser.instantiate_classes(parsed).diffusion
    assert isinstance(diffusion.scheduler, DDIMScheduler)
    assert diffusion.prediction_type == "v_prediction"


def test_networks_that_do_not_fit_are_named_on_both_sides(sd_folder, tmp_path):
    unet = StableDiffusionUNet(sd_folder)
    text = torch.zeros(2, 77, 16)
    with pytest.raises(ValueError, match="denoises 4 channels, but the content frame has 3"):
        unet(torch.zeros(2, 3, 8, 8), T, text)
    with pytest.raises(ValueError, match="text sequence b n 16, but the text encoder gives 2 77 9"):
        unet(torch.zeros(2, 4, 8, 8), T, text[..., :9])
    with pytest.raises(ValueError, match=r"b n 16, but the text encoder gives 2 16;"):
        unet(torch.zeros(2, 4, 8, 8), T, text[:, 0])
    config = json.loads((Path(sd_folder) / "unet" / "config.json").read_text())
    with pytest.raises(ValueError, match="takes 9 channels and predicts 4, so it is one of inpain"):
        StableDiffusionUNet(unet_config=config | {"in_channels": 9})
    with pytest.raises(ValueError, match=r"needs more than text \(class_embed_type\)"):
        StableDiffusionUNet(unet_config=config | {"class_embed_type": "timestep"})
    with pytest.raises(ValueError, match=r"needs model .* or unet_config"):
        StableDiffusionUNet()
    with pytest.raises(ValueError, match=r"expected unet/config\.json .* found nothing"):
        StableDiffusionUNet(str(tmp_path))


def test_lora_that_cannot_be_says_how(sd_folder, monkeypatch):
    with pytest.raises(ValueError, match="lora_rank must be at least 1, got 0"):
        StableDiffusionUNet(sd_folder, lora_rank=0)
    monkeypatch.setattr(stable_diffusion, "is_peft_available", lambda: False)
    with pytest.raises(ValueError, match=r"lora_rank=4 needs peft: pip install 'cmdvid\[lora\]'"):
        StableDiffusionUNet(sd_folder, lora_rank=4)
