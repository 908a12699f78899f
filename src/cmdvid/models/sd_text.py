"""Captions as Stable Diffusion reads them: the sequence of its text encoder's last hidden states.

Stable Diffusion 2.x reads with OpenCLIP's ViT-H/14 text tower without its last layer, so its
folder holds all that the content model needs; the motion model's pooled embedding needs the whole
tower and its trained projection (TextConditioner).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn

from cmdvid.models.captions import CutNotice, distinct, only_captions
from cmdvid.models.frozen import FrozenTower, in_dtype, refuse_variant
from cmdvid.models.sd_folder import load_part, locate, on_meta
from cmdvid.types import Condition


class StableDiffusionText(ModelMixin, ConfigMixin):
    """Tokenizer and text encoder of a Stable Diffusion model, frozen and kept out of checkpoints.

    The null condition is the empty caption.

    Args:
        model: Folder or hub id of the whole model.
    """

    null = ""

    @register_to_config
    def __init__(self, model: str):
        super().__init__()
        from transformers import CLIPTextModel, CLIPTokenizer

        self.tokenizer: Any = None  # nothing is read on the meta device
        if not on_meta():
            where: Any = locate(model, "tokenizer")
            self.tokenizer = CLIPTokenizer.from_pretrained(**where)
        self._frozen = FrozenTower(load_part(CLIPTextModel, model, "text_encoder"))
        self.dim: int = self.text_encoder.config.hidden_size
        self._cut = CutNotice()

    @property
    def text_encoder(self) -> Any:
        """The CLIPTextModel."""
        return self._frozen.tower

    @property
    def device(self) -> torch.device:
        return self.text_encoder.device

    @property
    def dtype(self) -> torch.dtype:
        return self.text_encoder.dtype

    @torch.no_grad()
    def forward(self, condition: Condition) -> Float[Tensor, "b n {self.dim}"]:
        """Embed captions, equal ones once; a longer one than 77 tokens is cut, and reported.

        Raises:
            ValueError: If class indices are given.
        """
        captions, index = distinct(only_captions(condition, reader=type(self).__name__))
        tokens = self._tokens(captions).to(self.device)
        return self.text_encoder(tokens).last_hidden_state[index]

    def _tokens(self, captions: list[str]) -> Tensor:
        length = self.tokenizer.model_max_length
        padding: Any = {"padding": "max_length", "max_length": length, "truncation": False}
        ids = self.tokenizer(captions, **padding, verbose=False).input_ids
        for caption, tokens in zip(captions, ids, strict=True):
            self._cut(caption, num_tokens=len(tokens), length=length)
        end = self.tokenizer.eos_token_id
        return torch.tensor([t if len(t) <= length else [*t[: length - 1], end] for t in ids])

    def __deepcopy__(self, memo: dict) -> "StableDiffusionText":
        return self  # nothing in it ever changes

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The hidden weights, for whoever asks this very module; it registers none."""
        return self.text_encoder.parameters()

    def _apply(self, fn: Any, recurse: bool = True) -> "StableDiffusionText":
        self.text_encoder._apply(fn)
        return super()._apply(fn, recurse)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write the configuration, and tokenizer and text encoder below it."""
        refuse_variant(kwargs, save_directory)
        self.save_config(save_directory)
        self.tokenizer.save_pretrained(Path(save_directory) / "tokenizer")
        self.text_encoder.save_pretrained(Path(save_directory) / "text_encoder")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> "StableDiffusionText":
        """Read what save_pretrained wrote, wherever the folder is now; a whole model works too.

        Args:
            pretrained_model_name_or_path: That folder.
            kwargs: What diffusers tells all parts of a pipeline; ``torch_dtype`` counts.
        """
        refuse_variant(kwargs, pretrained_model_name_or_path)
        return in_dtype(cls(str(pretrained_model_name_or_path)), kwargs)
