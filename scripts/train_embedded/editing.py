"""Training of the embedded editing model: the generating one, fine-tuned on pairs of scenes.

The recipe is VAREdit's: the picture's continuous latents precede the scales, and the first block sees them on
the grid of every scale. Its rotary positions are those of the largest size (``moved_source``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from common import Log, averaged, load_checkpoint, resume, save_checkpoint
from data import to_tensor
from latents import noisy_bits
from optim import EMA, Optimizer, split_parameters
from tokenizer import FLAT_SCALES, SCHEDULE
from torch import Tensor, nn
from transformer import CONFIG, load_tokenizer, plain_attention, text_state

from stagevar_core.autoencoders.bsq import BSQTokenizer
from stagevar_core.evaluation.edits import Edited, Judged, evaluated, shares, unseen_edits
from stagevar_core.models.contract import signed
from stagevar_core.models.infinity import Infinity
from stagevar_core.models.teacher import TeacherContext
from stagevar_core.pipeline import Pipeline
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.scenes import Scene, render_batch
from stagevar_core.scenes.edits import (
    KINDS,
    belongs,
    edit_of,
    sample_source,
    undone,
)
from stagevar_core.schedule import Prefix, ScaleSchedule

SHARD = 512  # groups
VARIANTS = 3  # edits of every scene
RARE, COMMON = ("move", "add", "remove"), ("recolour", "pattern", "background")
LONGEST = 24  # tokens that instructions are padded to, so that shapes stay fixed; the longest has 16
_SEED = 11


def group(rng: np.random.Generator) -> tuple[list[Scene], list[tuple[str, str, int, int]]]:
    """A scene with its variants, and the edits between them: kind, instruction, from, to."""
    scenes: list[Scene] = [sample_source(rng)]
    edits: list[tuple[str, str, int, int]] = []
    # Two that change what is where, which not every scene has room for, then the others.
    kinds = [*rng.permutation(RARE).tolist()[:2], *rng.permutation(COMMON).tolist()]
    for kind in kinds:
        if len(scenes) > VARIANTS:
            break
        edit = edit_of(scenes[0], rng, kind)
        if edit is None or not belongs(edit, "train"):
            continue
        scenes.append(edit.target)
        place = len(scenes) - 1
        edits.append((edit.kind, edit.instruction, 0, place))
        back = undone(edit, rng)
        if back is not None and belongs(back, "train"):
            edits.append((back.kind, back.instruction, place, 0))
    return scenes, edits


def cache_pairs(encoder: nn.Module, out: Path, count: int) -> None:
    """Write shards of SHARD groups (edits, latents in float16) until there are ``count`` of them."""
    folder, log = out / "pairs", Log(out / "pairs.jsonl")
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(math.ceil(count / SHARD)):
        path = folder / f"{shard:03d}.pt"
        if path.exists():
            continue
        scenes: list[Scene] = []
        edits: list[tuple[str, str, int, int]] = []
        for index in range(SHARD):
            of_one, between = group(np.random.default_rng([_SEED, shard, index]))
            edits += [(kind, text, len(scenes) + a, len(scenes) + b) for kind, text, a, b in between]
            scenes += of_one
        latents = []
        for start in range(0, len(scenes), 32):
            pictures = to_tensor(render_batch(scenes[start : start + 32]))
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                latents.append(encoder(pictures).half())
        temporary = path.with_suffix(".tmp")
        torch.save({"edits": edits, "latents": torch.cat(latents)}, temporary)
        temporary.rename(path)
        log(shard=shard, scenes=len(scenes), pairs=len(edits))


@dataclass(frozen=True)
class EditTraining:
    """Settings of this phase."""

    steps: int = 1900
    batch: int = 16  # pairs on all scales; twice as many on those up to a quarter of the area
    groups: int = 4096
    lr: float = 1.5e-3
    decay: float = 0.6
    strength: float = 0.2  # of the bit flips
    text_drop: float = 0.1
    changed: float = 2.5  # weight of tokens that the edit changes, where others have 1
    ema: float = 0.99
    seed: int = 12
    minutes: float = 4.0  # between checkpoints

    def is_long(self, step: int) -> bool:
        """Whether a step trains all scales."""
        return step % 2 == 1 or step >= 0.8 * self.steps


EDITING = replace(CONFIG, edits=True, moved_source=True)
PREFIX = Prefix(SCHEDULE.final.index, *SCHEDULE.final.grid, aligned=(0,))
SAMPLING = SamplingSettings(cfg_scale=2.0, temperature=0.3, top_k=0, top_p=0.0)


class Models(NamedTuple):
    """What the phase starts from: those that were trained in the folder, else those that ship."""

    generating: dict[str, Tensor]
    tokenizer: BSQTokenizer
    encode: Callable[[list[str]], list[Tensor]]


def starting_models(out: Path) -> Models:
    """Trained ones of ``out`` where they are there."""
    pipeline = Pipeline.embedded(dtype=torch.float32, device="cpu")
    generating, tokenizer = pipeline.transformer.state_dict(), pipeline.tokenizer
    encoder = pipeline.text_encoder
    assert encoder is not None, "the embedded model takes text"
    if (state := load_checkpoint(out / "transformer.pt")) is not None:
        generating = state["ema"]
    if (out / "tokenizer.pt").exists():
        tokenizer = load_tokenizer(out)
    tokenizer = tokenizer.to(memory_format=torch.channels_last).eval().requires_grad_(False)

    def encode(texts: list[str]) -> list[Tensor]:
        with torch.inference_mode():
            return [features.clone() for features in encoder.encode(texts)]

    return Models(generating, tokenizer, encode)


class Pairs:
    """All cached pairs in memory, and batches of them."""

    def __init__(self, out: Path, encode: Callable[[list[str]], list[Tensor]], s: EditTraining) -> None:
        self.s, self.encode = s, encode
        self._features: dict[str, Tensor] = {}
        edits: list[tuple[str, str, int, int]] = []
        latents, count = [], 0
        for path in sorted((out / "pairs").glob("*.pt")):
            state = torch.load(path, weights_only=True)
            edits += [(kind, text, count + a, count + b) for kind, text, a, b in state["edits"]]
            latents.append(state["latents"])
            count += len(state["latents"])
        self.edits, self.latents = edits, torch.cat(latents)
        kinds = [edit[0] for edit in self.edits]
        self.by_kind = [np.flatnonzero([kind == each for each in kinds]) for kind in KINDS]

    def __len__(self) -> int:
        return len(self.edits)

    def features(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Text features (N, T, width), zero where padded, and the mask (N, T); remembered."""
        new = sorted(set(texts) - self._features.keys())
        if new:
            self._features.update(zip(new, self.encode(new), strict=True))
        rows = [self._features[text] for text in texts]
        padded = torch.stack([F.pad(row, (0, 0, 0, LONGEST - len(row))) for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        return padded, torch.arange(LONGEST)[None] < lengths[:, None]

    def __call__(self, model: Infinity, step: int, schedule: ScaleSchedule, size: int) -> dict[str, Tensor]:
        """What :func:`edit_losses` takes for a step."""
        rng = np.random.default_rng([self.s.seed, step])
        torch.manual_seed(step)
        picks = [int(rng.choice(self.by_kind[int(rng.integers(len(KINDS)))])) for _ in range(size)]
        _, texts, sources, targets = zip(*(self.edits[pick] for pick in picks), strict=True)
        text, mask = self.features(list(texts))
        dropped = torch.from_numpy(rng.random(size) < self.s.text_drop).view(-1, 1, 1)
        text = torch.where(dropped, model.null_text[:LONGEST] * mask.unsqueeze(-1), text)
        before, after = (self.latents[list(places)].float() for places in (sources, targets))
        bits, inputs = noisy_bits(after, schedule, self.s.strength, SCHEDULE.final.height)
        return {
            "text": text,
            "mask": mask[:, None, None, :],
            "source": before.flatten(2).transpose(1, 2),
            "inputs": torch.cat(inputs, dim=1),
            "targets": torch.cat(bits, dim=1).float(),
            "weights": self._weights(before, after, schedule),
        }

    def _weights(self, before: Tensor, after: Tensor, schedule: ScaleSchedule) -> Tensor:
        """Of every target token (N, L), with a mean of 1 in every scale."""
        change = (after - before).abs().mean(dim=1, keepdim=True)
        changed = (change > 0.5 * change.amax(dim=(2, 3), keepdim=True)).float()
        parts = []
        for scale in schedule:
            here = F.adaptive_max_pool2d(changed, scale.grid).flatten(1)
            weight = 1.0 + (self.s.changed - 1.0) * here
            parts.append(weight / weight.mean(dim=1, keepdim=True))
        return torch.cat(parts, dim=1)


def edit_losses(model: Infinity, schedule: ScaleSchedule, batch: dict[str, Tensor]) -> Tensor:
    """Cross-entropy per scale, mean over bits and samples."""
    device = batch["text"].device
    with torch.autocast("cpu", torch.bfloat16):
        state = text_state(model, batch["text"], batch["mask"])
        parts = [PREFIX, *schedule]
        ctx = TeacherContext(
            scale=schedule.final,
            positions=torch.cat([model.positions(schedule, s, device, PREFIX) for s in parts], dim=1),
            conditioned=state,
            dtype=torch.bfloat16,
            attention=plain_attention,
            cache=None,
            schedule=schedule,
            prefix=PREFIX,
        )
        before, inputs = model.embed(batch["source"]), model.embed(batch["inputs"])
        x = torch.cat((before, model.first_tokens(state), inputs), dim=1).float()
        hidden = model(x, ctx)[:, PREFIX.tokens :]
        pairs = model.logits(hidden, state).float().unflatten(-1, (-1, 2))
    wrong = F.softplus((pairs[..., 0] - pairs[..., 1]) * (2 * batch["targets"] - 1)).mean(dim=2)
    wrong = (wrong * batch["weights"]).mean(dim=0)
    return torch.stack([part.mean() for part in wrong.split([s.tokens for s in schedule])])


# ---- scoring --------------------------------------------------------------------------------------------


def score_edits(model: Infinity, models: Models, count: int) -> dict[str, float]:
    """Shares of unseen edits that are followed, and that leave the rest as it was, in all and by kind."""
    pipeline, edits = Pipeline.embedded(dtype=torch.float32, device="cpu"), unseen_edits(count, 0)
    pipeline.transformer, pipeline.tokenizer = signed(model), models.tokenizer
    task = Judged(Edited(edits, settings=lambda pipeline: SAMPLING), edits)
    report = shares(evaluated(pipeline, task))
    return {f"{name} {kind}": row[name] for kind, row in report.items() for name in ("followed", "unchanged")}


def trained_model(out: Path) -> Infinity:
    """The averaged weights of the last checkpoint."""
    return averaged(out / "editing.pt", Infinity(EDITING))


# ---- training -------------------------------------------------------------------------------------------


def train_editing(out: Path, s: EditTraining | None = None) -> None:
    """Train, or resume from the last checkpoint."""
    s = s or EditTraining()
    path, log, models = out / "editing.pt", Log(out / "editing.jsonl"), starting_models(out)
    cache_pairs(models.tokenizer.encoder, out, s.groups)
    pairs, model = Pairs(out, models.encode, s), Infinity(EDITING)
    model.load_state_dict(models.generating)
    excluded = ("null_text", "text_pool.query", "level_embed", "word_embed", "head.", "ada")
    optimizer = Optimizer(*split_parameters(model, excluded), s.lr, s.steps, s.decay)
    ema = EMA(model, s.ema)
    first = resume(path, model=model, ema=ema.module, optimizer=optimizer)
    saved = shown = time.time()
    for step in range(first, s.steps):
        schedule = SCHEDULE if s.is_long(step) else SCHEDULE.prefix(FLAT_SCALES)
        size = s.batch if s.is_long(step) else 2 * s.batch
        parts = edit_losses(model, schedule, pairs(model, step, schedule, size))
        weights = torch.tensor([float(scale.tokens) ** 0.5 for scale in schedule])
        (parts @ weights / weights.sum()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(step)
        ema.update(model, step)
        if step % 20 == 19:
            log(
                step=step + 1,
                seconds=(time.time() - shown) / 20,
                losses=[round(p, 3) for p in parts.tolist()],
            )
            shown = time.time()
        last = step + 1 == s.steps
        if time.time() - saved > 60 * s.minutes or last:
            save_checkpoint(
                path,
                step=step + 1,
                model=model.state_dict(),
                ema=ema.module.state_dict(),
                optimizer=optimizer.state_dict(),
            )
            if last:
                log(step=step + 1, **score_edits(ema.module.eval(), models, 500))
            saved = shown = time.time()
