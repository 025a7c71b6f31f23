"""Muon for the matrices of the model: momentum, made orthogonal, matrices of one shape at once.

Shape suffixes: M = matrices of one shape, R = rows, C = columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalised(update_MRC: Tensor, num_steps: int = 5) -> Tensor:
    """Each matrix with its singular values brought near one, by a quintic Newton-Schulz."""
    a, b, c = _NEWTON_SCHULZ
    tall = update_MRC.shape[1] > update_MRC.shape[2]
    x_MRC = (update_MRC.mT if tall else update_MRC).bfloat16()
    x_MRC = x_MRC / (x_MRC.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(num_steps):
        gram = x_MRC @ x_MRC.mT
        x_MRC = a * x_MRC + (b * gram + c * gram @ gram) @ x_MRC
    result: Tensor = (x_MRC.mT if tall else x_MRC).to(update_MRC.dtype)
    return result


class Muon(torch.optim.Optimizer):
    """Muon whose steps have the size of AdamW's, so that both share one learning rate."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape[matrix.shape].append(matrix)
            for matrices in by_shape.values():
                self._step_together(matrices, group)

    def _step_together(self, matrices: list[nn.Parameter], group: dict[str, Any]) -> None:
        updates = [self._with_momentum(matrix, group["momentum"]) for matrix in matrices]
        rows, columns = matrices[0].shape
        size = 0.2 * max(rows, columns) ** 0.5 * group["lr"]
        for matrix, update in zip(matrices, orthogonalised(torch.stack(updates)), strict=True):
            matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=size)

    def _with_momentum(self, matrix: nn.Parameter, momentum: float) -> Tensor:
        assert matrix.grad is not None
        average = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
        average.lerp_(matrix.grad, 1 - momentum)
        return matrix.grad.lerp(average, momentum)
