"""One LightningModule for each stage; importing this makes their short names known to the CLI."""

from cmdvid.stages.autoencoder import AutoencoderStage
from cmdvid.stages.content import ContentStage
from cmdvid.stages.generation import GenerationStage
from cmdvid.stages.motion import MotionStage

__all__ = ["AutoencoderStage", "ContentStage", "GenerationStage", "MotionStage"]
