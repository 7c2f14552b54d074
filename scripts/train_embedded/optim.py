"""Muon for matrices and convolutions, AdamW for the rest, learning-rate schedule and weight averaging."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration towards the nearest semi-orthogonal matrices, batched (N, rows, columns).

    Quintic of Jordan et al., https://kellerjordan.github.io/posts/muon/, in bfloat16.
    """
    x = matrices.bfloat16()
    flipped = x.shape[-2] > x.shape[-1]
    x = x.mT if flipped else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.mT if flipped else x).float()


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; scaled so that its learning rate is comparable to AdamW's."""

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One update of every matrix with a gradient; matrices of one shape are orthogonalised together."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                buffer = state.setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(buffer, group["momentum"]).flatten(1)
                by_shape.setdefault(tuple(update.shape), []).append((p, update))
            for (rows, columns), items in by_shape.items():
                scale = 0.2 * math.sqrt(max(rows, columns)) * group["lr"]
                for (p, _), update in zip(
                    items, orthogonalise(torch.stack([u for _, u in items])), strict=True
                ):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update.view_as(p), alpha=-scale)


class Optimizer:
    """Both optimizers behind one schedule: linear warm-up, constant, linear decay over the last `decay`."""

    def __init__(
        self,
        matrices: list[nn.Parameter],
        others: list[nn.Parameter],
        lr: float,
        steps: int,
        decay: float = 0.5,
    ) -> None:
        self.lr, self.steps, self.decay = lr, steps, decay
        self.parts = [
            Muon(matrices, lr, weight_decay=0.01),
            torch.optim.AdamW(others, lr, betas=(0.9, 0.98), weight_decay=0.0),
        ]

    def factor(self, step: int) -> float:
        """Share of the full learning rate at `step`."""
        left = (self.steps - step) / (self.decay * self.steps)
        return max(min(1.0, (step + 1) / 30, left), 0.01)

    def step(self, step: int) -> None:
        """One update with gradients as they are, then clear them."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = self.lr * self.factor(step)
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict]:
        """What both need to go on."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def split_parameters(
    module: nn.Module, excluded: tuple[str, ...] = ()
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Hidden matrices for Muon; vectors, and parameters whose name contains one of `excluded`, for AdamW."""
    matrices, others = [], []
    for name, p in module.named_parameters():
        is_matrix = p.ndim in (2, 4) and min(p.flatten(1).shape) > 3 and not any(e in name for e in excluded)
        (matrices if is_matrix else others).append(p)
    return matrices, others


class EMA:
    """Exponential moving average of a module's weights, with a short memory at the start."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = copy.deepcopy(module).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards the current weights."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.module.parameters()), list(module.parameters()), weight)
