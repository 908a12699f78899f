"""The Inception Score of clips, by C3D finetuned on UCF-101 (Saito et al. 2020, TGAN v2)."""

from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torchmetrics import Metric

from cmdvid.metrics.i3d import check_length
from cmdvid.metrics.moments import sorted_rows
from cmdvid.metrics.weights import Published, fetch, read_weights

OFFERS = (
    Published(
        what="C3D of TGAN v2 as StyleGAN-V's TorchScript",
        url="https://www.dropbox.com/s/jxpu7avzdc9n97q/c3d_ucf101.pt?dl=1",
    ),
)
NUM_CLASSES = 101
SEED = 42  # of the splits, as StyleGAN-V's


class ScriptedC3D(nn.Module):
    """C3D as a TorchScript program that scales and normalises uint8 clips on its own."""

    def __init__(self, program: nn.Module):
        super().__init__()
        self.program = program.eval()

    def forward(self, clip: UInt8[Tensor, "b 3 l h w"]) -> Float[Tensor, "b k"]:
        """Probabilities of the classes.

        Raises:
            ValueError: If there are fewer than 16 frames, or the program gives something else.
        """
        check_length(clip)
        found = self.program(clip.clone())
        whole = isinstance(found, Tensor) and found.ndim == 2 and len(found) == len(clip)
        if not whole or (found.min() < 0) or ((found.sum(dim=1) - 1).abs().max() > 1e-3):
            raise ValueError(
                "the TorchScript program gives no probabilities of classes, a row for each clip: "
                "it is no C3D of the Inception Score"
            )
        return found


def load_c3d(source: str | Path, sha256: str | None = None) -> ScriptedC3D:
    """The network of the Inception Score, from a file or URL, in eval mode.

    Args:
        source: A TorchScript program from uint8 clips to probabilities, as StyleGAN-V's.
        sha256: What the file must be; needed for a URL.

    Raises:
        ValueError: If the file is missing (tells what to download), or of another kind.
    """
    path = fetch(source, sha256, OFFERS)
    program = read_weights(path)
    if isinstance(program, dict):
        raise ValueError(f"{path}: a state dict, but C3D is needed as a TorchScript program")
    takes = [a for a in program.forward.schema.arguments if a.name != "self"]
    if sum(not a.has_default_value() for a in takes) != 1 or "return_features" in {
        a.name for a in takes
    }:
        names = ", ".join(a.name for a in takes)
        raise ValueError(f"{path}: a TorchScript program that takes {names}, but C3D takes a clip")
    return ScriptedC3D(program)


class VideoInceptionScore(Metric):
    """``exp(mean KL(p(y|clip) || p(y)))`` of generated clips, over splits (Salimans et al. 2016).

    ``compute()`` gives the mean ``inception_score`` of the splits, their standard deviation
    ``inception_score_spread``, and the ``count`` of clips. The splits are drawn by a seed from an
    order of the probabilities' values alone, so batches and processes do not matter.

    Args:
        network: From uint8 clips (b 3 l h w) to probabilities (b k).
        num_classes: ``k``.
        num_splits: Each of the same size, to one clip.
        metric_options: Those of ``torchmetrics.Metric``.
    """

    kept: list[Tensor]
    full_state_update = False
    higher_is_better = True

    def __init__(
        self,
        network: nn.Module,
        *,
        num_classes: int = NUM_CLASSES,
        num_splits: int = 10,
        **metric_options,
    ) -> None:
        super().__init__(**metric_options)
        self.network, self.num_classes, self.num_splits = network, num_classes, num_splits
        # Flat, for a process that saw nothing joins the others with an empty vector.
        self.add_state("kept", [], dist_reduce_fx="cat")

    @torch.no_grad()
    def update(self, clip: UInt8[Tensor, "b 3 l h w"]) -> None:
        """Add a batch of generated clips.

        Raises:
            ValueError: If the network knows another number of classes.
        """
        probabilities = self.network(clip)
        if probabilities.shape[1] != self.num_classes:
            raise ValueError(
                f"the network tells {probabilities.shape[1]} classes apart, needed are "
                f"{self.num_classes}"
            )
        self.kept.append(probabilities.float().flatten())

    def compute(self) -> dict[str, float]:
        """The score over all processes.

        Raises:
            ValueError: If there are fewer clips than splits.
        """
        kept = [self.kept] if isinstance(self.kept, Tensor) else self.kept
        flat = torch.cat([*kept, torch.empty(0, device=self.device)])
        rows = rearrange(flat, "(n k) -> n k", k=self.num_classes)
        score, spread = inception_score(rows, self.num_splits)
        return {
            "inception_score": score,
            "inception_score_spread": spread,
            "count": len(rows),
        }


def inception_score(
    probabilities: Float[Tensor, "n k"], num_splits: int = 10
) -> tuple[float, float]:
    """Mean and standard deviation of the score over splits, whatever the order of the rows.

    Raises:
        ValueError: If there are fewer clips than splits.
    """
    rows = sorted_rows(probabilities).double()
    if (n := len(rows)) < num_splits:
        raise ValueError(f"{num_splits} splits need as many clips at least, got {n}")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(SEED))
    splits = rows[order.to(rows.device)].tensor_split(num_splits)
    scores = torch.stack([_score(split) for split in splits])
    return float(scores.mean()), float(scores.std(correction=0))


def _score(probabilities: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    """Of one split; a class of probability 0 adds nothing."""
    marginal = probabilities.mean(dim=0, keepdim=True)
    negative_entropy = torch.xlogy(probabilities, probabilities)
    divergence = (negative_entropy - torch.xlogy(probabilities, marginal)).sum(dim=1)
    return divergence.mean().exp()
