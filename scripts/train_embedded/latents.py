"""Cached encoder latents of the training scenes, and batches of noisy bits made from them on the fly."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import Log
from data import scene_batch, to_tensor
from torch import Tensor

from stagevar_core.autoencoders.bsq import BSQTokenizer, resize_latent
from stagevar_core.scenes import parse, render_batch
from stagevar_core.schedule import ScaleSchedule

SHARD = 4096
_SEED = 3


def cache_latents(model: BSQTokenizer, out: Path, count: int) -> None:
    """Write shards of SHARD scenes (captions, latents in float16) until there are `count` of them."""
    folder, log = out / "latents", Log(out / "latents.jsonl")
    folder.mkdir(exist_ok=True)
    for shard in range(math.ceil(count / SHARD)):
        path = folder / f"{shard:03d}.pt"
        if path.exists():
            continue
        captions, latents = [], []
        for part in range(SHARD // 32):
            scenes, texts = scene_batch(_SEED, shard * SHARD + part, 32)
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                latents.append(model.encoder(to_tensor(render_batch(scenes))).half())
            captions += texts
        temporary = path.with_suffix(".tmp")
        torch.save({"captions": captions, "latents": torch.cat(latents)}, temporary)
        temporary.rename(path)
        log(shard=shard, scenes=(shard + 1) * SHARD)


class LatentStore:
    """All shards in memory; `refresh` takes in those written since."""

    def __init__(self, out: Path) -> None:
        self.folder, self.known = out / "latents", set()
        self.captions: list[str] = []
        self.parts: list[Tensor] = []
        self.refresh()

    def refresh(self) -> None:
        """Load new shards."""
        for path in sorted(self.folder.glob("*.pt")):
            if path.name not in self.known:
                state = torch.load(path, weights_only=True)
                self.captions += state["captions"]
                self.parts.append(state["latents"])
                self.known.add(path.name)

    def __len__(self) -> int:
        return len(self.captions)

    @cached_property
    def patterned(self) -> np.ndarray:
        """Indices of the scenes whose objects are dotted or checkered."""
        specs = (parse(text) for text in self.captions)
        found = [any(o.pattern in ("dotted", "checkered") for o in spec.objects) for spec in specs]
        return np.flatnonzero(found)

    def batch(self, rng: np.random.Generator, size: int, patterned: float = 0.0) -> tuple[list[str], Tensor]:
        """Random captions with their latents (N, d, h, w) in float32; a share of them `patterned`."""
        picks = rng.integers(len(self), size=size)
        if patterned:
            picks = np.where(rng.random(size) < patterned, rng.choice(self.patterned, size), picks)
        rows = [self.parts[i // SHARD][i % SHARD] for i in picks.tolist()]
        return [self.captions[i] for i in picks.tolist()], torch.stack(rows).float()


def noisy_bits(
    z: Tensor, schedule: ScaleSchedule, strength: float, final: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Bitwise self-correction: target bits per scale, and the inputs (N, L, d) of scales 1 and up.

    Per sample and scale a random share of up to `strength` of the bits is flipped in what the next scale
    sees; the later targets are what then remains to be added (arXiv 2412.04431, section 3.3).
    """
    dim, grid = z.shape[1], (final, final)
    residual, f_hat, targets, inputs = z, torch.zeros_like(z), [], []
    for scale in schedule:
        if scale.index > 0:
            inputs.append(resize_latent(f_hat, scale.grid).flatten(2).transpose(1, 2))
        pooled = residual if scale.grid == grid else F.interpolate(residual, size=scale.grid, mode="area")
        bits = pooled > 0
        targets.append(bits.flatten(2).transpose(1, 2))
        flip = torch.rand_like(pooled) < torch.rand(len(z), 1, 1, 1) * strength
        codes = resize_latent(((bits ^ flip).float() * 2 - 1) / math.sqrt(dim), grid)
        residual, f_hat = residual - codes, f_hat + codes
    return targets, inputs
