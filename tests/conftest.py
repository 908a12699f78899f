"""What all tests share: shapes in signatures are checked, nothing asks the network, few threads."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports the hub's client
os.environ.setdefault("OMP_NUM_THREADS", "2")

from jaxtyping import install_import_hook

# Before any test imports cmdvid, so that every signature is checked; an int is a good float.
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
install_import_hook("cmdvid", CHECKER)

import pytest  # noqa: E402
import torch  # noqa: E402


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A whole Stable Diffusion model, tiny and random, written by diffusers itself."""
    from diffusers import (
        AutoencoderKL,
        PNDMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 514, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": 512, "eos_token_id": 513}
    text = CLIPTextConfig(hidden_size=16, intermediate_size=16, **sizes, **ends)
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8,) * 4,
            norm_num_groups=4,
            latent_channels=4,
            scaling_factor=0.5,
            shift_factor=0.25,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=_tokenizer(),
        unet=UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            norm_num_groups=4,
            cross_attention_dim=16,
            attention_head_dim=4,
        ),
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            skip_prk_steps=True,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder = tmp_path_factory.mktemp("stable-diffusion")
    pipeline.save_pretrained(folder)
    return str(folder)


def _tokenizer():
    """CLIP's tokenizer over single bytes: alone, and at the end of a word."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: place for place, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)


@pytest.fixture
def make_sd_pipeline(sd_folder: str):
    """A function that joins the tiny Stable Diffusion and a random motion model."""
    from diffusers import DDIMScheduler

    from cmdvid import CMDPipeline
    from cmdvid.models.autoencoder import Autoencoder
    from cmdvid.models.conditioning import TextConditioner
    from cmdvid.models.motion_dit import MotionDiT
    from cmdvid.models.sd_codec import StableDiffusionCodec
    from cmdvid.models.sd_text import StableDiffusionText
    from cmdvid.models.stable_diffusion import StableDiffusionUNet, stable_diffusion_scheduler

    def make(**unet) -> CMDPipeline:
        motion = MotionDiT(
            channels=4, motion_channels=2, width=32, depth=1, num_heads=4, condition_dim=16
        )
        for parameter in motion.parameters():  # those that start at zero would hide inputs
            torch.nn.init.normal_(parameter, std=0.1)
        pipe = CMDPipeline(
            autoencoder=Autoencoder(4, width=16, depth=1, num_heads=2, motion_channels=2),
            codec=StableDiffusionCodec(sd_folder),
            content_denoiser=StableDiffusionUNet(sd_folder, **unet).eval(),
            content_conditioner=StableDiffusionText(sd_folder),
            content_scheduler=stable_diffusion_scheduler(sd_folder),
            motion_denoiser=motion,
            motion_conditioner=TextConditioner(width=16, num_layers=1, num_heads=2),
            motion_scheduler=DDIMScheduler(clip_sample=False),
            content_shape=[4, 4, 8],
            motion_shape=[2, 4, 6],
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make
