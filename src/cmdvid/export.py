"""Trained stages as folders that diffusers opens: a whole pipeline, or its content model alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmdvid.models.sd_codec import StableDiffusionCodec
from cmdvid.models.sd_text import StableDiffusionText
from cmdvid.models.stable_diffusion import StableDiffusionUNet
from cmdvid.stages.networks import FrozenAutoencoder, load_network, read_checkpoint

KINDS = ("denoiser", "conditioner", "scheduler")


def export_pipeline(
    *,
    content: str,
    motion: str | None = None,
    out: str | None = None,
    images_out: str | None = None,
    autoencoder: str | None = None,
) -> None:
    """Join the checkpoints of all stages into one pipeline folder, with averaged weights.

    Args:
        content: Checkpoint of the content stage.
        motion: Checkpoint of the motion stage; images need none.
        out: Folder to write; CMDPipeline.from_pretrained reads it.
        images_out: Folder for the content model alone, if it is Stable Diffusion's U-Net;
            diffusers' StableDiffusionPipeline.from_pretrained reads it.
        autoencoder: Checkpoint of the autoencoder stage, if it moved since the others trained.

    Raises:
        ValueError: If the stages were trained on different autoencoders or sizes, or another
            autoencoder is given.
    """
    if (motion is None) != (out is None) or (out is None and images_out is None):
        raise ValueError("give --motion and --out for a pipeline, --images-out for images, or all")
    paths = {"content": content} | ({} if motion is None else {"motion": motion})
    checkpoints = {part: read_checkpoint(path) for part, path in paths.items()}
    frozen = _shared_autoencoder(checkpoints, paths, autoencoder)
    shapes = _shared_shapes(checkpoints, paths)
    parts = {
        f"{part}_{kind}": load_network(checkpoint, f"{part}_{kind}", source=paths[part])
        for part, checkpoint in checkpoints.items()
        for kind in KINDS
    }
    if isinstance(parts["content_denoiser"], StableDiffusionUNet):
        parts["content_denoiser"].merge_lora()  # so that nobody needs peft, and unloads it unawares
    if images_out is not None:
        content_parts = {kind: parts[f"content_{kind}"] for kind in KINDS}
        _save_images(Path(images_out), codec=frozen.codec, source=content, **content_parts)
    if out is not None:
        from cmdvid.pipeline import CMDPipeline

        pipeline = CMDPipeline(
            autoencoder=frozen.autoencoder,
            codec=frozen.codec,
            content_shape=shapes["content"],
            motion_shape=shapes["motion"],
            **parts,
        )
        pipeline.save_pretrained(Path(out))
        print(f"wrote the pipeline to {out}")


def _shared_autoencoder(
    checkpoints: Mapping[str, Mapping[str, Any]], paths: Mapping[str, str], autoencoder: str | None
) -> FrozenAutoencoder:
    """The autoencoder that all stages were trained on."""
    for part, checkpoint in checkpoints.items():
        if "autoencoder" not in checkpoint:
            raise ValueError(f"{paths[part]}: not a checkpoint of the {part} stage")
    ckpt = autoencoder or checkpoints["content"]["autoencoder"]["ckpt"]
    frozen = FrozenAutoencoder(ckpt)
    for part, checkpoint in checkpoints.items():
        origin = checkpoint["autoencoder"]
        frozen.refuse_other(
            origin["fingerprint"],
            origin["ckpt"],
            subject=f"{paths[part]}: trained on",
            advice="; all stages must share one autoencoder",
        )
    return frozen


def _shared_shapes(
    checkpoints: Mapping[str, Mapping[str, Any]], paths: Mapping[str, str]
) -> dict[str, list[int]]:
    """The shapes of the latents that all stages were trained on."""
    (first, shapes), *others = ((part, c["latent_shapes"]) for part, c in checkpoints.items())
    for part, found in others:
        if found != shapes:
            raise ValueError(
                f"{paths[part]}: trained on latents {found}, but {paths[first]} on {shapes}; all "
                "stages must be trained on clips of one size"
            )
    return shapes


def _save_images(
    folder: Path, *, codec: Any, denoiser: Any, conditioner: Any, scheduler: Any, source: str
) -> None:
    """Write the content model as an ordinary Stable Diffusion: its images are content frames."""
    needed = (
        (denoiser, StableDiffusionUNet),
        (conditioner, StableDiffusionText),
        (codec, StableDiffusionCodec),
    )
    for part, cls in needed:
        if not isinstance(part, cls):
            raise ValueError(
                f"{source}: its content model has a {type(part).__name__}, but only one with a "
                f"{cls.__name__} can be exported for images; leave out --images-out"
            )
    if codec.shift:
        raise ValueError(
            f"{source}: its VAE shifts latents by {codec.shift}, which StableDiffusionPipeline "
            "does not undo: images would have other colours; leave out --images-out"
        )
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import (
        StableDiffusionPipeline,
    )

    optional: Any = {"safety_checker": None, "feature_extractor": None}
    pipeline = StableDiffusionPipeline(
        vae=codec.vae,
        text_encoder=conditioner.text_encoder,
        tokenizer=conditioner.tokenizer,
        unet=denoiser.plain(),
        scheduler=scheduler,
        requires_safety_checker=False,
        **optional,
    )
    pipeline.save_pretrained(folder)
    print(f"wrote the content model for images to {folder}")
