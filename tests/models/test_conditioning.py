import copy
import json
import logging

import open_clip
import pytest
import torch

from cmdvid.models.conditioning import LabelConditioner, TextConditioner
from cmdvid.models.null import null_conditions


def test_labels_have_their_own_embeddings_and_so_has_null():
    conditioner = LabelConditioner(3, dim=8)
    embeddings = conditioner(torch.tensor([0, 1, 2, 3]))
    assert torch.cdist(embeddings, embeddings).add(torch.eye(4)).min() > 0
    torch.testing.assert_close(conditioner(null_conditions(conditioner, 1)), embeddings[3:])


def test_captions_are_told_apart_and_equal_ones_are_equal():
    conditioner = TextConditioner(width=16, context_length=16).eval()
    red, blue, again = conditioner(["a red circle", "a blue circle", "a red circle"])
    torch.testing.assert_close(red, again)
    assert not torch.allclose(red, blue)


def test_a_caption_longer_than_the_context_is_cut():
    conditioner = TextConditioner(width=16, context_length=8).eval()
    long, longer = conditioner(["word " * 20, "word " * 200])
    torch.testing.assert_close(long, longer)


def test_a_caption_that_is_cut_is_reported_once(caplog):
    conditioner = TextConditioner(width=16, context_length=8)
    averaged = copy.deepcopy(conditioner)
    with caplog.at_level(logging.WARNING):
        for each in (conditioner, averaged):
            each(["word " * 7, "word " * 6, "short"])
    assert [r.message for r in caplog.records if "cmdvid" in r.name] == [
        f"a caption of 9 tokens is cut to 8: {'word ' * 7}..."
    ]


def test_padding_is_no_part_of_a_caption():
    conditioner = TextConditioner(width=16, context_length=24).eval()
    caption = ["a red circle"]
    before = conditioner(caption)
    with torch.no_grad():
        conditioner.get_parameter("tower.token_embedding.weight")[0] += 1  # the padding's
    torch.testing.assert_close(conditioner(caption), before)


@pytest.mark.parametrize("word", ["small", "red", "circle", "left", "dark"])
def test_a_small_tower_hears_every_word_before_it_has_learned_any(word):
    conditioner = TextConditioner(width=64, num_layers=1, context_length=24).eval()
    caption = "a small red circle moving left on a dark background"
    said, other = conditioner([caption, caption.replace(word, "tree")])
    assert (said - other).norm() > 0.1 * said.norm()


@pytest.fixture
def tiny_clip(tmp_path) -> str:
    """The name of a CLIP that open_clip knows from now on."""
    vision = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / "tiny-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-clip.json")
    return "tiny-clip"


def test_frozen_tower_is_read_from_a_file_and_kept_out_of_the_checkpoint(tmp_path, tiny_clip):
    weights = tmp_path / "tiny.pt"
    clip = open_clip.create_model(tiny_clip)
    torch.save(clip.state_dict(), weights)

    conditioner = TextConditioner(tiny_clip, pretrained=str(weights))
    captions = ["a dog runs", "a cat"]
    expected = clip.encode_text(open_clip.tokenize(captions))
    torch.testing.assert_close(conditioner(captions), expected)
    projection = conditioner._frozen.tower.text_projection  # the trained one: pooled text is in it
    torch.testing.assert_close(projection, clip.text_projection.detach())
    sizes = [conditioner.config[name] for name in ("width", "num_layers", "num_heads")]
    assert sizes == [16, 1, 2]  # the tower's, not what one of our own would have
    assert not conditioner.state_dict()
    assert not list(conditioner.named_parameters())
    assert copy.deepcopy(conditioner)._frozen.tower is conditioner._frozen.tower

    conditioner.save_pretrained(tmp_path / "saved")
    weights.unlink()
    loaded = TextConditioner.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(loaded(captions), expected)
    assert not loaded.state_dict()
    with torch.device("meta"):
        assert TextConditioner(tiny_clip, pretrained="unread").device.type == "meta"


def test_weights_that_are_not_the_towers_are_named(tmp_path, tiny_clip):
    other = tmp_path / "other.pt"
    torch.save({"visual.proj": torch.zeros(1)}, other)
    for pretrained in ("laion9b", str(tmp_path / "absent.pt"), str(other)):
        with pytest.raises(ValueError, match=f"{pretrained}: no weights of tiny-clip's text tower"):
            TextConditioner(tiny_clip, pretrained=pretrained)


def test_wrong_kinds_of_condition_say_what_to_use():
    with pytest.raises(ValueError, match=r"takes class indices, got captions.*TextConditioner"):
        LabelConditioner(3)(["a dog"])
    with pytest.raises(ValueError, match=r"takes captions, got class indices.*LabelConditioner"):
        TextConditioner(width=16)(torch.tensor([1]))
    with pytest.raises(ValueError, match=r"must lie in 0\.\.2 .* got 1\.\.7"):
        LabelConditioner(3)(torch.tensor([1, 7]))
    with pytest.raises(ValueError, match="open_clip knows no model 'ViT-Z'"):
        TextConditioner("ViT-Z")
    for name in ("roberta-ViT-B-32", "ViT-B-16-SigLIP"):
        with pytest.raises(ValueError, match=f"{name} has a text tower or a tokenizer of Hugging"):
            TextConditioner(name)
