"""The pictures that the transformer learns from, as tokens of all scales."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..train_embedded.common import Log
from .compose import Composer, to_tensor
from .parallel import Workers
from .sources import gather
from .tokenizer import SCHEDULE, loaded_tokenizer

SHARD = 600
_SEED = 3


def cache_tokens(out: Path, count: int, *, workers: Workers) -> None:
    """Write shards of SHARD pictures, all drawings equally often, until there are ``count`` pictures."""
    folder, log = out / "tokens", Log(out / "tokens.jsonl")
    folder.mkdir(exist_ok=True)
    composer, model = Composer(gather(out)), loaded_tokenizer(out)
    drawings = len(composer.artwork.labels)
    for shard in range(workers.rank, -(-count // SHARD), workers.count):
        path = folder / f"{shard:03d}.npz"
        if path.exists():
            continue
        rng, tokens, labels = np.random.default_rng([_SEED, shard]), [], []
        for start in range(0, SHARD, 8):
            places = range(shard * SHARD + start, shard * SHARD + start + 8)
            pictures, names = zip(*(composer.one(rng, place % drawings) for place in places), strict=True)
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                z = model.encode(to_tensor(torch.from_numpy(np.stack(pictures)))).float()
            with torch.inference_mode():
                ids, _ = model.quantize.encode(z, SCHEDULE)
            tokens.append(torch.cat([each.flatten(1) for each in ids], dim=1).to(torch.int16).numpy())
            labels += names
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, tokens=np.concatenate(tokens), labels=np.array(labels))
        partial.rename(path)
        log(shard=shard, pictures=SHARD)


class TokenStore:
    """All shards in memory."""

    def __init__(self, out: Path) -> None:
        paths = sorted(path for path in (out / "tokens").glob("*.npz") if "partial" not in path.name)
        if not paths:
            raise FileNotFoundError(f"{out / 'tokens'} holds no pictures; run --phase tokens first")
        parts = [np.load(path) for path in paths]
        self.tokens = torch.from_numpy(np.concatenate([part["tokens"] for part in parts]))
        self.labels = torch.from_numpy(np.concatenate([part["labels"] for part in parts]))

    def batch(self, rng: np.random.Generator, size: int) -> tuple[list[Tensor], Tensor]:
        """Ids of every scale (B, h, w), and labels (B,)."""
        picks = torch.from_numpy(rng.integers(len(self.labels), size=size))
        rows = self.tokens[picks].long().split([scale.tokens for scale in SCHEDULE], dim=1)
        return [row.unflatten(1, scale.grid) for row, scale in zip(rows, SCHEDULE, strict=True)], self.labels[
            picks
        ]
