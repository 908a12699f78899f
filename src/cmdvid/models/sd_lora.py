"""LoRA files for Stable Diffusion, those whose text part cannot be loaded included."""

import logging
from importlib.metadata import version
from typing import Any

from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin
from diffusers.utils.import_utils import is_peft_version

logger = logging.getLogger(__name__)


class LoraLoader(StableDiffusionLoraLoaderMixin):
    """Diffusers' loader; it leaves out a text part that the installed transformers cannot take.

    Diffusers loads the U-Net's part first, so that an error of transformers in the second would
    leave a pipeline that is half loaded.
    """

    def load_lora_weights(
        self, source: Any, adapter_name: str | None = None, hotswap: bool = False, **kwargs: Any
    ) -> None:
        """Add a LoRA of Stable Diffusion; one of the content model's own training is merged first.

        Args:
            source: File (.safetensors), folder, hub id or state dict; of peft's names, diffusers',
                or those of kohya's scripts.
            adapter_name: Name to tell several apart by.
            hotswap: Replace the weights of the adapter of that name.
            kwargs: What diffusers' ``lora_state_dict`` takes, such as weight_name.

        Raises:
            ValueError: If the content model is not Stable Diffusion's U-Net.
        """
        pipe: Any = self
        if pipe.unet is None:
            name = type(pipe.content_denoiser).__name__
            raise ValueError(
                f"the content denoiser is a {name}; a LoRA needs a StableDiffusionUNet"
            )
        pipe.content_denoiser.merge_lora()
        safe = {"use_safetensors": True} | kwargs
        super().load_lora_weights(source, adapter_name, hotswap, **safe)

    @classmethod
    def load_lora_into_text_encoder(
        cls, state_dict: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """Add the text encoder's part, or say why it is left out.

        Raises:
            ValueError: If the file holds no other part; then nothing was added.
        """
        parts = {name.partition(".")[0] for name in state_dict}
        if cls.text_encoder_name not in parts or (needed := missing_peft()) is None:
            return super().load_lora_into_text_encoder(state_dict, *args, **kwargs)
        why = (
            f"transformers {version('transformers')} adds no LoRA to a text encoder by peft "
            f"{version('peft')}, it needs {needed}"
        )
        if cls.unet_name not in parts:
            raise ValueError(f"this LoRA is one of the text encoder alone, and {why}")
        logger.warning("the LoRA's text encoder part is left out, its U-Net part loaded: %s", why)


def missing_peft() -> str | None:
    """The version of peft that transformers wants, if an older one is installed."""
    from transformers.integrations import peft

    needed = getattr(peft, "MIN_PEFT_VERSION", None)
    return needed if needed is not None and is_peft_version("<", needed) else None
