import io
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch.utils.data import DataLoader

from cmdvid.callbacks import ClipPreview, ClipWriter, encode_gif
from cmdvid.frames import to_pixels
from cmdvid.sheet import Samples, captions_of, file_name, moving_sheet, still_sheet
from cmdvid.types import ClipBatch, GeneratedBatch
from cmdvid.video import ClipSpec, read_clip

H, W, L = 16, 24, 6
COLOURS = {"red": (1.0, -0.75, -0.75), "green": (-0.75, 0.6, -0.6), "blue": (-0.75, -0.6, 1.0)}
CAPTIONS = ["-a red / blue & green\nclip", "красный круг 🎬", "x" * 400, ""]


def clip_of(colour: str) -> torch.Tensor:
    """A square of one colour that moves right over grey."""
    clip = torch.zeros(3, L, H, W)
    for frame in range(L):
        clip[:, frame, 4:12, 2 * frame : 2 * frame + 8] = torch.tensor(COLOURS[colour])[
            :, None, None
        ]
    return clip


def batches(captions, size=2):
    colours = list(COLOURS)
    items = [ClipBatch(clip_of(colours[i % 3]), c, i) for i, c in enumerate(captions)]
    return DataLoader(items, batch_size=size)


class Copying(LightningModule):
    """Returns the clips that it gets; ``kind`` leaves parts of the answer out."""

    def __init__(self, kind: str = "all"):
        super().__init__()
        self.kind = kind
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def predict_step(self, batch):
        return GeneratedBatch(
            clip=None if self.kind == "content" else batch.clip,
            content=batch.clip[:, :, 3],
            condition=batch.condition,
            index=batch.index,
            real=batch.clip if self.kind == "all" else None,
        )

    def training_step(self, batch):
        return self.weight.square().sum()

    def validation_step(self, batch):
        self.draws = torch.rand(1)

    def preview(self, batch):
        assert isinstance(batch.condition, list | tuple)
        self.seen, self.noise = batch, torch.rand(1)
        return {"real": batch.clip, "content": batch.clip[:, :, :1].expand_as(batch.clip)}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=folder, **(quiet | {"logger": False} | options))


def predict(folder, kind, captions, **options):
    writer = ClipWriter(str(folder / "out"), **options)
    runner = trainer(folder, callbacks=[writer])
    runner.predict(Copying(kind), batches(captions), return_predictions=False)
    return folder / "out"


def test_predict_writes_clips_content_frames_and_sheets(tmp_path, capsys):
    out = predict(tmp_path, "all", CAPTIONS)
    names = sorted(path.name for path in out.iterdir())
    assert names == [
        "000000-a-red-blue-green-clip-content.png",
        "000000-a-red-blue-green-clip.mp4",
        "000000-a-red-blue-green-clip.txt",
        "000001-красный-круг-content.png",
        "000001-красный-круг.mp4",
        "000001-красный-круг.txt",
        f"000002-{'x' * 80}-content.png",
        f"000002-{'x' * 80}.mp4",
        f"000002-{'x' * 80}.txt",
        "000003-content.png",
        "000003.mp4",
        "contact_sheet.mp4",
        "contact_sheet.png",
    ]
    assert (out / names[2]).read_text(encoding="utf-8") == f"{CAPTIONS[0]}\n"
    clip = read_clip(out / names[1], ClipSpec(L, (H, W)))
    assert (clip.float() / 127.5 - 1 - clip_of("red")).abs().mean() < 0.1
    with Image.open(out / names[0]) as content:
        assert (content.size, content.getpixel((10, 8))) == ((W, H), (255, 32, 32))
    assert f"wrote 4 samples to {out}" in capsys.readouterr().out


def test_the_sheet_shows_the_first_samples_at_whole_factors(tmp_path):
    out = predict(tmp_path, "generated", [f"clip {i}" for i in range(20)])
    with Image.open(out / "contact_sheet.png") as sheet:
        shades = {colour: n for n, colour in sheet.getcolors(1 << 24)}
    red = (255, 32, 32)
    # 6 of the 16 samples are red; a square has 64 pixels, and each side is enlarged by 6
    assert shades[red] == 6 * (4 + 1) * 64 * 6**2
    assert len(list(out.glob("*.mp4"))) == 21


def test_a_content_model_gives_pictures_only(tmp_path):
    out = predict(tmp_path, "content", CAPTIONS[:2])
    assert not list(out.glob("*.mp4"))
    assert len(list(out.glob("*.png"))) == 3


