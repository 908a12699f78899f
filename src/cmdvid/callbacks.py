"""What one looks at: the files that ``predict`` writes, and the previews of training."""

import io
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from einops import rearrange
from jaxtyping import UInt8
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image
from torch import Tensor

from cmdvid.data.datamodule import VideoDataModule
from cmdvid.frames import to_pixels
from cmdvid.manifest import digest, source_digest
from cmdvid.sheet import (
    Samples,
    captions_of,
    file_name,
    moving_sheet,
    still_sheet,
    write_picture,
)
from cmdvid.stages.sharding import is_sharded
from cmdvid.types import GeneratedBatch
from cmdvid.video import write_clip
from cmdvid.whole import whole, write_text

NOTE = ".made_of"  # beside the clips: hash of what makes them
PREVIEW_SEED = 0  # each preview starts from the same noise, so that they compare over training


class ClipWriter(BasePredictionWriter):
    """Write predicted clips as mp4, their content frames as png, and a contact sheet of the first.

    Names are ``<index>-<caption>.mp4``, the same with ``-content.png``, and with ``.txt`` for the
    whole caption; ``contact_sheet.png`` (a few frames of each clip) and ``contact_sheet.mp4``.
    Processes of a distributed run share the folder, for an index is one process's alone.

    A generation that was interrupted goes on: if all that makes a clip is as it was (the stage's
    ``settings()`` and the source), and the folder held no clips when it began, samples whose files
    are there are left out, but for those on the contact sheet.

    Args:
        out: Folder to write to.
        fps: Frames a second of the mp4 files.
    """

    def __init__(self, out: str, *, fps: int = 8):
        super().__init__("batch")
        self.out, self.fps, self.samples = Path(out), _checked_fps(fps), Samples()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let files that give no clip be listed there, too."""
        data = cast(Any, trainer).datamodule
        if stage == "predict" and isinstance(data, VideoDataModule):
            data.report_in(self.out)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a new contact sheet, and see what an interrupted run has left."""
        self.samples = Samples()
        self.out.mkdir(parents=True, exist_ok=True)
        if not hasattr(pl_module, "is_made"):
            return
        stage: Any = pl_module
        key = digest(stage.settings() | {"source": source_digest(), "fps": self.fps})
        note = self.out / NOTE
        goes_on = note.is_file() and note.read_text(encoding="utf-8") == key
        is_new = not any(self.out.glob("*.mp4"))
        trainer.strategy.barrier()  # all have looked before the first process writes
        if trainer.is_global_zero and not goes_on:
            note.unlink(missing_ok=True)  # what is there was made otherwise
            if is_new:
                write_text(note, key)
        if goes_on:
            warnings.filterwarnings("ignore", "predict returned None")  # for what is made
            stage.is_made = self.is_made

    def is_made(self, row: int, caption: str) -> bool:
        """Whether a sample's files are there and its row is not on the sheet, which needs it."""
        path = self.out / f"{file_name(caption, row)}.mp4"  # written last
        text = path.with_suffix(".txt")  # there is none of a label
        is_said = not text.is_file() or text.read_text(encoding="utf-8") == f"{caption}\n"
        return row >= self.samples.num and path.is_file() and is_said

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: GeneratedBatch,
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write each sample of a batch; a content model's have no clip."""
        captions = captions_of(prediction.condition)
        for b, (i, caption) in enumerate(zip(prediction.index.tolist(), captions, strict=True)):
            name = file_name(caption, i)
            picture = to_pixels(prediction.content[b][:, None])[:, 0]
            with whole(self.out / f"{name}-content.png", shared=True) as path:
                write_picture(path, picture)
            if prediction.clip is not None:
                if caption and not isinstance(prediction.condition, Tensor):  # no name has all
                    with whole(self.out / f"{name}.txt", shared=True) as path:
                        path.write_text(f"{caption}\n", encoding="utf-8")
                with whole(self.out / f"{name}.mp4", shared=True) as path:
                    write_clip(path, prediction.clip[b], self.fps)
        rows = {
            "real": prediction.real,
            "clip": prediction.clip,
            "content frame": prediction.content[:, :, None],
        }
        rows = {name: clips for name, clips in rows.items() if clips is not None}
        self.samples.add(prediction.index, prediction.condition, rows)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the contact sheet and say where everything is."""
        self.samples.gather()
        if trainer.is_global_zero and self.samples.kept:
            sheet = self.out / "contact_sheet.png"
            self.samples.write(sheet, self.fps)
            num = len(self.samples.seen)
            print(f"wrote {num} samples to {self.out}, the first of them on {sheet}")


class ClipPreview(Callback):
    """Show what a stage makes of its first validation clips, after each validation.

    The stage's ``preview(batch)`` returns clips "b 3 l h w" in [-1, 1] by name, such as real,
    reconstruction, content, generated. They go to TensorBoard as the picture ``preview/frames``
    and the animation ``preview/clips``, and to ``<log_dir>/previews/step=N.mp4``.

    Args:
        num_clips: How many clips of the first batch are shown.
        fps: Frames a second.
    """

    def __init__(self, num_clips: int = 4, fps: int = 8):
        if num_clips < 1:
            raise ValueError(f"ClipPreview.num_clips must be at least 1, got {num_clips}")
        self.num_clips, self.fps = num_clips, _checked_fps(fps)
        self.batch: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Learn the folder of the logs."""
        # asked on every process, for it is a broadcast
        self.folder = Path(trainer.log_dir or trainer.default_root_dir) / "previews"

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first clips; networks that are cut up are run by all processes or none."""
        drawn = trainer.is_global_zero or is_sharded(trainer)
        if batch_idx == 0 and dataloader_idx == 0 and drawn:
            self.batch = _first(batch, self.num_clips)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the preview, without touching the random numbers of training."""
        batch, self.batch = self.batch, None
        if batch is None or trainer.sanity_checking or cast(Any, trainer).fast_dev_run:
            return
        with isolate_rng(), trainer.precision_plugin.val_step_context():
            torch.manual_seed(PREVIEW_SEED)
            clips = cast(Any, pl_module).preview(batch)
        if not trainer.is_global_zero:
            return
        pixels = {name: to_pixels(clip).cpu() for name, clip in clips.items()}
        captions, step = captions_of(batch.condition), trainer.global_step
        moving = moving_sheet(pixels, captions)
        write_clip(self.folder / f"step={step}.mp4", moving, self.fps)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                writer = logger.experiment
                writer.add_image("preview/frames", still_sheet(pixels, captions), step)
                add_animation(writer, "preview/clips", moving, step=step, fps=self.fps)


