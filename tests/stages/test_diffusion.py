"""What both diffusion stages share: their noise, shapes from checkpoints, clipping."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from cmdvid.models.autoencoder import Autoencoder
from cmdvid.models.conditioning import LabelConditioner
from cmdvid.models.diffusion import Diffusion
from cmdvid.models.motion_dit import MotionDiT
from cmdvid.stages.autoencoder import AutoencoderStage
from cmdvid.stages.content import ContentStage
from cmdvid.stages.motion import MotionStage
from cmdvid.stages.noise import seed_batch
from cmdvid.types import ClipBatch, LatentBatch, PromptBatch, VideoLatent

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}


def make_trainer(**options) -> Trainer:
    return Trainer(accelerator="cpu", enable_model_summary=False, **QUIET, **options)


@pytest.fixture(scope="module")
def autoencoder_ckpt(tmp_path_factory) -> str:
    torch.manual_seed(0)
    autoencoder = Autoencoder(width=16, depth=1, num_heads=2, patch=4, motion_channels=2)
    clips = [ClipBatch(torch.rand(3, 4, 16, 16) * 2 - 1, 0, i) for i in range(2)]
    trainer = make_trainer(max_steps=1)
    trainer.fit(AutoencoderStage(autoencoder), DataLoader(clips, batch_size=2))
    file = tmp_path_factory.mktemp("autoencoder") / "last.ckpt"
    trainer.save_checkpoint(file, weights_only=False)
    return str(file)


@pytest.fixture
def stage(autoencoder_ckpt) -> MotionStage:
    denoiser = MotionDiT(2, width=16, depth=1, num_heads=2, condition_dim=8)
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    diffusion = Diffusion(denoiser, conditioner=LabelConditioner(2, dim=8))
    return MotionStage(diffusion, autoencoder_ckpt=autoencoder_ckpt, num_inference_steps=2)


def latents() -> list[LatentBatch]:
    torch.manual_seed(1)
    return [
        LatentBatch(VideoLatent(torch.randn(3, 16, 16), torch.randn(2, 4, 8)), i % 2, i)
        for i in range(4)
    ]


def test_samples_do_not_depend_on_the_batch(stage):
    found = []
    for size in (1, 3):
        torch.manual_seed(size)
        batches = make_trainer().predict(stage, DataLoader(latents(), batch_size=size))
        found.append(torch.cat([batch.clip for batch in batches]))
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found[0][0], found[0][2])


def test_a_checkpoint_of_another_autoencoder_is_not_resumed(stage, tmp_path):
    trainer = make_trainer(max_steps=1)
    trainer.fit(stage, DataLoader(latents(), batch_size=2))
    trainer.save_checkpoint(tmp_path / "last.ckpt", weights_only=False)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    stage.on_load_checkpoint(checkpoint)
    checkpoint["autoencoder"]["fingerprint"] = "0" * 64
    with pytest.raises(
        ValueError, match=r"trained on the autoencoder 000000000000 .* but .* holds"
    ):
        stage.on_load_checkpoint(checkpoint)


def test_weights_stay_in_float32(stage):
    """In bf16 a moving average of decay 0.999 would never move."""
    for each in (stage, AutoencoderStage(Autoencoder(width=16, depth=1, num_heads=2, patch=4))):
        for verb in ("fit", "predict"):
            trainer = make_trainer(max_steps=1, precision="bf16-true")
            with pytest.raises(ValueError, match=r"precision bf16-true: .*Stage keeps its weights"):
                getattr(trainer, verb)(each, DataLoader(latents(), batch_size=2))


def test_the_seed_chooses_the_samples(stage, autoencoder_ckpt):
    latent = VideoLatent(torch.zeros(1, 3, 16, 16), torch.zeros(1, 2, 4, 8))
    given = latent, torch.tensor([0]), torch.tensor([7])
    first = stage.generate(*given).motion
    stage.seed = 1
    assert not torch.allclose(stage.generate(*given).motion, first)
    with pytest.raises(ValueError, match="seed must be 0 or more, got -1"):
        MotionStage(stage.diffusion, autoencoder_ckpt=autoencoder_ckpt, seed=-1)


class Place(LightningModule):
    global_rank = 0


def test_processes_and_steps_draw_other_noise():
    place, drawn = Place(), []
    for place.global_rank, step, batch_idx in (
        (0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)
    ):  # fmt: skip
        seed_batch(place, 42, step, batch_idx)
        drawn.append(torch.rand(()).item())
    assert len(set(drawn)) == 4
    assert drawn[0] == drawn[4]


def test_a_checkpoint_saved_before_the_first_batch_keeps_the_shapes(stage, tmp_path):
    trainer = make_trainer(max_steps=1)
    trainer.fit(stage, DataLoader(latents(), batch_size=2))
    trainer.save_checkpoint(tmp_path / "one.ckpt", weights_only=False)
    stage.latents.shapes = {}
    again = make_trainer(max_steps=1)  # reached: no batch comes
    again.fit(stage, DataLoader(latents(), batch_size=2), ckpt_path=tmp_path / "one.ckpt")
    again.save_checkpoint(tmp_path / "two.ckpt", weights_only=False)
    shapes = torch.load(tmp_path / "two.ckpt", weights_only=True)["latent_shapes"]
    assert shapes == {"content": [3, 16, 16], "motion": [2, 4, 8]}


def test_prompts_are_for_content_alone_and_need_shapes(stage, autoencoder_ckpt):
    prompts = PromptBatch(torch.tensor([0]), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"not prompts.*cmdvid export"):
        stage.predict_step(prompts)
    content = ContentStage(stage.diffusion, autoencoder_ckpt=autoencoder_ckpt)
    with pytest.raises(ValueError, match="add --ckpt"):
        content.predict_step(prompts)


def test_the_trainer_chooses_how_gradients_are_clipped(stage):
    largest = []
    stage.on_before_zero_grad = lambda _: largest.extend(
        p.grad.abs().max() for p in stage.diffusion.denoiser.parameters() if p.grad is not None
    )
    clipping = {"gradient_clip_val": 1e-5, "gradient_clip_algorithm": "value"}
    make_trainer(max_steps=2, **clipping).fit(stage, DataLoader(latents(), batch_size=2))
    torch.testing.assert_close(max(largest), torch.tensor(1e-5))
    assert sum(value > 0.99e-5 for value in largest) > 3  # the norm would leave one at most
