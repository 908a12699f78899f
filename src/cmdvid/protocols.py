"""Evaluation protocols: everything that two numbers must have in common to be compared."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from cmdvid.video import ClipSpec

FOLDER = Path(__file__).parent / "presets"
Measure = Literal["fvd", "fvd_shapes", "clipsim", "inception", "motion"]
WITH_REALS = ("fvd", "fvd_shapes")  # compared with real clips; the others look at one clip alone


@dataclass(frozen=True)
class Protocol:
    """One way to evaluate. docs/evaluation.md tells what each preset follows.

    Attributes:
        name: In reports.
        metrics: What is measured. ``fvd`` needs I3D, ``clipsim`` CLIP and captions, ``inception``
            C3D; ``fvd_shapes`` is a stand-in of the procedural data set and comparable with no FVD.
        num_samples: Generated clips.
        spec: The clip, by default 16 frames of 64x64; all frames are resized and cropped to it.
        num_reals: Real clips, if not as many as generated ones.
        split: Of the real data set.
        random_window: Cut each real clip at a random place of its video, else from its middle.
        several_windows: Let real videos give several clips where there are too few of them.
        first_by_path: Take the first real videos by path, not a sample of all classes; StyleGAN-V's
            code does so, and old numbers can only be compared in this way.
        unbiased: Covariances by 1/(n-1), else by 1/n as StyleGAN-V has them.
        repeats: The mean over so many draws of real clips, and of generated ones if there are
            enough.
        seed: Of the real sample and its windows.
        guidance_scale: That must be used to generate; any if none.
        prompts: What the clips are generated for.
        approximate: Whether the paper leaves open what this protocol decides.
    """

    name: str
    metrics: tuple[Measure, ...]
    num_samples: int
    spec: ClipSpec = ClipSpec()  # noqa: RUF009, frozen
    num_reals: int | None = None
    split: Literal["train", "val", "test"] = "train"
    random_window: bool = True
    several_windows: bool = False
    first_by_path: bool = False
    unbiased: bool = False
    repeats: int = 1
    seed: int = 0
    guidance_scale: float | None = None
    prompts: str | None = None
    approximate: bool = False

    def __post_init__(self) -> None:
        if not self.metrics or len(set(self.metrics)) < len(self.metrics):
            raise ValueError(f"protocol.metrics must name each metric once, got {self.metrics}")
        for name in ("num_samples", "num_reals", "repeats"):
            least = 1 if name == "repeats" else 2
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"protocol.{name} must be at least {least}, got {value}")

    @property
    def needs_reals(self) -> bool:
        """Whether there is a score that compares with real clips."""
        return any(metric in WITH_REALS for metric in self.metrics)

    @property
    def count_reals(self) -> int:
        """Real clips in one draw."""
        return self.num_samples if self.num_reals is None else self.num_reals

    def settings(self) -> dict[str, Any]:
        """All of it as plain values, as they stand in reports."""
        return _plain(asdict(self))


def read_protocol(name: str) -> Protocol:
    """Read a protocol.

    Args:
        name: Of a preset in ``cmdvid/presets``, or a YAML file.

    Raises:
        ValueError: If there is none, or a setting is wrong; the message names it.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        presets = ", ".join(sorted(p.stem for p in FOLDER.glob("*.yaml"))) or "no preset"
        raise ValueError(f"{path}: no such protocol; give a YAML file or one of {presets}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--protocol", type=Protocol)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        parsed = parser.parse_object({"protocol": {"name": path.stem, **content}})
        built: Any = parser.instantiate_classes(parsed)
        return built.protocol
    except (ArgumentError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple | list) else value
