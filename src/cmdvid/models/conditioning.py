"""Class labels and captions to embeddings; the null condition that guidance needs."""

from collections.abc import Collection, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import einsum
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cmdvid.models.captions import CutNotice, distinct, only_captions
from cmdvid.models.frozen import FrozenTower, in_dtype
from cmdvid.types import Condition

TOWER = "tower.safetensors"  # a frozen tower in the folder of a saved TextConditioner


class LabelConditioner(ModelMixin, ConfigMixin):
    """A learned vector for each class, and one more for the null condition.

    Args:
        num_classes: Number of classes; the null condition is the index after the last.
        dim: Width of the embedding.
    """

    @register_to_config
    def __init__(self, num_classes: int, *, dim: int = 256):
        super().__init__()
        self.num_classes, self.dim = num_classes, dim
        self.null = num_classes
        self.embedding = nn.Embedding(num_classes + 1, dim)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, condition: Condition) -> Float[Tensor, "b {self.dim}"]:
        """Embed class indices; the null index is allowed.

        Raises:
            ValueError: If captions are given, or an index that is no class.
        """
        if not isinstance(condition, Tensor):
            raise ValueError(
                f"a LabelConditioner takes class indices, got captions such as {condition[:1]}; "
                "pick cmdvid.models.conditioning.TextConditioner for captioned data"
            )
        num_classes = self.num_classes
        if (
            condition.numel()
            and not 0 <= int(condition.min()) <= int(condition.max()) <= num_classes
        ):
            raise ValueError(
                f"class indices must lie in 0..{num_classes - 1} ({num_classes} is the null "
                f"condition), got {condition.min():d}..{condition.max():d}"
            )
        return self.embedding(condition.to(self.embedding.weight.device))


