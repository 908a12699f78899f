"""An optimizer for short trainings of small transformers: Muon for matrices, Adam for the rest."""

from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.adam import adam

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic that drives singular values towards 1
NUM_STEPS = 5


def orthogonalize(matrix: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """Nearly the closest matrix whose singular values are all one, by Newton-Schulz iteration.

    The singular values of the result lie within about 0.7 and 1.2 (Jordan et al. 2024). Works in
    the matrix's own precision: torch's and timm's Muon work in bf16, which a CPU without bf16
    instructions does twenty times slower than fp32.
    """
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    # x only ever gets polynomials of its Gram matrix in front, so these are iterated, not x
    gram, factors = x @ x.mT, []
    for number in range(NUM_STEPS):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        factors.append(factor)
        if number < NUM_STEPS - 1:
            gram = factor @ gram @ factor
    x = reduce(torch.matmul, reversed(factors)) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised for matrices (Muon), Adam for vectors and tables of embeddings.

    Steps of matrices are scaled to the size of Adam's (0.2 sqrt(max(m, n)), Liu et al. 2025), so
    one learning rate serves both.

    Args:
        params: Parameters or groups; a group with ``use_fallback`` is left to Adam.
        lr: Learning rate.
        momentum: Of the matrices' gradients, applied in Nesterov's way.
        betas: Adam's.
        eps: Adam's.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ):
        defaults = {"lr": lr, "momentum": momentum, "betas": tuple(betas), "eps": eps}
        # "fused": so that torch brings a saved "step" back to where the fused kernel reads it
        super().__init__(params, defaults | {"use_fallback": False, "fused": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            learning = [p for p in group["params"] if p.grad is not None]
            is_matrix = [p.ndim > 1 and not group["use_fallback"] for p in learning]
            for p in (p for p, matrix in zip(learning, is_matrix, strict=True) if matrix):
                self._step_matrix(p, group)
            self._step_others(
                [p for p, matrix in zip(learning, is_matrix, strict=True) if not matrix], group
            )
        return loss

    def _step_matrix(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        state, momentum = self.state[p], group["momentum"]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        average = state["momentum"].lerp_(p.grad, 1 - momentum)
        update = orthogonalize(p.grad.lerp(average, momentum).flatten(1))  # filters are matrices
        p.add_(update.view_as(p), alpha=-group["lr"] * 0.2 * max(update.shape) ** 0.5)

    def _step_others(self, params: list[Tensor], group: dict[str, Any]) -> None:
        if not params:
            return
        for p in params:
            if not self.state[p]:
                self.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                self.state[p] |= {k: torch.zeros_like(p) for k in ("mean", "square")}
        beta1, beta2 = group["betas"]
        adam(
            params,
            [p.grad for p in params if p.grad is not None],
            [self.state[p]["mean"] for p in params],
            [self.state[p]["square"] for p in params],
            [],
            [self.state[p]["step"] for p in params],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )
