"""Sampling and evaluation as ordinary verbs: a stage that trains nothing (CMD Algorithm 1)."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from lightning.pytorch import LightningModule
from torch import Tensor
from torchmetrics import Metric

from cmdvid.evaluation import GENERATED, LEVELS, MOTION, REAL, RECONSTRUCTION, Scoreboard
from cmdvid.manifest import commit, digest, source_digest, versions, weights_digests
from cmdvid.metrics.lpips import load_lpips
from cmdvid.metrics.pixels import to_uint8
from cmdvid.metrics.weights import origin
from cmdvid.models.schedule import described, follow
from cmdvid.report import Report, log_scores
from cmdvid.report_html import Shown, write_page
from cmdvid.sheet import Samples, captions_of, file_name
from cmdvid.stages.by_protocol import ByProtocol, ProtocolTest
from cmdvid.stages.level_clips import LevelClips, sample_names, select
from cmdvid.stages.noise import sample_generators
from cmdvid.stages.test_sets import replaced_videos, told
from cmdvid.types import ClipBatch, Condition, GeneratedBatch, PromptBatch

if TYPE_CHECKING:
    from cmdvid.pipeline import CMDOutput


class GenerationStage(LightningModule):
    """Generate clips for conditions (``predict``), or score the pipeline on clips (``test``).

    Args:
        pipeline: Folder made by `cmdvid export`.
        num_inference_steps: Steps of the content model (paper: 50).
        motion_inference_steps: Steps of the motion model (paper: 100); as many as content steps
            if not given.
        guidance_scale: s = 1 + w of the paper; 1 is no guidance.
        motion_guidance_scale: That of the motion model; the content model's if not given.
        negative_prompt: Caption to guide away from, in place of the empty one.
        scheduler: Samples both models in place of their own schedulers. Noise schedule and
            prediction type stay each model's; so does what is left at the default of its class.
        seed: With a sample's index it fixes the sample's noise; 0 or more.
        judge: Metric of captioned clips, such as cmdvid.metrics.shapes.ShapesAccuracy. Without it
            or a protocol ``test`` reports reconstruction alone, and generates what the sheet shows.
        evaluation: A protocol to measure by, such as FVD on 2,048 clips.
        lpips: torchvision's AlexNet, file or URL#sha256=HASH, to measure reconstructions by LPIPS.
        report: Folder of the report; "eval" in the run's folder by default.
    """

    def __init__(
        self,
        pipeline: str,
        *,
        num_inference_steps: int = 50,
        motion_inference_steps: int | None = None,
        guidance_scale: float = 4.0,
        motion_guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        scheduler: SchedulerMixin | None = None,
        seed: int = 0,
        judge: Metric | None = None,
        evaluation: ByProtocol | None = None,
        lpips: str | None = None,
        report: str | None = None,
    ):
        super().__init__()
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}")
        steps = num_inference_steps if motion_inference_steps is None else motion_inference_steps
        scale = guidance_scale if motion_guidance_scale is None else motion_guidance_scale
        self.sampling: dict[str, Any] = {
            "num_inference_steps": num_inference_steps,
            "motion_inference_steps": steps,
            "guidance_scale": guidance_scale,
            "motion_guidance_scale": scale,
            "negative_prompt": negative_prompt,
        }
        self.scheduler = scheduler
        self.pipeline, self.seed, self.judge = pipeline, seed, judge
        self.evaluation, self.lpips, self.report = evaluation, lpips, report
        # of a row and its caption; ClipWriter tells it, where an earlier run was interrupted
        self.is_made: Callable[[int, str], bool] | None = None

    def setup(self, stage: str) -> None:
        """Load the pipeline; not a submodule, so no checkpoint would ever hold it.

        Raises:
            ValueError: If there is none, or its models cannot be sampled with the scheduler.
        """
        from cmdvid.pipeline import CMDPipeline

        try:
            self.pipe = CMDPipeline.from_pretrained(self.pipeline, use_safetensors=True)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{self.pipeline}: no pipeline could be loaded from here; make one with "
                f"`cmdvid export --out {self.pipeline}` ({error})"
            ) from error
        self.pipe.set_progress_bar_config(disable=True)  # Lightning's counts the batches
        if self.scheduler is not None:
            for name in ("content_scheduler", "motion_scheduler"):
                setattr(self.pipe, name, follow(getattr(self.pipe, name), self.scheduler))

    def settings(self) -> dict[str, Any]:
        """All that makes a clip, beside its condition and the source."""
        return {
            **self.sampling,
            "schedulers": {  # those that sample, also if they are the models' own
                "content": described(self.pipe.content_scheduler),
                "motion": described(self.pipe.motion_scheduler),
            },
            "seed": self.seed,
            "weights": weights_digests(self.pipeline),
            "precision": str(self.trainer.precision),
        }

    def on_predict_start(self) -> None:
        """Take the pipeline to the trainer's device."""
        self._move()

    def predict_step(self, batch: PromptBatch | ClipBatch) -> GeneratedBatch | None:
        """Clips for the batch's conditions that lack, beside the real ones if there are any."""
        if self.is_made:
            rows = torch.as_tensor(batch.index).tolist()
            captions = captions_of(cast(Condition, batch.condition))
            lacks = [not self.is_made(*each) for each in zip(rows, captions, strict=True)]
            if not any(lacks):
                return None
            batch = select(batch, torch.tensor(lacks))
        generated = self._generate(batch)
        return GeneratedBatch(
            clip=generated.frames,
            content=generated.content,
            condition=cast(Condition, batch.condition),
            index=torch.as_tensor(batch.index),
            real=batch.clip if isinstance(batch, ClipBatch) else None,
        )

    def on_test_start(self) -> None:
        """Prepare the metrics of each test set and level.

        Raises:
            ValueError: If the data module does not name each of its test sets.
        """
        self._move()
        self.test_names = list(getattr(cast(Any, self.trainer).datamodule, "test_names", ["val"]))
        if len(self.test_names) != (num := len(self.trainer.num_test_batches)):
            raise ValueError(f"{num} test sets need {num} names, got {', '.join(self.test_names)}")
        using = {"judge": self.judge, "lpips": load_lpips(self.lpips) if self.lpips else None}
        self.scoreboard = Scoreboard(self.test_names, **using, device=self.device)
        self.samples = {name: Samples() for name in self.test_names}
        self.folder = Path(self.report or Path(self.trainer.default_root_dir) / "eval")
        self.made_of = self.settings()
        key = digest(self.made_of | {"source": source_digest()})[:12]
        places = {name: self.folder / f"clips-{key}" / file_name(name) for name in self.test_names}
        self.clips = {name: LevelClips(place, LEVELS[1:]) for name, place in places.items()}
        self.by_protocol = None
        if how := self.evaluation:
            self.by_protocol = ProtocolTest(how, self.trainer, self.device, self.sampling)

    def test_step(
        self, batch: ClipBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor]:
        """The clips of a batch at the levels of Table 4a that can be scored.

        Raises:
            ValueError: If the batch holds no clips.
        """
        if not isinstance(batch, ClipBatch):
            raise ValueError("test compares with real clips: set data.latents to null")
        if self.judge is None and self.by_protocol is None:
            return self._rebuilt(batch)
        return self._levels(batch, self.test_names[dataloader_idx])

    def on_test_batch_end(
        self, outputs: Any, batch: ClipBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Score what ``test_step`` made; here, because here no mixed precision is in force."""
        name = self.test_names[dataloader_idx]
        samples, clips = self.samples[name], cast("dict[str, Tensor]", outputs)
        self.scoreboard.update(name, clips, cast(Condition, batch.condition))
        if GENERATED not in clips:  # nobody scores them: make those of the sheet alone
            batch = select(batch, torch.as_tensor(batch.index) < samples.num)
            if not len(batch.clip):
                return
            with self.trainer.precision_plugin.test_step_context():
                clips = self._levels(batch, name)
        samples.add(torch.as_tensor(batch.index), cast(Condition, batch.condition), clips)

    def on_test_epoch_end(self) -> None:
        """Join the scores of all processes; the first writes the report and the sheets."""
        scores = self.scoreboard.scores()
        settings = {"pipeline": self.pipeline, **self.made_of}
        settings["judge"] = None if self.judge is None else type(self.judge).__name__
        settings["lpips"] = origin(self.lpips) if self.lpips else None
        settings["clips"] = {k: levels[RECONSTRUCTION]["psnr"].n for k, levels in scores.items()}
        settings["replaced"] = lost = replaced_videos(self.trainer, self.test_names)
        notes = told(lost)
        if self.by_protocol is not None:
            for name, levels in scores.items():
                found = self.by_protocol.scores(name, self.clips[name], self.folder)
                scores[name] = {k: levels.get(k, {}) | found.get(k, {}) for k in LEVELS}
            settings |= self.by_protocol.settings()
            notes += self.by_protocol.notes()
        for samples in self.samples.values():
            samples.gather()
        if self.trainer.is_global_zero:
            settings |= {"versions": versions(), "commit": commit()}
            self._write(Report(settings, scores, notes))

    def _write(self, report: Report) -> None:
        """The report, the sheets and the page."""
        paths = report.write(self.folder)
        shown = {}
        for name, samples in self.samples.items():
            paths.append(self.folder / f"contact_sheet-{file_name(name)}.png")
            samples.write(paths[-1])
            shown[name] = [Shown(*sample) for sample in samples.kept.values()]
        paths.append(write_page(self.folder / "report.html", report, shown))
        log_scores(report, self.folder)
        print(f"\n{report.printed()}\nwrote {', '.join(map(str, paths))}")

    def _move(self) -> None:
        """Follow the trainer's device, and its precision if that is "bf16-true" or the like."""
        self.pipe.to(self.device)
        if self.dtype != torch.float32:
            self.pipe.to(self.dtype)

    def _rebuilt(self, batch: ClipBatch) -> dict[str, Tensor]:
        """The clips of a batch and their reconstructions."""
        pixels = to_uint8(self.pipe.decode(self.pipe.encode(batch.clip)))
        return {REAL: batch.clip, RECONSTRUCTION: pixels / 127.5 - 1}

    def _levels(self, batch: ClipBatch, name: str) -> dict[str, Tensor]:
        """The clips of a batch at all levels, from nothing to everything generated.

        What an earlier run made is read, so all of it is 8-bit, as the metrics see it.
        """
        stored, files = self.clips[name], sample_names(batch)
        missing = [stored.missing(file) for file in files]  # once: another run may write them too
        if any(missing):
            made = self._made(select(batch, torch.tensor(missing)))
            stored.save([f for f, lacks in zip(files, missing, strict=True) if lacks], made)
        if self.by_protocol is not None:
            self.by_protocol.add(name, batch, files)
        device = batch.clip.device
        found = {level: stored.load(level, files).to(device) / 127.5 - 1 for level in LEVELS[1:]}
        return {REAL: batch.clip} | found

    def _made(self, batch: ClipBatch) -> dict[str, Tensor]:
        latent = self.pipe.encode(batch.clip)
        return {
            RECONSTRUCTION: self.pipe.decode(latent),
            MOTION: self._generate(batch, content=latent.content).frames,
            GENERATED: self._generate(batch).frames,
        }

    def _generate(
        self, batch: PromptBatch | ClipBatch, *, content: Tensor | None = None
    ) -> "CMDOutput":
        generators = sample_generators(self.seed, torch.as_tensor(batch.index))
        condition = cast(Condition, batch.condition)
        return self.pipe(condition, **self.sampling, generator=generators, content=content)
