import copy
import logging

import pytest
import torch
from transformers import CLIPTextModel, CLIPTokenizer

from cmdvid.models.null import null_conditions, nullify
from cmdvid.models.sd_text import StableDiffusionText


@pytest.fixture(scope="module")
def text(sd_folder) -> StableDiffusionText:
    return StableDiffusionText(sd_folder)


def test_embedding_is_the_last_hidden_state_of_the_models_own_encoder(text, sd_folder):
    captions = ["a red circle", "two dogs " * 40]
    tokenizer = CLIPTokenizer.from_pretrained(sd_folder, subfolder="tokenizer")
    encoder = CLIPTextModel.from_pretrained(sd_folder, subfolder="text_encoder").eval()
    tokens = tokenizer(
        captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    )
    embedding = text(captions)
    assert embedding.shape == (2, 77, text.dim)
    torch.testing.assert_close(embedding, encoder(tokens.input_ids).last_hidden_state)


def test_equal_captions_are_read_once_and_come_back_in_place(text, monkeypatch):
    read = []
    forward = text.text_encoder.forward
    monkeypatch.setattr(
        text.text_encoder, "forward", lambda ids: read.append(len(ids)) or forward(ids)
    )
    first, second, third = text(["a dog", "", "a dog"])
    assert read == [2]
    torch.testing.assert_close(first, third)
    assert not torch.allclose(first, second)


def test_null_is_the_empty_caption(text):
    assert null_conditions(text, 2) == ["", ""]
    assert nullify(["a", "b"], torch.tensor([False, True]), conditioner=text) == ["a", ""]


def test_a_caption_that_is_cut_is_reported_once(text, caplog):
    with caplog.at_level(logging.WARNING):
        text(["word " * 30])
        text(["word " * 30, "short"])
    assert [r.message for r in caplog.records if "cmdvid" in r.name] == [
        f"a caption of 122 tokens is cut to 77: {'word ' * 12}..."
    ]


def test_nothing_of_it_is_trained_saved_or_copied(text):
    assert not list(text.named_parameters())
    assert not text.state_dict()
    assert copy.deepcopy(text).text_encoder is text.text_encoder
    assert not text(["a"]).requires_grad


def test_it_moves_and_casts_though_it_is_no_submodule(sd_folder):
    text = StableDiffusionText(sd_folder).to(torch.float64)
    assert text.dtype == torch.float64
    assert text(["a dog"]).dtype == torch.float64


def test_save_pretrained_round_trip(text, tmp_path):
    text.save_pretrained(tmp_path)
    loaded = StableDiffusionText.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(["a dog"]), text(["a dog"]))


def test_errors_name_both_sides(text, tmp_path):
    with pytest.raises(ValueError, match="takes captions, got class indices"):
        text(torch.tensor([1]))
    (tmp_path / "readme.txt").touch()
    with pytest.raises(ValueError, match=r"expected tokenizer/.*found readme\.txt"):
        StableDiffusionText(str(tmp_path))
