"""How much of real frames a codec keeps: PSNR of each video's frames, encoded and decoded.

    python benchmarks/codec_psnr.py VIDEOS MODEL [--size "[256,256]"] [--tiny FOLDER]

MODEL is a Stable Diffusion model or its VAE (folder or hub id), or a folder with TAEF2's files.
"""

import time
from pathlib import Path

import torch
from einops import rearrange
from jsonargparse import auto_cli
from taef2 import TAEF2
from tqdm import tqdm

from cmdvid.losses import psnr
from cmdvid.models.sd_codec import StableDiffusionCodec
from cmdvid.video import ClipSpec, read_clip


def main(
    videos: str,
    model: str,
    tiny: str | None = None,
    size: tuple[int, int] = (256, 256),
    num_frames: int = 16,
) -> None:
    """Print a Markdown table: mean and lowest PSNR of the frames of each video.

    Args:
        videos: Folder of mp4 files, at any depth; of each the clip in the middle is taken.
        model: Stable Diffusion model, its VAE, or TAEF2's folder.
        tiny: AutoencoderTiny that decodes.
        size: Height and width, divisible by 8.
        num_frames: Frames of each video.
    """
    paths = sorted(Path(videos).rglob("*.mp4"))
    if not paths:
        raise ValueError(f"{videos}: there is no mp4 file in it")
    codec = open_codec(model, tiny).eval().to("cuda" if torch.cuda.is_available() else "cpu")
    spec = ClipSpec(num_frames=num_frames, image_size=size)
    rows, spent = {}, 0.0
    for path in tqdm(paths, unit="video"):
        clip = read_clip(path, spec)[None].to(codec.device) / 127.5 - 1
        start = time.perf_counter()
        with torch.no_grad():
            rebuilt = codec.decode(codec.encode(clip))
        score = psnr(*(rearrange(x, "1 c l h w -> l c 1 h w") for x in (rebuilt, clip)))
        spent += time.perf_counter() - start
        rows[path.stem] = score.cpu()
    rows["all"] = torch.cat(list(rows.values()))
    print(f"| {size[0]}x{size[1]} | frames | PSNR, dB | lowest |\n|---|---|---|---|")
    for name, score in rows.items():
        print(f"| {name} | {len(score)} | {score.mean():.2f} | {score.min():.2f} |")
    print(f"{1000 * spent / len(rows['all']):.0f} ms a frame on {codec.device.type}")


def open_codec(model: str, tiny: str | None) -> StableDiffusionCodec:
    if (Path(model) / "taef2_encoder.pth").is_file():
        return StableDiffusionCodec(vae=TAEF2(model))
    return StableDiffusionCodec(model, tiny=tiny)


if __name__ == "__main__":
    auto_cli(main, as_positional=True)
