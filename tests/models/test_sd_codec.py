from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from cmdvid.models.sd_codec import StableDiffusionCodec, check_codec
from cmdvid.models.sd_text import StableDiffusionText


@pytest.fixture(scope="module")
def codec(sd_folder) -> StableDiffusionCodec:
    return StableDiffusionCodec(sd_folder)


@pytest.fixture
def clip() -> torch.Tensor:
    return torch.rand(2, 3, 5, 16, 24) * 2 - 1


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory) -> str:
    torch.manual_seed(0)
    blocks = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    folder = tmp_path_factory.mktemp("tiny")
    AutoencoderTiny(**blocks).save_pretrained(folder)
    return str(folder)


def test_frames_are_the_scaled_mode_of_each_frame(codec, sd_folder, clip):
    vae = AutoencoderKL.from_pretrained(sd_folder, subfolder="vae")
    frames = codec.encode(clip)
    assert (codec.channels, codec.stride) == (4, 8)
    assert frames.shape == (2, 4, 5, 2, 3)
    z = vae.encode(clip[1, :, 3][None]).latent_dist.mode()[0]
    torch.testing.assert_close(frames[1, :, 3], (z - 0.25) * 0.5, atol=1e-5, rtol=1e-4)


def test_decoding_undoes_scale_and_shift(codec, clip):
    frames = codec.encode(clip)
    z = frames[0, :, 2] / 0.5 + 0.25
    expected = codec.vae.decode(z[None]).sample[0].clamp(-1, 1)
    torch.testing.assert_close(codec.decode(frames)[0, :, 2], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_chunks_change_nothing(codec, sd_folder, clip, chunk_size):
    other = StableDiffusionCodec(sd_folder, chunk_size=chunk_size)
    frames = codec.encode(clip)
    torch.testing.assert_close(other.encode(clip), frames, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(other.decode(frames), codec.decode(frames), atol=1e-5, rtol=1e-4)


def test_a_chunk_bounds_what_the_vae_sees_at_once(sd_folder, clip, monkeypatch):
    codec, seen = StableDiffusionCodec(sd_folder, chunk_size=4), []
    encode = codec.vae.encode
    monkeypatch.setattr(codec.vae, "encode", lambda x: seen.append(len(x)) or encode(x))
    codec.encode(clip)
    assert seen == [4, 4, 2]


def test_the_posterior_is_sampled_only_if_asked_for(codec, sd_folder, clip):
    sampling = StableDiffusionCodec(sd_folder, sample_posterior=True)
    assert not torch.equal(sampling.encode(clip), sampling.encode(clip))
    assert torch.equal(codec.encode(clip), codec.encode(clip))


def test_tiles_are_for_decoding_alone(codec, sd_folder):
    tiled = StableDiffusionCodec(sd_folder, tiling=True)
    clip = torch.rand(1, 3, 2, 64, 40) * 2 - 1
    frames = codec.encode(clip)
    tiled.decode(frames)
    assert tiled.vae.use_tiling
    torch.testing.assert_close(tiled.encode(clip), frames)


def test_a_tiny_decoder_takes_the_scaled_latents(codec, sd_folder, tiny_folder, clip):
    fast = StableDiffusionCodec(sd_folder, tiny=tiny_folder)
    frames = codec.encode(clip)
    expected = fast.tiny.decode(frames[:, :, 1]).sample.clamp(-1, 1)
    torch.testing.assert_close(fast.decode(frames)[:, :, 1], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(fast.encode(clip), frames)


def test_weights_are_frozen_and_kept_out_of_checkpoints(codec, clip):
    assert not codec.state_dict()
    assert not any(p.requires_grad for p in codec.vae.parameters())
    assert not codec.encode(clip.requires_grad_()).requires_grad


def test_it_moves_and_casts_though_it_is_no_submodule(sd_folder, clip):
    codec = StableDiffusionCodec(sd_folder).to(torch.float64)
    assert codec.dtype == torch.float64
    assert codec.encode(clip).dtype == torch.float32


def test_save_pretrained_writes_the_vae_and_reads_it_there(sd_folder, tiny_folder, clip, tmp_path):
    codec = StableDiffusionCodec(sd_folder, tiny=tiny_folder, chunk_size=7)
    codec.save_pretrained(tmp_path / "one")
    (tmp_path / "one").rename(tmp_path / "two")
    loaded = StableDiffusionCodec.from_pretrained(tmp_path / "two")
    frames = codec.encode(clip)
    assert loaded.chunk_size == 7
    torch.testing.assert_close(loaded.encode(clip), frames)
    torch.testing.assert_close(loaded.decode(frames), codec.decode(frames))
    half = StableDiffusionCodec.from_pretrained(tmp_path / "two", torch_dtype=torch.bfloat16)
    assert half.dtype == half.tiny.dtype == torch.bfloat16


@pytest.mark.parametrize("cls", [StableDiffusionCodec, StableDiffusionText])
def test_a_variant_is_refused(sd_folder, tmp_path, cls):
    with pytest.raises(ValueError, match="variant='fp16' is not known of frozen networks"):
        cls(sd_folder).save_pretrained(tmp_path, variant="fp16")
    with pytest.raises(ValueError, match="variant='fp16' is not known of frozen networks"):
        cls.from_pretrained(sd_folder, variant="fp16")


def test_a_bare_vae_folder_and_one_in_memory_do_too(codec, sd_folder, clip):
    for other in (
        StableDiffusionCodec(str(Path(sd_folder) / "vae")),
        StableDiffusionCodec(vae=codec.vae),
    ):
        torch.testing.assert_close(other.encode(clip), codec.encode(clip))


def test_a_checkpoint_refuses_another_vae(codec, sd_folder, tmp_path):
    config = {k: v for k, v in codec.config.items() if not k.startswith("_")}
    StableDiffusionCodec(**config)
    vae = AutoencoderKL.from_pretrained(sd_folder, subfolder="vae")
    vae.register_to_config(scaling_factor=0.13)
    vae.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"it had scale 0\.5, but this one has scale 0\.13"):
        StableDiffusionCodec(**config | {"model": str(tmp_path)})
    vae.register_to_config(scaling_factor=0.5)
    torch.nn.init.zeros_(vae.decoder.conv_out.weight)
    check_codec(StableDiffusionCodec(vae=vae), config["made_by"], source="other decoder")
    torch.nn.init.zeros_(vae.encoder.conv_out.weight)
    with pytest.raises(
        ValueError, match=r"mine: not the VAE .* it had encoder .* but this one has"
    ):
        check_codec(StableDiffusionCodec(vae=vae), config["made_by"], source="mine")


def test_on_meta_it_has_sizes_but_reads_no_weights(sd_folder):
    with torch.device("meta"):
        codec = StableDiffusionCodec(sd_folder)
        assert codec.encode(torch.empty(1, 3, 2, 16, 24)).shape == (1, 4, 2, 2, 3)
    assert codec.device.type == "meta"


def test_errors_name_both_sides(codec, sd_folder, tiny_folder, tmp_path):
    with pytest.raises(ValueError, match="divisible by 8, got 16x20"):
        codec.encode(torch.zeros(1, 3, 2, 16, 20))
    with pytest.raises(ValueError, match="latents of 4 channels, got frames of 3"):
        codec.decode(torch.zeros(1, 3, 2, 2, 2))
    with pytest.raises(ValueError, match=r"either model or vae, got model=None"):
        StableDiffusionCodec()
    with pytest.raises(ValueError, match="chunk_size must be at least 1 frame, got 0"):
        StableDiffusionCodec(sd_folder, chunk_size=0)
    with pytest.raises(ValueError, match="its vae is of class AutoencoderTiny, needed is"):
        StableDiffusionCodec(tiny_folder)
    blocks = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    AutoencoderTiny(**blocks, latent_channels=16).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"16 channels at 1/8 of the size, but .* 4 channels at"):
        StableDiffusionCodec(sd_folder, tiny=str(tmp_path))