def test_frame_rates_below_one_are_refused():
    with pytest.raises(ValueError, match="at least 1 frame a second, got 0"):
        ClipWriter("out", fps=0)
    with pytest.raises(ValueError, match="num_clips must be at least 1, got 0"):
        ClipPreview(0)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a/b\\c:d*?\"<>|'e", "a-b-c-d-e"),
        ("-rf ..", "rf"),
        ("...", ""),
        ("né & ü", "né-ü"),
        ("half \udc80 letter", "half-letter"),
        ("a_b\t\0c", "a-b-c"),
    ],
)
def test_file_names_are_safe(text, name, tmp_path):
    assert file_name(text) == name
    assert file_name(text, 7) == f"000007-{name}".rstrip("-")
    (tmp_path / file_name(text, 7)).touch()


@pytest.mark.parametrize("text", ["語" * 300, "a" * 79 + "語" * 9, "🎬a" * 200])
def test_long_file_names_are_cut_between_letters(text):
    assert 60 < len(file_name(text).encode()) <= 80


def test_classes_are_shown_by_number():
    assert captions_of(torch.tensor([3, 12])) == ["class 3", "class 12"]


def test_sheets_hold_any_caption_and_size():
    rows = {
        "real": to_pixels(torch.zeros(3, 3, 5, 40, 400)),
        "content frame": to_pixels(torch.ones(3, 3, 1, 40, 400)),
    }
    captions = ["word " * 90, "字" * 200, "\u0000\u200b "]
    still, moving = still_sheet(rows, captions), moving_sheet(rows, captions)
    assert moving.shape[1] == 5
    assert still.shape[-1] > moving.shape[-1] > 192


def test_samples_keep_the_lowest_rows_whatever_order_they_come_in():
    samples = Samples(3)
    for index in ([7, 2], [5, 0], [1, 9]):
        rows = {"clip": torch.full((2, 3, 2, H, W), index[0] / 10)}
        samples.add(torch.tensor(index), ["a", "b"], rows)
    assert list(samples.kept) == [0, 1, 2]
    assert samples.seen == {0, 1, 2, 5, 7, 9}


@pytest.fixture
def previewed(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="run", version=0)
    model = Copying()
    preview = ClipPreview(3, fps=5)
    fit = trainer(tmp_path, logger=logger, callbacks=[preview], max_epochs=2)
    loader = batches(["a red clip", "a green clip", "a blue clip", "another"], size=4)
    fit.fit(model, loader, loader)
    logger.finalize("success")
    return model, Path(logger.log_dir)


def images(log_dir):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(log_dir), size_guidance={"images": 0})
    events.Reload()
    return {tag: events.Images(tag) for tag in events.Tags()["images"]}


def test_previews_are_logged_as_picture_animation_and_file(previewed):
    model, log_dir = previewed
    logged = images(log_dir)
    assert {tag: [event.step for event in events] for tag, events in logged.items()} == {
        "preview/frames": [1, 2],  # and none of the sanity check
        "preview/clips": [1, 2],
    }
    gif = Image.open(io.BytesIO(logged["preview/clips"][-1].encoded_image_string))
    assert (gif.format, gif.n_frames, gif.info["duration"]) == ("GIF", L, 200)
    assert len(model.seen.clip) == len(model.seen.condition) == 3
    files = sorted(path.name for path in (log_dir / "previews").iterdir())
    assert files == ["step=1.mp4", "step=2.mp4"]
    clip = read_clip(log_dir / "previews" / files[0], ClipSpec(L, gif.size[::-1]))
    assert not torch.equal(clip[:, 0], clip[:, -1])


def test_previews_leave_the_random_numbers_of_training_alone(previewed, tmp_path):
    model, _ = previewed
    fixed = torch.Generator().manual_seed(0)
    assert model.noise == torch.rand(1, generator=fixed)  # the same noise for each preview
    draws = []
    for callbacks in ([], [ClipPreview()]):
        torch.manual_seed(5)
        plain = Copying()
        fit = trainer(tmp_path, callbacks=callbacks, max_epochs=2, num_sanity_val_steps=0)
        fit.fit(plain, batches(["a", "b"]), batches(["a", "b"]))
        draws.append(plain.draws)
    assert torch.equal(*draws)


def test_animations_keep_the_colours():
    clip = moving_sheet(
        {"clip": to_pixels(torch.stack([clip_of(name) for name in COLOURS]))}, list(COLOURS)
    )
    gif = Image.open(io.BytesIO(encode_gif(clip, fps=8)))
    for frame in range(L):
        gif.seek(frame)
        shown = torch.frombuffer(bytearray(gif.convert("RGB").tobytes()), dtype=torch.uint8)
        wanted = clip[:, frame].permute(1, 2, 0).flatten()
        assert (shown.int() - wanted.int()).abs().max() <= 8
