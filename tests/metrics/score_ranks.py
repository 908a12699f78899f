"""One of two processes, each with its share of clips: python score_ranks.py OUT RANK."""

import json
import sys
from pathlib import Path

import torch
from torch import distributed, nn

from cmdvid.metrics.frechet import FrechetVideoDistance
from cmdvid.metrics.inception import VideoInceptionScore
from cmdvid.metrics.motion import MotionStatistics

REALS = 20


class Colours(nn.Module):
    num_features = 3

    def forward(self, clip):
        return clip.float().mean(dim=(2, 3, 4)) / 255


class Classes(Colours):
    def forward(self, clip):
        return (30 * super().forward(clip)).softmax(dim=1)


def scores(rank: int, world: int) -> dict:
    """All scores; of two processes, the first sees no generated clip at all."""
    clips = torch.randint(256, (45, 3, 2, 4, 6), generator=torch.Generator().manual_seed(3))
    clips = clips.to(torch.uint8)
    distance = FrechetVideoDistance(Colours(), unbiased=True, keep_features=True)
    inception = VideoInceptionScore(Classes(), num_classes=3, num_splits=4)
    motion = MotionStatistics()
    for i, clip in enumerate(clips.split(1)):
        if (i % world if i < REALS else world - 1) == rank:
            distance.update(clip, real=i < REALS)
        if i % world == rank:
            inception.update(clip)
            motion.update(clip)
    return {
        "distance": distance.compute(),
        "inception": inception.compute(),
        "motion": motion.compute(),
        "features": distance.generated.features().tolist(),
    }


def main(out: str, rank: int) -> None:
    torch.set_num_threads(1)
    place = f"file://{Path(out).resolve()}/store"
    distributed.init_process_group("gloo", init_method=place, world_size=2, rank=rank)
    Path(out, f"{rank}.json").write_text(json.dumps(scores(rank, world=2)))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
