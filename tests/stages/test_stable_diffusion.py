"""The first two stages with Stable Diffusion's networks, as Lightning trains them."""

import warnings

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from cmdvid.models.autoencoder import Autoencoder
from cmdvid.models.conditioning import LabelConditioner
from cmdvid.models.diffusion import Diffusion
from cmdvid.models.motion_dit import MotionDiT
from cmdvid.models.sd_codec import StableDiffusionCodec
from cmdvid.models.sd_text import StableDiffusionText
from cmdvid.models.stable_diffusion import StableDiffusionUNet, stable_diffusion_scheduler
from cmdvid.stages.autoencoder import AutoencoderStage
from cmdvid.stages.content import ContentStage
from cmdvid.stages.motion import MotionStage
from cmdvid.stages.networks import FrozenAutoencoder, load_network, read_checkpoint
from cmdvid.types import ClipBatch

CAPTIONS = ("a dog", "a cat")


def loader() -> DataLoader:
    clips = torch.rand(4, 3, 4, 32, 48) * 2 - 1
    rows = [ClipBatch(clip, CAPTIONS[i % 2], i) for i, clip in enumerate(clips)]
    return DataLoader(rows, batch_size=2)


def train(stage, file) -> str:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_steps=2, accelerator="cpu", enable_model_summary=False, **quiet)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        trainer.fit(stage, loader())
    trainer.save_checkpoint(file, weights_only=False)
    return str(file)


@pytest.fixture(scope="module")
def autoencoder_ckpt(sd_folder, tmp_path_factory) -> str:
    torch.manual_seed(0)
    autoencoder = Autoencoder(4, width=16, depth=1, num_heads=2, motion_channels=2)
    stage = AutoencoderStage(autoencoder, codec=StableDiffusionCodec(sd_folder))
    return train(stage, tmp_path_factory.mktemp("autoencoder") / "last.ckpt")


def test_the_checkpoint_names_the_vae_and_holds_no_weight_of_it(autoencoder_ckpt, sd_folder):
    checkpoint = read_checkpoint(autoencoder_ckpt)
    assert not any(name.startswith("codec.") for name in checkpoint["state_dict"])
    entry = checkpoint["networks"]["codec"]["config"]
    assert entry["model"] == sd_folder
    assert entry["made_by"]["scale"] == 0.5
    frozen = FrozenAutoencoder(autoencoder_ckpt)
    clip = torch.rand(1, 3, 4, 32, 48) * 2 - 1
    assert frozen.decode(frozen.encode(clip)).shape == clip.shape


def test_a_vae_that_has_no_folder_cannot_be_named_by_a_checkpoint(sd_folder):
    codec = StableDiffusionCodec(vae=StableDiffusionCodec(sd_folder).vae)
    stage = AutoencoderStage(Autoencoder(4, width=16, depth=1, num_heads=2), codec=codec)
    with pytest.raises(
        ValueError, match=r"VAE in memory \(vae=\.\.\.\), but a checkpoint names its"
    ):
        stage.on_save_checkpoint({})


def test_content_frames_keep_the_scale_that_the_unet_knows(autoencoder_ckpt):
    frozen = FrozenAutoencoder(autoencoder_ckpt)
    frames = frozen.codec.encode(torch.rand(1, 3, 4, 32, 48) * 2 - 1)
    raw = frozen.autoencoder.encode(frames)
    scaled = frozen.autoencoder.normalize(raw)
    torch.testing.assert_close(scaled.content, raw.content)
    assert not torch.allclose(scaled.motion, raw.motion)


@pytest.mark.parametrize("rank", [None, 2])
def test_the_content_stage_trains_and_its_unet_comes_back(
    autoencoder_ckpt, sd_folder, tmp_path, rank
):
    diffusion = Diffusion(
        StableDiffusionUNet(sd_folder, lora_rank=rank),
        conditioner=StableDiffusionText(sd_folder),
        scheduler=stable_diffusion_scheduler(sd_folder),
    )
    stage = ContentStage(diffusion, autoencoder_ckpt=autoencoder_ckpt)
    file = train(stage, tmp_path / "last.ckpt")
    checkpoint = read_checkpoint(file)
    assert not any("conditioner" in name for name in checkpoint["state_dict"])
    parts = [
        load_network(checkpoint, f"content_{part}", source=file)
        for part in ("denoiser", "conditioner")
    ]
    noisy, t = torch.randn(2, 4, 4, 6), torch.tensor([5, 900])
    averaged = diffusion.averaged[0].eval()
    unet, text = parts
    torch.testing.assert_close(
        unet(noisy, t, text(CAPTIONS)), averaged(noisy, t, diffusion.conditioner(CAPTIONS))
    )


def test_the_content_stage_refuses_a_schedule_that_the_unet_does_not_know(
    autoencoder_ckpt, sd_folder, tmp_path
):
    text = StableDiffusionText(sd_folder)
    diffusion = Diffusion(StableDiffusionUNet(sd_folder), conditioner=text)
    stage = ContentStage(diffusion, autoencoder_ckpt=autoencoder_ckpt)
    with pytest.raises(ValueError, match="predicts v_prediction, but the scheduler asks for eps"):
        train(stage, tmp_path / "last.ckpt")


def test_a_stage_can_compute_activations_twice(autoencoder_ckpt):
    autoencoder = Autoencoder(4, width=16, depth=1, num_heads=2)
    AutoencoderStage(autoencoder, gradient_checkpointing=True)
    assert autoencoder.is_gradient_checkpointing
    denoiser = MotionDiT(channels=4, width=32, depth=1, num_heads=2)
    diffusion = Diffusion(denoiser, conditioner=LabelConditioner(2))
    MotionStage(diffusion, autoencoder_ckpt=autoencoder_ckpt, gradient_checkpointing=True)
    assert denoiser.is_gradient_checkpointing
