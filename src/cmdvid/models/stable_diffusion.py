"""Stable Diffusion's U-Net as content denoiser, fine-tuned without a new parameter (CMD 3.2)."""

import copy
import math
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.utils.import_utils import is_peft_available
from jaxtyping import Float, Real
from torch import Tensor

from cmdvid.models.sd_architectures import known_config
from cmdvid.models.sd_folder import load_part, read_config

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]  # where LoRA goes, as in diffusers' own training
PREDICTIONS = ("epsilon", "v_prediction", "sample")
EXTRA_INPUTS = ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type")


class StableDiffusionUNet(ModelMixin, ConfigMixin):
    """A UNet2DConditionModel behind the interface of ContentDiT; the condition is a text sequence.

    All weights train, in fp32, unless ``lora_rank`` is given: then those of LoRA alone, and copies
    (the moving average is one) share the rest. A checkpoint holds all weights and the U-Net's
    configuration, so the model's folder is needed for the first training only.

    Args:
        model: Folder or hub id of a whole Stable Diffusion model, or of a UNet2DConditionModel.
        lora_rank: Rank of LoRA on all attention; none trains the U-Net itself, as the paper does.
        gradient_checkpointing: Compute activations twice instead of keeping them.
        channels_last: Memory layout that convolutions in half precision are fastest with.
        unet_config: The U-Net's configuration: it is then built of that, and no weights are read.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        model: str | None = None,
        *,
        lora_rank: int | None = None,
        gradient_checkpointing: bool = False,
        channels_last: bool = False,
        unet_config: dict[str, Any] | None = None,
    ):
        super().__init__()
        if model is None and unet_config is None:
            raise ValueError("a StableDiffusionUNet needs model (folder or hub id) or unet_config")
        unet: Any = (
            UNet2DConditionModel.from_config(unet_config)
            if unet_config is not None
            else load_part(UNet2DConditionModel, str(model), "unet")
        )
        plain = {k: v for k, v in unet.config.items() if not k.startswith("_")}
        _check_inputs(plain, source=model or "unet_config")
        self.register_to_config(unet_config=plain)
        self.channels_last = channels_last
        self.unet = unet.train()
        if lora_rank is not None:
            add_lora(self.unet, lora_rank)
        if gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        if channels_last:
            self.unet.to(memory_format=torch.channels_last)

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Any = None) -> None:
        """Let the U-Net compute activations twice; diffusers' own would ask us for our setting."""
        self.unet.enable_gradient_checkpointing(gradient_checkpointing_func)

    def forward(
        self,
        noisy: Float[Tensor, "b c h w"],
        t: Real[Tensor, " b"],
        condition: Float[Tensor, "b ..."],
    ) -> Float[Tensor, "b c h w"]:
        """Predict the noise (or velocity) in a content frame (CMD Eq. 7).

        Args:
            noisy: Content frames of the U-Net's own number of channels.
            t: Diffusion steps; some schedulers have some between two.
            condition: Text as a sequence, ``b n d``.

        Raises:
            ValueError: If content frames have other channels than the U-Net, or the text another
                width.
        """
        config = self.unet.config
        if noisy.shape[1] != config.in_channels:
            raise ValueError(
                f"this U-Net denoises {config.in_channels} channels, but the content frame has "
                f"{noisy.shape[1]}; does the codec belong to the same model?"
            )
        if condition.ndim != 3 or condition.shape[-1] != config.cross_attention_dim:
            raise ValueError(
                f"this U-Net attends to a text sequence b n {config.cross_attention_dim}, but the "
                f"text encoder gives {' '.join(map(str, condition.shape))}; take the one of the "
                "same model (cmdvid.models.sd_text.StableDiffusionText)"
            )
        if self.channels_last:
            noisy = noisy.contiguous(memory_format=torch.channels_last)
        return self.unet(noisy, t, encoder_hidden_states=condition).sample

    def plain(self) -> UNet2DConditionModel:
        """A copy of the U-Net as diffusers knows it, with LoRA added to its weights."""
        unet: Any = copy.deepcopy(self.unet).to(memory_format=torch.contiguous_format)
        if self.config["lora_rank"] is not None:
            _fuse(unet)
        return unet

    def merge_lora(self) -> None:
        """Add its own LoRA to its weights, in place: from then on it is a U-Net without.

        Not for a network in training, whose copies share those weights.
        """
        if self.config["lora_rank"] is not None:
            _fuse(self.unet)
            self.register_to_config(lora_rank=None)

    def __deepcopy__(self, memo: dict) -> "StableDiffusionUNet":
        memo.update({id(p): p for p in self.parameters() if not p.requires_grad and self._trains})
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__dict__.update({k: copy.deepcopy(v, memo) for k, v in self.__dict__.items()})
        return new

    @property
    def _trains(self) -> bool:
        return any(p.requires_grad for p in self.parameters())


