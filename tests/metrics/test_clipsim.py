import json

import pytest
import torch

from cmdvid.metrics.clipsim import CLIPSim, load_clip

CAPTIONS = ["a red circle", "a man is skiing", "a red circle"]
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Weights of a tiny CLIP, and open_clip told of it."""
    import open_clip

    folder = tmp_path_factory.mktemp("clip")
    (folder / "tiny-clip.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    path = folder / "tiny.pt"
    torch.save(open_clip.create_model("tiny-clip").state_dict(), path)
    return path


@pytest.fixture(scope="module")
def network(file):
    return load_clip(file, "tiny-clip")


@pytest.fixture
def clips():
    return torch.randint(256, (3, 3, 4, 40, 56), dtype=torch.uint8)


def test_it_is_the_mean_cosine_of_open_clip_on_pillow_images(network, file, clips):
    import open_clip
    from PIL import Image

    model, _, prepare = open_clip.create_model_and_transforms("tiny-clip", pretrained=str(file))
    model.eval()
    text = model.encode_text(open_clip.get_tokenizer("tiny-clip")(CAPTIONS), normalize=True)
    wanted = []
    for clip, caption in zip(clips, text, strict=True):
        frames = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in clip.unbind(dim=1)]
        images = model.encode_image(torch.stack([prepare(f) for f in frames]), normalize=True)
        wanted.append((images @ caption).mean())
    torch.testing.assert_close(
        network(clips, CAPTIONS), torch.stack(wanted).detach(), rtol=0, atol=2e-3
    )


class Published(torch.nn.Module):
    """A state dict as a program, with the numbers that OpenAI's has beside its weights."""

    def __init__(self, weights, numbers=()):
        super().__init__()
        parts = {}
        for name, value in weights.items():
            part, _, rest = name.partition(".")
            if rest:
                parts.setdefault(part, {})[rest] = value
            else:
                self.register_buffer(name, value)
        for name, inner in parts.items():
            self.add_module(name, Published(inner))
        for name in numbers:
            self.register_buffer(name, torch.tensor(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # TorchScript
def test_the_program_that_openai_published_is_read(network, file, clips, tmp_path):
    program = Published(
        {k: v.half() for k, v in torch.load(file).items()},
        ["input_resolution", "context_length", "vocab_size"],
    )
    torch.jit.script(program).save(str(tmp_path / "ViT.pt"))
    found = load_clip(tmp_path / "ViT.pt", "tiny-clip")
    torch.testing.assert_close(found(clips, CAPTIONS), network(clips, CAPTIONS), rtol=0, atol=5e-3)
    torch.jit.script(Published({"a": torch.zeros(2)})).save(str(tmp_path / "other.pt"))
    with pytest.raises(
        ValueError, match=r"other\.pt: no weights of tiny-clip.*names or shapes differ"
    ):
        load_clip(tmp_path / "other.pt", "tiny-clip")


def test_every_clip_counts_alike_whatever_the_batches(network, clips):
    whole, parts = CLIPSim(network), CLIPSim(network)
    whole.update(clips, CAPTIONS)
    for i in (2, 0, 1):
        parts.update(clips[i : i + 1], CAPTIONS[i : i + 1])
    assert parts.compute() == pytest.approx(whole.compute(), rel=1e-5)
    scores = network(clips, CAPTIONS).double()
    assert whole.compute()["clipsim"] == pytest.approx(float(scores.mean()))
    assert whole.compute()["clipsim_error"] == pytest.approx(float(scores.std()) / 3**0.5, rel=1e-3)
    assert whole.compute()["count"] == 3


def test_captions_that_cannot_be_compared_are_refused(network, clips):
    with pytest.raises(ValueError, match="each clip needs its caption, got 2 for 3"):
        network(clips, CAPTIONS[:2])
    with pytest.raises(ValueError, match="caption 1 of the batch is empty"):
        network(clips, ["a", " ", "b"])


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_compared_is_an_error(network):
    with pytest.raises(ValueError, match="no clips were compared"):
        CLIPSim(network).compute()


def test_weights_that_cannot_be_had_are_said(tmp_path):
    with pytest.raises(ValueError, match="knows no model 'ViT-Q'"):
        load_clip("openai", "ViT-Q")
    with pytest.raises(ValueError, match=r"none\.pt: no weights of tiny-clip; needed is a file"):
        load_clip(tmp_path / "none.pt", "tiny-clip")