def add_animation(
    writer: Any, tag: str, clip: UInt8[Tensor, "3 l h w"], *, step: int, fps: float
) -> None:
    """Log a clip that plays in TensorBoard's Images tab.

    ``SummaryWriter.add_video`` writes nothing with any current moviepy, so this puts an animated
    GIF into an image summary; the file writer below is the way in that SummaryWriter uses itself.
    """
    from tensorboard.compat.proto import summary_pb2

    messages = cast(Any, summary_pb2)  # protobuf makes its classes while it is imported
    height, width = clip.shape[-2:]
    image = messages.Summary.Image(
        height=height, width=width, colorspace=3, encoded_image_string=encode_gif(clip, fps)
    )
    summary = messages.Summary(value=[messages.Summary.Value(tag=tag, image=image)])
    writer._get_file_writer().add_summary(summary, step)


def encode_gif(clip: UInt8[Tensor, "3 l h w"], fps: float) -> bytes:
    """Encode an endless animation; each frame has the 256 colours that suit it best, undithered."""
    frames = [
        Image.fromarray(frame).quantize(dither=Image.Dither.NONE)
        for frame in rearrange(clip, "c l h w -> l h w c").cpu().numpy()
    ]
    file = io.BytesIO()
    frames[0].save(
        file,
        format="GIF",
        save_all=True,
        append_images=frames[1:],
        duration=round(1000 / fps),
        loop=0,
        optimize=False,
    )
    return file.getvalue()


def _first(value: Any, num: int) -> Any:
    """The first samples of a batch, which is a named tuple of tensors, captions and the like."""
    if hasattr(value, "_fields"):
        return type(value)(*(_first(part, num) for part in value))
    return value[:num]


def _checked_fps(fps: int) -> int:
    if fps < 1:
        raise ValueError(f"fps must be at least 1 frame a second, got {fps}")
    return fps
