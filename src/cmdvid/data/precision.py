"""Batches travel small, as uint8 or half precision, and are computed with in float32."""

from typing import Any

from cmdvid.types import ClipBatch, FramesBatch, LatentBatch


def to_float(batch: Any) -> Any:
    """The same batch with uint8 clips as float in [-1, 1], and cached values as float32."""
    if isinstance(batch, ClipBatch) and not batch.clip.is_floating_point():
        return batch._replace(clip=batch.clip.float() / 127.5 - 1)
    if isinstance(batch, LatentBatch):
        values = (batch.latent, batch.text)
        latent, text = (type(value)(*(part.float() for part in value)) for value in values)
        return batch._replace(latent=latent, text=text)
    if isinstance(batch, FramesBatch):
        return batch._replace(frames=batch.frames.float())
    return batch
