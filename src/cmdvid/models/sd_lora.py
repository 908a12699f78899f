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
