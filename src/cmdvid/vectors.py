"""What the metrics keep of each clip, read in one pass and kept on disk until they change.

A vector a clip and metric: features, probabilities or scores. They are small, so an interrupted
evaluation goes on where it was, real clips are read once for all models, and intervals and floors
cost no second pass.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Float32, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from cmdvid.manifest import digest, source_digest, versions
from cmdvid.metrics.motion import dynamics, frame_difference
from cmdvid.metrics.weights import fetch, origin
from cmdvid.types import ClipBatch
from cmdvid.whole import whole

BATCH = 8  # clips that a network sees at once
SHARD = 8 * BATCH  # clips in a file: what an interrupted evaluation loses at most
FILES = {"fvd": "i3d", "inception": "c3d", "clipsim": "clip"}  # of ``Weights``, by metric
REPLACED = "replaced"  # among the vectors: 1 for a clip of another video than was asked for

Reader: TypeAlias = Callable[[Tensor, Sequence[str]], Tensor]
"""A metric's look at clips: uint8 "b 3 l h w" and their captions to vectors "b d"."""


class Network(NamedTuple):
    """A reader, and what its vectors depend on beside the clips."""

    read: Reader
    made_by: dict[str, Any]


@dataclass(frozen=True)
class Weights:
    """Files of the networks that metrics look through; only those of a protocol are read.

    Attributes:
        i3d: Of FVD: I3D as TorchScript or state dict, or its URL.
        c3d: Of the Inception Score: C3D as TorchScript, or its URL.
        clip: Of CLIPSIM: open_clip's ViT-B/32, a file or a tag of weights to download.
    """

    i3d: str = "i3d.pt"
    c3d: str = "c3d.pt"
    clip: str = "openai"


@dataclass(frozen=True)
class Share:
    """Which part of the clips this process reads, and how it waits for the others."""

    rank: int = 0
    world_size: int = 1
    wait: Callable[[], object] = lambda: None


class Networks(NamedTuple):
    """The networks of some metrics."""

    found: dict[str, Network]  # by metric
    missing: dict[str, str]  # what the others need, by metric


def load_networks(metrics: Sequence[str], weights: Weights, device: torch.device) -> Networks:
    """The networks of some metrics, on a device, as far as their weights are there.

    Raises:
        ValueError: If a file that was asked for is missing or of another kind, or no metric has its
            weights; tells which, and where they are.
    """
    found, missing = {}, {}
    for metric in metrics:
        try:
            found[metric] = _network(metric, weights, device)
        except ValueError as error:
            if _asked_for(metric, weights):
                raise
            missing[metric] = f"give {FILES[metric]}: {error}"
    if not found:
        raise ValueError("\n".join(missing.values()))
    return Networks(found, missing)


def _asked_for(metric: str, weights: Weights) -> bool:
    """Whether somebody named the weights of a metric, or put them where they are looked for."""
    if (name := FILES.get(metric)) is None:
        return True
    source = getattr(weights, name)
    return source != getattr(Weights, name) or os.path.exists(source)


def _network(metric: str, weights: Weights, device: torch.device) -> Network:
    from cmdvid.metrics import i3d, inception
    from cmdvid.metrics.clipsim import MODEL, load_clip
    from cmdvid.metrics.shapes import ShapesFeatures

    if metric == "motion":
        return Network(_motion, {"network": "none"})
    if metric == "fvd_shapes":
        features = ShapesFeatures()
        return Network(_alone(features), {"network": "oracle", "shapes": list(features.shapes)})
    if metric == "clipsim":
        clip = load_clip(weights.clip).to(device)
        made_by = {"network": MODEL, "weights": origin(weights.clip), "how": clip.preprocessing}
        return Network(lambda x, captions: clip(x, captions)[:, None], made_by)
    if metric == "fvd":
        path = fetch(weights.i3d, None, i3d.OFFERS)
        network = i3d.load_i3d(path).to(device)
    else:
        path = fetch(weights.c3d, None, inception.OFFERS)
        network = inception.load_c3d(path).to(device)
    made_by = {"network": type(network).__name__, "weights": origin(str(path))}
    return Network(_alone(network), made_by)


def _alone(network: torch.nn.Module) -> Reader:
    return lambda clip, captions: network(clip)


def _motion(clip: UInt8[Tensor, "b 3 l h w"], captions: Sequence[str]) -> Float[Tensor, "b 2"]:
    """Mean change from frame to frame, and dynamics."""
    return torch.stack([frame_difference(clip), dynamics(clip)], dim=1)


@torch.no_grad()
def read_vectors(
    clips: Dataset[ClipBatch],
    networks: Mapping[str, Network],
    folder: Path,
    *,
    made_of: Mapping[str, Any],
    captions: Sequence[str] | None = None,
    share: Share = Share(),
    device: torch.device,
    num_workers: int = 0,
    label: str = "clips",
    replaced: Callable[[int], bool] = lambda row: False,
) -> dict[str, Float32[Tensor, "n _"]]:
    """The vectors of all clips by metric, in the order of the clips.

    Args:
        clips: Any number of them, uint8.
        networks: By metric.
        folder: Where vectors are kept, in a folder named by what they depend on.
        made_of: What the clips depend on.
        captions: Of each clip, for networks that compare with them.
        share: The processes that share the work; all must call this.
        device: Of the networks.
        num_workers: Processes that read clips.
        label: Of the progress bar.
        replaced: Tells of a row that was read whether another video took its place; kept as the
            vectors ``REPLACED``.

    Raises:
        ValueError: If a clip cannot be read, or a network cannot take it.
    """
    known = {
        "clips": dict(made_of),
        "networks": {k: v.made_by for k, v in networks.items()},
        "source": source_digest(),  # of decoding, resizing and the networks
        "versions": versions(),
    }
    place = folder / digest(known)[:20]
    num = len(clips)  # type: ignore[arg-type]
    starts = range(0, num, SHARD)
    missing = [start for start in starts if not _shard(place, start).is_file()]
    share.wait()  # or a slow process would see fewer missing, and share out the rest otherwise
    if mine := missing[share.rank :: share.world_size]:
        with whole(place / "made_of.json", shared=True) as part:
            part.write_text(json.dumps(known, indent=2) + "\n")
        rows = [row for start in mine for row in range(start, min(start + SHARD, num))]
        loader = DataLoader(Subset(clips, rows), batch_size=BATCH, num_workers=num_workers)
        said = [captions[row] for row in rows] if captions is not None else [""] * len(rows)
        found: list[dict[str, Tensor]] = []
        for batch in tqdm(loader, desc=label, unit="batch", disable=share.rank > 0):
            texts, said = said[: len(batch.clip)], said[len(batch.clip) :]
            clip = batch.clip.to(device)
            found.append({k: x.read(clip, texts).float().cpu() for k, x in networks.items()})
            if len(found) == SHARD // BATCH or not said:
                start = mine.pop(0)
                marks = [[float(replaced(r))] for r in range(start, min(start + SHARD, num))]
                _save(_shard(place, start), _joined(found) | {REPLACED: torch.tensor(marks)})
                found = []
    share.wait()
    return _joined([_load(_shard(place, start)) for start in starts])


def _joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _shard(place: Path, start: int) -> Path:
    return place / f"{start:08d}.safetensors"


def _save(path: Path, vectors: dict[str, Tensor]) -> None:
    with whole(path, shared=True) as part:
        save_file({name: value.contiguous() for name, value in vectors.items()}, part)


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); delete it to have it made") from error
