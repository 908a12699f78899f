"""One of several processes, each with its share of clips: python score_ranks.py OUT WORLD RANK."""

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


def main(out: str, world: int, rank: int) -> None:
    torch.set_num_threads(1)
    place = f"file://{Path(out).resolve()}/store"
    distributed.init_process_group("gloo", init_method=place, world_size=world, rank=rank)
    clips = torch.randint(256, (45, 3, 2, 4, 6), generator=torch.Generator().manual_seed(3))
    clips = clips.to(torch.uint8)
    distance = FrechetVideoDistance(Colours(), unbiased=True, keep_features=True)
    inception = VideoInceptionScore(Classes(), num_classes=3, num_splits=4)
    motion = MotionStatistics()
    mine = range(rank, len(clips), world)
    for i in [i for i in mine if i < REALS or world == 1 or rank == 1]:
        distance.update(clips[i : i + 1], real=i < REALS)
    if world == 2 and rank == 1:  # the first process saw no generated clip at all
        for i in range(REALS, len(clips), 2):
            distance.update(clips[i : i + 1], real=False)
    for i in mine:
        inception.update(clips[i : i + 1])
        motion.update(clips[i : i + 1])
    scores = {
        "distance": distance.compute(),
        "inception": inception.compute(),
        "motion": motion.compute(),
        "features": distance.generated.features().tolist(),
    }
    Path(out, f"{rank}.json").write_text(json.dumps(scores))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