def add_lora(unet: Any, rank: int) -> None:
    """Freeze a U-Net and add trainable low-rank matrices to its attention; at first they are zero.

    Raises:
        ValueError: If the rank is no positive number, or peft is not installed.
    """
    if rank < 1:
        raise ValueError(f"lora_rank must be at least 1, got {rank}; leave it out to train all")
    if not is_peft_available():
        raise ValueError(f"lora_rank={rank} needs peft: pip install 'cmdvid[lora]'")
    from peft import LoraConfig

    unet.requires_grad_(False)
    unet.add_adapter(
        LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=ATTENTION)
    )


def _fuse(unet: Any) -> None:
    unet.fuse_lora()
    unet.unload_lora()


def stable_diffusion_scheduler(model: str) -> DDIMScheduler:
    """The noise schedule that a Stable Diffusion model was trained with, for DDIM.

    Betas, prediction type (2.1-base predicts noise, 2.1 velocity) and offsets are the model's own.
    Samples are never clipped: its latents have no bounds.

    Args:
        model: Folder or hub id of the model, or of its scheduler.

    Raises:
        ValueError: If there is none, or it is none of noise that betas describe.
    """
    config = read_config(model, "scheduler") | {"clip_sample": False}
    name, predicted = config.get("_class_name"), config.get("prediction_type", "epsilon")
    if not (config.get("beta_schedule") or config.get("trained_betas")):
        raise ValueError(
            f"{model}: its scheduler is a {name} with neither beta_schedule nor trained_betas; "
            "needed is the schedule of a Stable Diffusion 1.x or 2.x"
        )
    if predicted not in PREDICTIONS:
        raise ValueError(
            f"{model}: its scheduler, a {name}, has prediction_type {predicted!r}; "
            f"known are {', '.join(PREDICTIONS)}"
        )
    known, *_ = DDIMScheduler.extract_init_dict(config)
    return DDIMScheduler(**known)


def check_pretrained(denoiser: Any, codec: Any, prediction_type: str) -> None:
    """See that a U-Net is trained on what its whole model knows: latents and what is predicted.

    Nothing is asked if it is no StableDiffusionUNet, or of a model that is not whole or not there
    any more.

    Args:
        denoiser: The content denoiser.
        codec: What makes its frames.
        prediction_type: What it is trained to predict.

    Raises:
        ValueError: If the VAE's scale or shift, or the prediction type, is another one.
    """
    model = denoiser.config["model"] if isinstance(denoiser, StableDiffusionUNet) else None
    if model is None:
        return
    vae, scheduler = _config_of(model, "vae"), _config_of(model, "scheduler")
    if vae and vae.get("_class_name", "AutoencoderKL") == "AutoencoderKL":
        factors = vae.get("scaling_factor", 0.18215), vae.get("shift_factor") or 0.0
        found = getattr(codec, "scale", 1.0), getattr(codec, "shift", 0.0)
        if not all(map(math.isclose, factors, found)):
            raise ValueError(
                f"{model}: its U-Net knows latents of scale {factors[0]:g} and shift "
                f"{factors[1]:g}, but the autoencoder was trained on a {type(codec).__name__} of "
                f"scale {found[0]:g} and shift {found[1]:g}; take both of the same model"
            )
    predicted = (scheduler or {}).get("prediction_type", "epsilon")
    if scheduler and predicted != prediction_type:
        raise ValueError(
            f"{model}: its U-Net predicts {predicted}, but the scheduler asks for "
            f"{prediction_type}; take cmdvid.models.stable_diffusion.stable_diffusion_scheduler"
        )


def _config_of(model: str, part: str) -> dict[str, Any] | None:
    try:
        return known_config(model, part) or read_config(model, part)
    except ValueError:
        return None


def _check_inputs(config: dict[str, Any], *, source: str) -> None:
    channels, predicted = config["in_channels"], config["out_channels"]
    if channels != predicted:
        raise ValueError(
            f"{source}: its U-Net takes {channels} channels and predicts {predicted}, so it is one "
            "of inpainting or upscaling; needed is one that takes what it predicts"
        )
    if extra := [name for name in EXTRA_INPUTS if config.get(name)]:
        raise ValueError(
            f"{source}: its U-Net needs more than text ({', '.join(extra)}), as Stable Diffusion "
            "XL does; 1.x and 2.x can be content models"
        )
