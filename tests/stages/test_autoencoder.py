"""The autoencoder stage as Lightning trains it: what it learns, logs, draws and measures."""

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, Dataset

from cmdvid.data.dataset import ClipSampler
from cmdvid.losses import LatentMoments
from cmdvid.models.autoencoder import Autoencoder
from cmdvid.models.codecs import PixelCodec
from cmdvid.stages.autoencoder import AutoencoderStage
from cmdvid.types import ClipBatch, LatentBatch, PromptBatch, VideoLatent


class Clips(Dataset):
    """Random clips that remember which of them were read."""

    def __init__(self, num: int):
        self.clips, self.read = torch.rand(num, 3, 4, 8, 12) * 2 - 1, []

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: tuple[int, int]) -> ClipBatch:
        self.read.append(key[1])
        return ClipBatch(self.clips[key[1]], "a clip", key[1])


def make_stage(**options) -> AutoencoderStage:
    size = {"width": 16, "depth": 1, "num_heads": 2, "patch": 4}
    return AutoencoderStage(
        Autoencoder(**size, anchor_bias=3.0, residual=True, motion_noise=0.1),
        optimizer=lambda groups: torch.optim.Adam(groups, lr=1e-2),
        **options,
    )


def make_trainer(**options) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="cpu", enable_model_summary=False, **quiet, **options)


def loader(clips: Clips, **sampler) -> DataLoader:
    return DataLoader(clips, batch_size=2, sampler=ClipSampler(clips, shuffle=True, **sampler))


def test_the_importance_weights_learn_and_the_log_shows_it():
    stage, logged = make_stage(), []
    before = stage.autoencoder.importance.weight.detach().clone()
    for steps in (1, 30):
        trainer = make_trainer(max_steps=steps, max_epochs=-1)
        trainer.fit(stage, loader(Clips(4)))
        logged.append(trainer.callback_metrics["train/content_from_anchor_rms"])
    gradient = stage.autoencoder.importance.weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
    assert (stage.autoencoder.importance.weight - before).abs().max() > 1e-3
    assert logged[1] > 1.2 * logged[0]


def test_measuring_after_a_resume_in_mid_epoch_reads_all_clips():
    """The sampler leaves out, in the first epoch alone, what was trained on before the stop."""
    clips = Clips(8)
    make_trainer(max_steps=1).fit(make_stage(statistics_clips=8), loader(clips, start=6))
    assert len(clips.read) == 2 + 8
    assert sorted(clips.read[2:]) == list(range(8))


def test_statistics_are_void_while_training_goes_on():
    stage = make_stage()
    make_trainer(max_steps=1).fit(stage, loader(Clips(4)))
    assert stage.autoencoder.measured
    seen = []
    stage.on_train_batch_end = lambda *_: seen.append(bool(stage.autoencoder.measured))
    make_trainer(max_steps=2).fit(stage, loader(Clips(4)))
    assert seen == [False, False]
    assert stage.autoencoder.measured


def test_latents_are_measured_in_the_precision_that_they_will_have():
    stage, clips = make_stage(statistics_clips=4), Clips(4)
    make_trainer(max_steps=1, precision="bf16-mixed").fit(stage, loader(clips))
    found = []
    for mixed in (True, False):
        moments = LatentMoments()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            moments.update(stage.autoencoder.eval().encode(clips.clips))
        found.append(moments.compute()[1][1])
    stored = stage.autoencoder.motion_std
    torch.testing.assert_close(stored, found[0], atol=1e-5, rtol=1e-5)
    assert (stored - found[1]).abs().max() > 1e-4


def test_the_codec_works_in_that_precision_too():
    class Noting(PixelCodec):
        def encode(self, clip):
            precisions.append(torch.is_autocast_enabled("cpu"))
            return super().encode(clip)

    precisions: list[bool] = []
    stage = make_stage(statistics_clips=4, codec=Noting())
    make_trainer(max_steps=1, precision="bf16-mixed").fit(stage, loader(Clips(4)))
    assert precisions == [True] * 3  # a step of training, two of measuring


def test_a_checkpoint_is_not_resumed_with_the_frames_of_another_codec():
    stage, checkpoint = make_stage(), {}
    stage.on_save_checkpoint(checkpoint)
    stage.on_load_checkpoint(checkpoint)
    checkpoint["networks"]["codec"]["class_path"] = "cmdvid.models.sd_codec.StableDiffusionCodec"
    with pytest.raises(ValueError, match=r"frames of a StableDiffusionCodec, .* is a PixelC"):
        stage.on_load_checkpoint(checkpoint)


def test_only_clips_can_be_rebuilt():
    latent = VideoLatent(torch.zeros(1, 3, 8, 12), torch.zeros(1, 8, 4, 5))
    for batch in (PromptBatch(["a ring"], torch.tensor([0])), LatentBatch(latent, ["a"], 0)):
        with pytest.raises(ValueError, match="an autoencoder rebuilds clips"):
            make_stage().predict_step(batch)
