"""CMD beside a plain video DiT: same clips, same CPU budget; accuracy, seconds and FLOPs per clip.

The baseline denoises the pixels of the whole clip with alternating space and time attention
(factorised as in Latte, Ma et al. 2024). Blocks, text tower, loss, sampler, optimizer and moving
average are the code that CMD's own stages use, so what differs is the decomposition alone.
"""

import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from jsonargparse import auto_cli
from side_by_side import Sampler, count_flops, num_parameters, read_prompts, report
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import BatchSampler, RandomSampler
from tqdm import tqdm

from cmdvid import CMDPipeline
from cmdvid.data.dataset import ClipDataset
from cmdvid.data.index import WebVid
from cmdvid.models.conditioning import TextConditioner
from cmdvid.models.content_dit import ConditionEmbedding
from cmdvid.models.diffusion import Diffusion, seeded_noise
from cmdvid.models.layers import AdaLNBlock, AdaLNHead, Attention, axial_sincos
from cmdvid.optim import Muon
from cmdvid.stages.generation import sample_generators
from cmdvid.stages.optimization import clip, configure
from cmdvid.video import ClipSpec

SCHEDULE_STEPS = 1000
COSINE = {
    "beta_schedule": "squaredcos_cap_v2",
    "timestep_spacing": "trailing",
    "clip_sample": False,
}


@dataclass(frozen=True)
class Settings:
    """Train a plain video DiT for a CPU budget, then compare it with a CMD pipeline.

    Args:
        data: Folder of the demo's data set: train.csv, val.csv, heldout.csv and the videos.
        pipeline: Folder of the CMD pipeline trained on it.
        seconds: CPU seconds to train for: those that CMD's three stages took together.
        num_prompts: Captions of each test set to generate from.
        width: Width of a token.
        depth: Pairs of a space and a time block.
        num_heads: Attention heads.
        patch: Side of a square patch in pixels.
        batch_size: Clips of a training step.
        lr: Peak of the learning rate, which follows one cycle over the budget.
        schedule: Of the noise: cosine, or that of one of CMD's two models.
        num_inference_steps: DDIM steps of every model.
        guidance_scale: Of the video DiT and of CMD's motion model; 1 is no guidance.
        content_guidance_scale: Of CMD's content model.
        seed: Of weights, training and samples.
        out: Markdown file to write the result to.
    """

    data: str = "runs/demo/data"
    pipeline: str = "runs/demo/pipeline"
    seconds: float = 1200.0
    num_prompts: int = 128
    width: int = 128
    depth: int = 4
    num_heads: int = 4
    patch: int = 8
    batch_size: int = 32
    lr: float = 4e-3
    schedule: Literal["cosine", "content", "motion"] = "cosine"
    num_inference_steps: int = 12
    guidance_scale: float = 2.0
    content_guidance_scale: float = 1.15
    seed: int = 0
    out: str | None = None


class AxialAttention(nn.Module):
    """Attention within each frame, or of each place over time; the tokens stay in one row.

    It takes the place of a block's full attention, so that modulation is computed once a sample.
    """

    def __init__(self, attention: Attention, *, num_frames: int, over_time: bool):
        super().__init__()
        self.attention, self.num_frames, self.over_time = attention, num_frames, over_time

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        rows = "(b s) l d" if self.over_time else "(b l) s d"
        mixed = self.attention(rearrange(x, f"b (l s) d -> {rows}", l=self.num_frames))
        return rearrange(mixed, f"{rows} -> b (l s) d", b=len(x), l=self.num_frames)


