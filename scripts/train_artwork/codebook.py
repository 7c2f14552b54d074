"""Codes as running means of what they stand for, clustered at first, restarted where nothing uses them."""

from __future__ import annotations

import torch
from torch import Tensor

from stagevar_core.autoencoders.vq import VectorQuantizer

from .parallel import Workers


def kmeans(samples: Tensor, count: int, rounds: int = 12) -> Tensor:
    """``count`` centres (count, C) of samples (N, C); centres without samples begin again at random ones."""
    centres = samples[torch.randperm(len(samples))[:count]].clone()
    if len(centres) < count:
        raise ValueError(f"{len(samples)} samples are too few for {count} centres")
    for _ in range(rounds):
        nearest = torch.cdist(samples, centres).argmin(dim=1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, samples)
        counts = torch.bincount(nearest, minlength=count)
        centres = torch.where(counts.unsqueeze(1) > 0, sums / counts.clamp(min=1).unsqueeze(1), centres)
        empty = counts == 0
        centres[empty] = samples[torch.randint(len(samples), (int(empty.sum()),))]
    return centres


class Codebook:
    """Moves the codes of a quantizer towards the features that chose them, the same in all processes."""

    def __init__(self, quantizer: VectorQuantizer, workers: Workers, decay: float = 0.97) -> None:
        self.quantizer, self.workers, self.decay = quantizer, workers, decay
        self.counts = torch.ones(quantizer.vocab)
        self.sums: Tensor | None = None
        self.seen: list[tuple[Tensor, Tensor]] = []

    def observe(self, chosen: list[tuple[Tensor, Tensor]]) -> None:
        """Features (B, C, h, w) and ids (B, h, w) of every scale of a batch."""
        self.seen = [(f.movedim(1, -1).reshape(-1, f.shape[1]), ids.flatten()) for f, ids in chosen]

    @torch.no_grad()
    def update(self, *, restart: bool) -> None:
        """Take in the last batch; every scale counts alike, whatever its tokens."""
        vocab, dim = self.quantizer.codebook.shape
        batch = torch.zeros(vocab, dim + 1)
        for features, ids in self.seen:
            weight = 64.0 / len(ids) ** 0.5  # between tokens alike and scales alike
            ones = torch.full((len(ids), 1), weight)
            batch.index_add_(0, ids, torch.cat((features * weight, ones), dim=1))
        self.workers.summed(batch)
        if self.sums is None:
            self.sums = self.quantizer.codebook * self.counts.unsqueeze(1)
        self.counts = self.counts.lerp(batch[:, -1], 1 - self.decay)
        self.sums = self.sums.lerp(batch[:, :-1], 1 - self.decay)
        codes = self.sums / self.counts.clamp(min=1e-6).unsqueeze(1)
        alive = self.counts > 1e-3
        self.quantizer.codebook.copy_(torch.where(alive.unsqueeze(1), codes, self.quantizer.codebook))
        if restart:
            self._restart()

    def _restart(self) -> None:
        """Unused codes begin again at features of the last batch, those of the first process everywhere."""
        idle = self.counts < 0.03 * self.counts.mean()
        pool = torch.cat([features[torch.randperm(len(features))[:200]] for features, _ in self.seen])
        fresh = pool[torch.randint(len(pool), (len(self.counts),))]
        fresh = fresh if self.workers.first else torch.zeros_like(fresh)
        self.workers.summed(fresh)
        average = self.counts.mean()
        self.quantizer.codebook[idle] = fresh[idle]
        self.counts[idle] = average * 0.3
        self.sums[idle] = fresh[idle] * average * 0.3

    def state_dict(self) -> dict[str, Tensor]:
        """What :meth:`load_state_dict` takes."""
        return {"counts": self.counts} | ({} if self.sums is None else {"sums": self.sums})

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved state."""
        self.counts, self.sums = state["counts"], state.get("sums")
