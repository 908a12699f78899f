"""Content-motion latent diffusion for video; importing this package costs nothing."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cmdvid.pipeline import CMDPipeline

__version__ = "0.1.0"
__all__ = ["CMDPipeline", "__version__"]


def __getattr__(name: str) -> Any:
    """Import what is heavy on first use."""
    if name == "CMDPipeline":
        from cmdvid.pipeline import CMDPipeline

        return CMDPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
