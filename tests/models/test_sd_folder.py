import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from cmdvid.models.sd_architectures import SD21_BASE, SD21_BASE_WITHDRAWN
from cmdvid.models.sd_folder import load_part, locate, read_config


def test_a_part_is_found_in_a_whole_model_and_alone(sd_folder):
    alone = str(Path(sd_folder) / "vae")
    assert locate(sd_folder, "vae")["subfolder"] == "vae"
    assert locate(alone, "vae") == {"pretrained_model_name_or_path": alone}
    vaes = [load_part(AutoencoderKL, folder, "vae") for folder in (sd_folder, alone)]
    torch.testing.assert_close(*[dict(vae.state_dict()) for vae in vaes])


def test_weights_in_half_precision_are_read_in_full(sd_folder, tmp_path):
    load_part(AutoencoderKL, sd_folder, "vae").half().save_pretrained(tmp_path)
    assert load_part(AutoencoderKL, str(tmp_path), "vae").dtype == torch.float32


def test_a_part_of_another_class_is_refused(sd_folder):
    with pytest.raises(ValueError, match="its vae is of class AutoencoderKL, needed is UNet2DCond"):
        load_part(UNet2DConditionModel, sd_folder, "vae")


def test_a_folder_that_is_no_model_says_what_it_holds(sd_folder, tmp_path):
    with pytest.raises(ValueError, match=r"expected vae/config\.json .* found nothing"):
        locate(str(tmp_path), "vae")
    (tmp_path / "movie.mp4").touch()
    with pytest.raises(ValueError, match=r"expected scheduler/scheduler_config.* found movie\.mp4"):
        read_config(str(tmp_path), "scheduler")
    with pytest.raises(ValueError, match="no such folder, and no hub id"):
        locate(str(tmp_path / "absent"), "vae")
    with pytest.raises(ValueError, match=r"no such folder, and no hub id .*model_index\.json"):
        locate(str(tmp_path / "movie.mp4"), "vae")


def test_a_model_that_the_hub_does_not_give_says_so():
    with pytest.raises(ValueError, match=r"acme/model: .*vae/config\.json could not be had from"):
        load_part(AutoencoderKL, "acme/model", "vae")


def test_a_part_alone_in_the_hubs_cache_needs_no_hub(sd_folder, tmp_path, monkeypatch):
    repository = tmp_path / "models--acme--vae"
    shutil.copytree(Path(sd_folder) / "vae", repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    assert locate("acme/vae", "vae") == {"pretrained_model_name_or_path": "acme/vae"}
    assert read_config("acme/vae", "vae")["_class_name"] == "AutoencoderKL"
    with pytest.raises(ValueError, match=r"unet/config\.json could not be had|of class Autoenc"):
        load_part(UNet2DConditionModel, "acme/vae", "unet")


def test_pickled_weights_are_refused(sd_folder, tmp_path):
    shutil.copy(Path(sd_folder) / "vae" / "config.json", tmp_path)
    (tmp_path / "diffusion_pytorch_model.bin").touch()
    with pytest.raises(
        ValueError, match=r"needed is a \.safetensors file, found config\.json, dif"
    ):
        load_part(AutoencoderKL, str(tmp_path), "vae")


def test_on_meta_known_hub_models_have_sizes_without_being_read():
    with torch.device("meta"):
        unet = load_part(UNet2DConditionModel, SD21_BASE, "unet")
    assert unet.device.type == "meta"
    assert sum(p.numel() for p in unet.parameters()) == 865_910_724
    with torch.device("meta"):
        for part in ("unet", "vae", "text_encoder", "scheduler"):
            assert read_config(SD21_BASE_WITHDRAWN, part) == read_config(SD21_BASE, part)
    with pytest.raises(ValueError, match=r"unet/config\.json could not be had from"):
        load_part(UNet2DConditionModel, SD21_BASE, "unet")
