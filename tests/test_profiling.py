"""Costs of the paper's networks against independent counts; on the meta device alone."""

import re
from pathlib import Path

import pytest
import torch

from cmdvid.__main__ import main
from cmdvid.cost_parts import decoding_calls, encoding_calls, paper_parts
from cmdvid.memory import training_memory
from cmdvid.models.autoencoder import Autoencoder
from cmdvid.models.codecs import PixelCodec
from cmdvid.models.sd_architectures import SD21_BASE, TINY_VAE
from cmdvid.models.sd_codec import StableDiffusionCodec
from cmdvid.profiling import calls_cost, forward_cost, num_parameters

T = 1e12


@pytest.fixture(scope="module")
def wide():
    return paper_parts(512, 1024)


@pytest.fixture(scope="module")
def square():
    return paper_parts(512, 512)


def test_flops_of_the_denoisers(wide, square):
    assert forward_cost(wide["content"]).flops == pytest.approx(1.850 * T, rel=0.01)
    assert forward_cost(square["content"]).flops == pytest.approx(0.804 * T, rel=0.01)
    assert forward_cost(wide["motion"]).flops == pytest.approx(0.491 * T, rel=0.01)


def test_flops_of_the_autoencoder(wide):
    what = PixelCodec(), wide["autoencoder"].network, (16, 64, 128)
    for calls in (encoding_calls(*what), decoding_calls(*what)):
        assert calls_cost(calls.values()).flops == pytest.approx(2.378 * T, rel=0.01)


def test_the_papers_own_counting(wide, square):
    wanted = {"autoencoder": 0.775, "content": 0.340, "motion": 0.143, "ModelScope": 9.41}
    for name, tflops in wanted.items():
        assert forward_cost(square[name]).paper == pytest.approx(tflops * T, rel=0.01)
    steps = forward_cost(wide["content"]) + forward_cost(wide["motion"])
    sampling = steps * 50 + forward_cost(wide["autoencoder"])
    assert sampling.paper == pytest.approx(46.84 * T, rel=0.01)


def test_parameters(square):
    total = sum(num_parameters(square[n].network) for n in ("autoencoder", "content", "motion"))
    assert total == pytest.approx(1.6e9, rel=0.03)


def test_memory_is_at_least_that_of_the_weights_and_their_copies(square):
    motion = square["motion"]
    assert training_memory(motion).peak > 20 * num_parameters(motion.network)


CONFIGS = Path(__file__).parents[1] / "configs"


def options(*names):
    return [part for name in names for part in ("--config", str(CONFIGS / f"{name}.yaml"))]


def test_the_verb_prints_each_stage_and_sampling(capsys):
    main(["profile", *options("ae_shapes", "content_shapes", "motion_shapes", "generate_shapes")])
    text = capsys.readouterr().out
    assert "clips of 16x32x32" in text
    assert all(f"| {stage} |" in text for stage in ("autoencoder", "content", "motion"))
    assert "| content: guidance 1.15 |" in text
    assert "| motion: guidance 2 |" in text


def test_a_config_that_says_nothing_of_sizes_asks_for_that_of_the_autoencoder(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # the checkpoint that it names is not here
    with pytest.raises(SystemExit):
        main(["profile", *options("content_shapes")])
    assert "give the autoencoder's config too" in capsys.readouterr().err


def test_previews_count_where_they_need_more_than_training(capsys, tmp_path):
    text, peaks = (CONFIGS / "ae_shapes.yaml").read_text(), []
    text = text.replace("data/shapes.yaml", str(CONFIGS / "data/shapes.yaml"))
    for num in (1, 4096):
        preview = f"ClipPreview, init_args: {{num_clips: {num}}}}}"
        (tmp_path / "ae.yaml").write_text(text.replace("ClipPreview}", preview))
        main(["profile", "--config", str(tmp_path / "ae.yaml")])
        peaks += re.findall(r"\| autoencoder \| 32-true .* (\S+) \|\n", capsys.readouterr().out)
    assert float(peaks[1]) > 2 * float(peaks[0])


def test_sizes_that_cannot_be_encoded_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["profile", *options("ae_shapes"), "--data.spec.image_size", "[30,64]"])
    assert "data.spec.image_size 30x64: height and width" in capsys.readouterr().err


def test_a_setting_on_the_command_line_replaces_that_of_the_config(capsys):
    main(
        ["profile", *options("ae_shapes"), "--data.batch_size", "2", "--trainer.precision", "bf16"]
    )
    text = capsys.readouterr().out
    assert "| 2 x 1 |" in text
    assert "| autoencoder | bf16" in text
    with pytest.raises(SystemExit):
        main(["profile", "--data.batch_size", "2"])
    assert "give --config FILE" in capsys.readouterr().err


def test_flops_of_the_stable_diffusion_vae():
    with torch.device("meta"):
        codecs = [StableDiffusionCodec(SD21_BASE, tiny=tiny) for tiny in (None, TINY_VAE)]
        autoencoder = Autoencoder(4)
    clip = (16, 64, 128)
    encode = encoding_calls(codecs[0], autoencoder, clip)["codec"]
    assert calls_cost([encode]).flops == pytest.approx(36.8 * T, rel=0.01)
    for codec, tflops in zip(codecs, (81.6, 4.5), strict=True):
        decode = decoding_calls(codec, autoencoder, clip)["codec"]
        assert calls_cost([decode]).flops == pytest.approx(tflops * T, rel=0.01)


SLOW = [pytest.param(suffix, marks=pytest.mark.slow) for suffix in ("webvid", "webvid_sd15")]


@pytest.mark.parametrize("suffix", [*SLOW, "webvid_24gb"])
def test_every_config_of_stable_diffusion_is_counted_without_its_weights(suffix, capsys):
    stages = ["ae", "content", "motion", *([] if suffix.endswith("24gb") else ["generate"])]
    main(["profile", *options(*(f"{stage}_{suffix}" for stage in stages))])
    text = capsys.readouterr().out
    for stage, name in zip(("autoencoder", "content", "motion"), stages, strict=False):
        peak = float(re.findall(rf"\| {stage} \| bf16-mixed .* (\S+) \|\n", text)[0])
        assert peak < 70
        config = (CONFIGS / f"{name}_{suffix}.yaml").read_text()
        for said in re.findall(r"Estimated peak memory: (\S+) GB", config):
            assert peak == pytest.approx(float(said), rel=0.05)
    assert "codec: decoding" in text