class VideoDiT(nn.Module):
    """Denoiser of whole clips: pairs of a space and a time block over all patches."""

    def __init__(self, settings: Settings, *, condition_dim: int, num_frames: int):
        super().__init__()
        self.patch, width = settings.patch, settings.width
        self.patches_in = nn.Linear(3 * self.patch**2, width)
        self.embedding = ConditionEmbedding(condition_dim, width=width)
        self.blocks = nn.ModuleList()
        for over_time in (False, True) * settings.depth:
            block = AdaLNBlock(width, num_heads=settings.num_heads)
            axial = AxialAttention(block.attention, num_frames=num_frames, over_time=over_time)
            block.add_module("attention", axial)
            self.blocks.append(block)
        self.head = AdaLNHead(width, out_features=3 * self.patch**2)

    def forward(
        self,
        noisy: Float[Tensor, "b 3 l h w"],
        t: Int[Tensor, " b"],
        condition: Float[Tensor, "b e"],
    ) -> Float[Tensor, "b 3 l h w"]:
        p = self.patch
        patches = rearrange(noisy, "b c l (y p) (x q) -> b l y x (c p q)", p=p, q=p)
        _, frames, height, width, _ = patches.shape
        x = self.patches_in(rearrange(patches, "b l y x d -> b (l y x) d"))
        centres = ((torch.arange(n) + 0.5) * p for n in (height, width))
        place = torch.cartesian_prod(torch.arange(frames) + 0.5, *centres).unbind(1)
        x = x + axial_sincos(*place, dim=x.shape[-1]).to(x)
        embedding = self.embedding(t, condition)
        for block in self.blocks:
            x = block(x, embedding)
        x = self.head(x, embedding)
        return rearrange(x, "b (l y x) (c p q) -> b c l (y p) (x q)", l=frames, y=height, p=p, q=p)


class Clips(NamedTuple):
    """All training clips in memory, and the statistics that bring them to unit variance."""

    pixels: UInt8[Tensor, "n 3 l h w"]
    captions: list[str]
    mean: Float[Tensor, "3 1 1 1"]
    std: Float[Tensor, "3 1 1 1"]


def read_clips(pipe: Any, settings: Settings) -> Clips:
    """Decode every training file once, at the size that the pipeline generates."""
    height, width = pipe.config.content_shape[1:]
    if height % settings.patch or width % settings.patch:
        raise ValueError(f"patch must divide clips of {height}x{width}, got {settings.patch}")
    spec = ClipSpec(num_frames=pipe.config.motion_shape[1], image_size=(height, width))
    dataset = ClipDataset(WebVid(f"{settings.data}/train.csv"), spec=spec)
    rows = [dataset[i] for i in tqdm(range(len(dataset)), desc="decode", unit="file")]
    pixels = torch.stack([cast(Tensor, row.clip) for row in rows])
    std, mean = torch.std_mean(pixels[:512] / 127.5 - 1, dim=(0, 2, 3, 4), keepdim=True)
    return Clips(pixels, [cast(str, row.condition) for row in rows], mean[0], std[0])


def build(pipe: Any, settings: Settings) -> Diffusion:
    """The baseline: text tower and averaging as in CMD's content model."""
    torch.manual_seed(settings.seed)
    conditioner: Any = TextConditioner.from_config(pipe.content_conditioner.config)
    theirs = {"content": pipe.content_scheduler.config, "motion": pipe.motion_scheduler.config}
    config = theirs.get(settings.schedule, COSINE)
    scheduler: Any = DDIMScheduler.from_config(config, prediction_type="sample")
    return Diffusion(
        VideoDiT(settings, condition_dim=conditioner.dim, num_frames=pipe.config.motion_shape[1]),
        conditioner=conditioner,
        scheduler=scheduler,
        ema_decay=0.995,
    )