class TextConditioner(ModelMixin, ConfigMixin):
    """The pooled caption embedding of an open_clip text transformer.

    With ``pretrained`` the tower is frozen, read from the hub or disk, and left out of our
    checkpoints. Without it a tower is trained with the denoiser. The null condition is the empty
    caption in both cases. CLIP's towers are pooled at the last token. Those of a size of our own
    give the mean over all tokens: a denoiser that does not yet need a word teaches attention to
    pass over it, and then the last token never hears of it again.

    Args:
        model_name: An open_clip model whose text tower is used, "ViT-H-14" in the paper; if
            given, it sets the tower's size.
        pretrained: open_clip's tag of weights, or a file.
        width: Width of a tower trained from scratch, and of its embedding.
        num_layers: Its number of layers.
        num_heads: Its number of heads.
        context_length: Tokens that a caption is cut or padded to; at most 77 for ``model_name``.
    """

    null = ""

    @register_to_config
    def __init__(
        self,
        model_name: str | None = None,
        *,
        pretrained: str | None = None,
        width: int = 64,
        num_layers: int = 2,
        num_heads: int = 4,
        context_length: int = 77,
    ):
        super().__init__()
        if pretrained and not model_name:
            raise ValueError(f"pretrained={pretrained!r} needs model_name, such as 'ViT-H-14'")
        size = {"width": width, "layers": num_layers, "heads": num_heads}
        if model_name:
            tower: Any = _named_tower(model_name, pretrained)
            # its own sizes are the settings, or two equal towers would look different to a cache
            layers = len(tower.transformer.resblocks)
            sizes = {"width": tower.width, "num_layers": layers, "num_heads": tower.heads}
            self.register_to_config(**sizes)
        else:
            tower = _small_tower(width, {**size, "context_length": context_length})
        self.dim = cast(int, tower.output_dim)
        self.context_length = min(context_length, cast(int, tower.context_length))
        self.trainable = pretrained is None
        self.tower = tower if self.trainable else None
        self._frozen = None if self.trainable else FrozenTower(tower)
        self._cut = CutNotice()

    def forward(self, condition: Condition) -> Float[Tensor, "b {self.dim}"]:
        """Embed captions; a longer one than the context is cut, and reported.

        Raises:
            ValueError: If class indices are given.
        """
        given = only_captions(condition, reader=type(self).__name__)
        if self._frozen is None:
            return self._embed(given)
        captions, index = distinct(given)
        with torch.no_grad():
            return self._embed(captions)[index]

    def _embed(self, captions: Sequence[str]) -> Float[Tensor, "b e"]:
        tokens = self._tokens(captions).to(self.device)
        embedding = self._weights(tokens)
        if embedding.ndim == 2:
            return embedding
        said = (tokens != 0).to(embedding)  # not the padding
        return einsum(embedding, said / said.sum(1, keepdim=True), "b n e, b n -> b e")

    def _tokens(self, captions: Sequence[str]) -> Int[Tensor, "b n"]:
        length, tokenizer = self.context_length, _tokenizer()
        tokens = tokenizer(list(captions), context_length=length)
        for caption, full in zip(captions, tokens[:, -1].tolist(), strict=True):
            if full:  # start and end are no part of what encode gives
                self._cut(caption, num_tokens=len(tokenizer.encode(caption)) + 2, length=length)
        return tokens

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """A frozen tower's too, for whoever asks this very module; it registers none of them."""
        return self._weights.parameters(recurse)

    def _apply(self, fn: Any, recurse: bool = True) -> "TextConditioner":
        if self._frozen is not None:  # moves and casts with us though it is no submodule
            self._frozen.tower._apply(fn)
        return super()._apply(fn, recurse)

    @property
    def device(self) -> torch.device:
        return next(self._weights.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self._weights.parameters()).dtype

    @property
    def _weights(self) -> nn.Module:
        return cast(nn.Module, self.tower if self._frozen is None else self._frozen.tower)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write configuration and tower, a frozen one too."""
        if self._frozen is None:
            return super().save_pretrained(save_directory, **kwargs)
        self.save_config(save_directory)
        weights = {k: v.contiguous() for k, v in self._frozen.tower.state_dict().items()}
        save_file(weights, Path(save_directory) / TOWER)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> "TextConditioner":
        """Read what save_pretrained wrote, a frozen tower from there too."""
        folder = str(pretrained_model_name_or_path)
        config: Any = cls.load_config(folder)
        if not config["pretrained"]:
            return super().from_pretrained(folder, **kwargs)
        conditioner: Any = cls.from_config({**config, "pretrained": folder})
        return in_dtype(conditioner, kwargs)


@cache
def _tokenizer() -> Any:
    import open_clip

    return open_clip.SimpleTokenizer()


def _tower(output_dim: int, size: dict[str, Any], *, quick_gelu: bool = False) -> nn.Module:
    from open_clip.transformer import QuickGELU, TextTransformer

    activation: Any = QuickGELU if quick_gelu else nn.GELU
    return TextTransformer(output_dim=output_dim, act_layer=activation, **size)


def _small_tower(width: int, size: dict[str, Any]) -> nn.Module:
    """A tower to train in few steps; it starts with louder words than CLIP's initialisation.

    With CLIP's own, "circle" and "square" end 4 % of the embedding's norm apart, with this one 32 %
    (600 steps of the demo's content model).
    """
    tower: Any = _tower(width, {**size, "pool_type": "none"})
    nn.init.normal_(tower.token_embedding.weight)
    nn.init.normal_(tower.text_projection, std=4 * width**-0.5)
    return tower


def _named_tower(model_name: str, pretrained: str | None) -> nn.Module:
    import open_clip

    config = open_clip.get_model_config(model_name)
    if config is None:
        raise ValueError(
            f"open_clip knows no model {model_name!r}; see open_clip.list_models() for its names"
        )
    text = config["text_cfg"]
    if "hf_model_name" in text or "hf_tokenizer_name" in text:
        raise ValueError(
            f"{model_name} has a text tower or a tokenizer of Hugging Face; pick a CLIP such as "
            "ViT-H-14"
        )
    tower = _tower(config["embed_dim"], text, quick_gelu=config.get("quick_gelu", False))
    if pretrained and torch.get_default_device().type != "meta":
        wanted = tower.state_dict().keys()
        try:
            tower.load_state_dict(_pretrained(model_name, pretrained, wanted=wanted))
        except Exception as error:  # each of open_clip's readers has its own
            what = " ".join(str(error).split())[:200] or type(error).__name__
            raise ValueError(
                f"{pretrained}: no weights of {model_name}'s text tower: {what}"
            ) from error
    return tower


def _pretrained(model_name: str, pretrained: str, *, wanted: Collection[str]) -> dict[str, Tensor]:
    """The text tower's share of a whole CLIP, its trained projection included; or what we saved."""
    if (ours := Path(pretrained) / TOWER).is_file():
        return load_file(ours)
    import open_clip

    clip = open_clip.create_model(model_name, pretrained=pretrained)
    return {k: v for k, v in clip.state_dict().items() if k in wanted}
