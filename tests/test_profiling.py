"""Costs of the paper's networks against independent counts; on the meta device alone."""

from pathlib import Path

import pytest

from cmdvid.__main__ import main
from cmdvid.profiling import coding_cost, forward_cost, num_parameters, paper_parts, peak_memory

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
    encode, decode = coding_cost(wide["autoencoder"].network, (16, 64, 128))
    assert encode.flops == pytest.approx(2.378 * T, rel=0.01)
    assert decode.flops == pytest.approx(2.378 * T, rel=0.01)


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
    assert peak_memory(motion) > 20 * num_parameters(motion.network)


CONFIGS = Path(__file__).parents[1] / "configs"


def options(*names):
    return [part for name in names for part in ("--config", str(CONFIGS / f"{name}.yaml"))]


def test_the_verb_prints_each_stage_and_sampling(capsys):
    main(["profile", *options("ae_shapes", "content_shapes", "motion_shapes", "generate_shapes")])
    text = capsys.readouterr().out
    assert "clips of 16x32x32" in text
    assert all(f"| {stage} |" in text for stage in ("autoencoder", "content", "motion"))
    assert "12 content and 12 motion steps, guidance 2 and 2" in text


def test_a_config_that_says_nothing_of_sizes_asks_for_that_of_the_autoencoder(capsys):
    with pytest.raises(SystemExit):
        main(["profile", *options("content_shapes")])
    assert "give the autoencoder's config too" in capsys.readouterr().err