def train(diffusion: Diffusion, clips: Clips, settings: Settings) -> str:
    """Train until the CPU seconds are spent; tell what was done."""
    optimizer = configure(diffusion, partial(Muon, lr=settings.lr, betas=(0.9, 0.99)), None)
    schedule = OneCycleLR(  # in steps of the budget, not of the optimizer
        optimizer,
        [settings.lr, settings.lr / 10],  # the text tower's tenth, as in CMD's stages
        SCHEDULE_STEPS,
        pct_start=0.05,
        cycle_momentum=False,
    )
    order = RandomSampler(clips.captions, num_samples=10**9)  # epochs without end
    loss, num_steps, start = torch.zeros(()), 0, time.process_time()
    with tqdm(total=round(settings.seconds), desc="train", unit="CPU s") as bar:
        for rows in BatchSampler(order, settings.batch_size, drop_last=True):
            spent = time.process_time() - start
            bar.update(min(round(spent), bar.total) - bar.n)
            if spent >= settings.seconds:
                break
            while schedule.last_epoch < int(SCHEDULE_STEPS * spent / settings.seconds) - 1:
                schedule.step()
            x = (clips.pixels[rows] / 127.5 - 1 - clips.mean) / clips.std
            loss = diffusion.loss(x, [clips.captions[i] for i in rows])
            optimizer.zero_grad()
            loss.backward()
            clip(diffusion.parameters(), 1.0)
            optimizer.step()
            diffusion.update_ema()
            num_steps += 1
            bar.set_postfix(steps=num_steps, loss=f"{loss.item():.3f}")
    return (
        f"{num_steps} steps of {settings.batch_size} in {time.process_time() - start:.0f} CPU "
        f"seconds (decoding {len(clips.pixels)} files not counted), last loss {loss.item():.3f}"
    )


def both_samplers(
    pipe: Any, diffusion: Diffusion, clips: Clips, settings: Settings
) -> dict[str, Sampler]:
    """CMD and the baseline with one interface, settings and seeds; captions to clips."""
    steps, scale = settings.num_inference_steps, settings.guidance_scale
    walk: Any = {"num_inference_steps": steps, "guidance_scale": scale}
    scales = {
        "guidance_scale": settings.content_guidance_scale,
        "motion_guidance_scale": scale,
    }

    def cmd(captions: Sequence[str], index: Tensor) -> Tensor:
        generators = sample_generators(settings.seed, index)
        return pipe(captions, num_inference_steps=steps, generator=generators, **scales).frames

    def video_dit(captions: Sequence[str], index: Tensor) -> Tensor:
        generators = sample_generators(settings.seed, index)
        noise = seeded_noise(clips.pixels.shape[1:], generators)
        return diffusion.sample(noise, captions, **walk) * clips.std + clips.mean

    return {"CMD": cmd, "video DiT": video_dit}


def main(settings: Settings) -> None:
    """Train the baseline, measure both models, print the table."""
    torch.set_num_threads(1)  # two threads would wait for each other in CPU seconds
    prompts = read_prompts(settings.data, settings.num_prompts)
    pipe = cast(Any, CMDPipeline.from_pretrained(settings.pipeline))
    pipe.set_progress_bar_config(disable=True)
    clips, diffusion = read_clips(pipe, settings), build(pipe, settings)
    samplers = both_samplers(pipe, diffusion, clips, settings)
    # counted first: what cannot sample fails before it is trained
    flops = {name: count_flops(sample, prompts["seen"][0]) for name, sample in samplers.items()}
    training = train(diffusion, clips, settings)
    sizes = {
        "CMD": num_parameters(*(m for m in pipe.components.values() if isinstance(m, nn.Module))),
        "video DiT": num_parameters(diffusion.denoiser, diffusion.conditioner),
    }
    text = report(samplers, prompts, flops=flops, sizes=sizes)
    text += f"\nVideo DiT: {training}.\n\n`{settings}`\n"
    print(f"\n{text}")
    if settings.out:
        Path(settings.out).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    # --num-prompts means --num_prompts, as in cmdvid itself
    args = [re.sub(r"^--[\w-]+", lambda m: f"--{m[0][2:].replace('-', '_')}", a) for a in sys.argv]
    main(auto_cli(Settings, args=args[1:], as_positional=False))
