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

from cmdvid.manifest import digest
from cmdvid.metrics.motion import dynamics, frame_difference
from cmdvid.metrics.weights import digest as file_digest
from cmdvid.types import ClipBatch

BATCH = 8  # clips that a network sees at once
SHARD = 8 * BATCH  # clips in a file: what an interrupted evaluation loses at most


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
        c3d: Of the Inception Score: C3D as TorchScript.
        clip: Of CLIPSIM: open_clip's ViT-B/32, a file or a tag of weights to download.
    """

    i3d: str | None = None
    c3d: str | None = None
    clip: str = "openai"


@dataclass(frozen=True)
class Share:
    """Which part of the clips this process reads, and how it waits for the others."""

    rank: int = 0
    world_size: int = 1
    wait: Callable[[], object] = lambda: None


def load_networks(
    metrics: Sequence[str], weights: Weights, device: torch.device
) -> dict[str, Network]:
    """The networks of some metrics, on a device.

    Raises:
        ValueError: If weights are missing or of another kind; tells which, and where they are.
    """
    return {metric: _network(metric, weights, device) for metric in metrics}


def _network(metric: str, weights: Weights, device: torch.device) -> Network:
    from cmdvid.metrics.clipsim import MODEL, load_clip
    from cmdvid.metrics.i3d import load_i3d
    from cmdvid.metrics.inception import load_c3d
    from cmdvid.metrics.shapes import ShapesFeatures

    if metric == "motion":
        return Network(_motion, {"network": "none"})
    if metric == "fvd_shapes":
        features = ShapesFeatures()
        return Network(_alone(features), {"network": "oracle", "shapes": list(features.shapes)})
    if metric == "clipsim":
        clip = load_clip(weights.clip).to(device)
        made_by = {"network": MODEL, "weights": _origin(weights.clip), "how": clip.preprocessing}
        return Network(lambda x, captions: clip(x, captions)[:, None], made_by)
    name, load = ("i3d", load_i3d) if metric == "fvd" else ("c3d", load_c3d)
    path = getattr(weights, name)
    network = load(path or f"{name}.pt").to(device)
    return Network(_alone(network), {"network": type(network).__name__, "weights": _origin(path)})


def _alone(network: torch.nn.Module) -> Reader:
    return lambda clip, captions: network(clip)


def _motion(clip: UInt8[Tensor, "b 3 l h w"], captions: Sequence[str]) -> Float[Tensor, "b 2"]:
    """Mean change from frame to frame, and dynamics."""
    return torch.stack([frame_difference(clip), dynamics(clip)], dim=1)


def _origin(weights: str) -> str:
    """The hash of a file, which its place does not change; a tag or URL as it is."""
    return f"sha256:{file_digest(weights)}" if os.path.isfile(weights) else weights


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

    Raises:
        ValueError: If a clip cannot be read, or a network cannot take it.
    """
    known = {"clips": dict(made_of), "networks": {k: v.made_by for k, v in networks.items()}}
    place = folder / digest(known)[:20]
    num = len(clips)  # type: ignore[arg-type]
    starts = range(0, num, SHARD)
    missing = [start for start in starts if not _shard(place, start).is_file()]
    share.wait()  # or a slow process would see fewer missing, and share out the rest otherwise
    if mine := missing[share.rank :: share.world_size]:
        place.mkdir(parents=True, exist_ok=True)
        (place / "made_of.json").write_text(json.dumps(known, indent=2) + "\n")
        rows = [row for start in mine for row in range(start, min(start + SHARD, num))]
        loader = DataLoader(Subset(clips, rows), batch_size=BATCH, num_workers=num_workers)
        said = [captions[row] for row in rows] if captions is not None else [""] * len(rows)
        found: list[dict[str, Tensor]] = []
        for batch in tqdm(loader, desc=label, unit="batch", disable=share.rank > 0):
            texts, said = said[: len(batch.clip)], said[len(batch.clip) :]
            clip = batch.clip.to(device)
            found.append({k: x.read(clip, texts).float().cpu() for k, x in networks.items()})
            if len(found) == SHARD // BATCH or not said:
                _save(_shard(place, mine.pop(0)), _joined(found))
                found = []
    share.wait()
    return _joined([_load(_shard(place, start)) for start in starts])


def _joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _shard(place: Path, start: int) -> Path:
    return place / f"{start:08d}.safetensors"


def _save(path: Path, vectors: dict[str, Tensor]) -> None:
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    save_file({name: value.contiguous() for name, value in vectors.items()}, temporary)
    os.replace(temporary, path)


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); delete it to have it made") from error
