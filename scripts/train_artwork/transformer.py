"""Trains the transformer: mostly on early scales, then on windows of the late ones, at last on all tokens."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagevar_core.acceleration.policy import FirstScales
from stagevar_core.autoencoders.vq import VQTokenizer
from stagevar_core.conditioning.types import ClassConditioning
from stagevar_core.evaluation.judge import Judge
from stagevar_core.models.teacher import TeacherContext
from stagevar_core.models.var import VAR, ClassState, VARConfig
from stagevar_core.network.attention import sdpa
from stagevar_core.network.layers import with_factors
from stagevar_core.pipeline import to_uint8
from stagevar_core.sampling.generate import generate
from stagevar_core.sampling.noise import SeededNoise
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.schedule import SIDES_512

from ..train_embedded.common import Log, averaged, resume, save_checkpoint, start_linears
from ..train_embedded.optim import EMA, Optimizer, split_parameters
from .judging import loaded_judge
from .parallel import Workers
from .sources import class_names
from .tokenizer import CONFIG as TOKENIZER_CONFIG
from .tokenizer import EARLY, SCHEDULE, loaded_tokenizer
from .tokens import TokenStore

CONFIG = VARConfig(
    depth=6,
    width=256,
    heads=4,
    hidden=512,
    sides=SIDES_512,
    classes=len(class_names()),
    vocab=TOKENIZER_CONFIG.vocab,
    dim=TOKENIZER_CONFIG.dim,
    shared=True,
)
SAMPLING = SamplingSettings(cfg_scale=3.0, temperature=0.6, top_k=0, top_p=0.9)


@dataclass(frozen=True)
class TransformerTraining:
    """Settings of this phase, batches of each process.

    After ``early`` steps, which see early scales alone, three of four steps see windows of the late ones; the
    last ``whole`` steps see all tokens.
    """

    steps: int = 3200
    early: int = 790
    whole: int = 100
    early_batch: int = 16
    window_batch: int = 6
    whole_batch: int = 2
    lr: float = 2.5e-3
    decay: float = 0.5
    label_drop: float = 0.1
    ema: float = 0.998
    shown: float = 300.0  # seconds between scores
    seed: int = 4

    def part(self, step: int) -> str:
        """What a step sees."""
        if step >= self.steps - self.whole:
            return "whole"
        return "window" if step >= self.early and step % 4 else "early"

    def size(self, step: int) -> int:
        """Pictures of a step in each process."""
        return getattr(self, f"{self.part(step)}_batch")


@dataclass(frozen=True)
class View:
    """The tokens that a step sees: rows of the whole sequence, and how many of every scale."""

    rows: Tensor
    counts: tuple[int, ...]


def first_scales(count: int) -> View:
    """All tokens of the first scales."""
    tokens = tuple(scale.tokens for scale in SCHEDULE)[:count]
    return View(torch.arange(sum(tokens)), tokens)


def window(rng: np.random.Generator) -> View:
    """All tokens of the early scales, and a quarter of every late one, over the same part of the picture."""
    down, right = rng.random(2)
    rows, counts, start = [], [], 0
    for scale in SCHEDULE:
        grid = torch.arange(start, start + scale.tokens).view(scale.grid)
        if scale.index >= EARLY:
            half = scale.height // 2
            top, left = (round(float(share) * (scale.height - half)) for share in (down, right))
            grid = grid[top : top + half, left : left + half]
        rows.append(grid.flatten())
        counts.append(grid.numel())
        start += scale.tokens
    return View(torch.cat(rows), tuple(counts))


@dataclass
class ViewContext(TeacherContext):
    """The context of a pass over some tokens of every scale."""

    view: View = field(default_factory=lambda: first_scales(len(SCHEDULE)))

    def attend(self, layer: int, q: Tensor, kv: Tensor) -> Tensor:
        """Scale by scale, each seeing itself and the coarser ones."""
        k, v = kv
        outputs, start = [], 0
        for count in self.view.counts:
            stop = start + count
            outputs.append(self.attention(q[:, :, start:stop], k[:, :, :stop], v[:, :, :stop], scale=1.0))
            start = stop
        return torch.cat(outputs, dim=2)

    def levels(self, table: Tensor) -> Tensor:
        """The level embedding of every token."""
        return torch.cat([table[index].expand(count, -1) for index, count in enumerate(self.view.counts)])

    def learned(self, table: Tensor) -> Tensor:
        """The position embedding of every token."""
        return table[self.view.rows]


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, mask: Tensor | None = None
) -> Tensor:
    """Softmax attention written out, which a CPU differentiates faster than the fused one."""
    del mask
    return (q @ k.mT * (1.0 if scale is None else scale)).softmax(dim=-1) @ v


def positions_2d(width: int) -> Tensor:
    """Sines and cosines of the place in the picture, the same for all scales, (L, width)."""
    frequencies = 2 * np.pi * torch.logspace(-1.0, np.log10(16.0), width // 4)
    rows = []
    for scale in SCHEDULE:
        ticks = (torch.arange(scale.height) + 0.5) / scale.height
        waves = torch.cat([f(ticks[:, None] * frequencies) for f in (torch.sin, torch.cos)], dim=1)
        y, x = waves[:, None].expand(-1, scale.width, -1), waves[None].expand(scale.height, -1, -1)
        rows.append(torch.cat((y, x), dim=-1).flatten(0, 1))
    return torch.cat(rows)


def initialise(model: VAR) -> None:
    """Weights of a new model; the residual branches start small."""
    depth = model.config.depth
    start_linears(model)
    with torch.no_grad():
        model.class_embed.normal_()
        model.start.normal_(std=0.1)
        model.level_embed.normal_(std=0.3)
        model.position_embed.copy_(0.4 * positions_2d(model.config.width))
        for ada in (model.block_ada, model.head_ada):
            ada.weight.mul_(0.1)
        model.head.weight.mul_(0.1)
        for block in model.blocks:
            block.ada.normal_(std=0.02)
            block.ada[:2] += 0.5
            block.self_attn.log_scale.fill_(float(np.log(6.0)))
            for linear in (block.self_attn.proj, block.ffn.fc2):
                linear.weight.mul_(depth**-0.5)


def state_of(model: VAR, labels: Tensor) -> ClassState:
    """What ``VAR.condition`` computes, for labels (B,) with the unconditional row as number of classes."""
    start = model.class_embed[labels]
    active = F.silu(start)
    common = model.block_ada(active).float().unflatten(-1, (1, 6, -1))
    ada = [with_factors(common + block.ada) for block in model.blocks]
    head_ada = with_factors(model.head_ada(active).float().unflatten(-1, (1, 2, -1)))
    lengths = [block.self_attn.lengths(labels.device) for block in model.blocks]
    return ClassState(start=start, block_ada=ada, head_ada=head_ada, lengths=lengths)


def scale_losses(model: VAR, view: View, labels: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy per scale of the tokens of ``view``; ``inputs`` of all tokens after the first."""
    with torch.autocast("cpu", torch.bfloat16):
        state = state_of(model, labels)
        ctx = ViewContext(
            scale=SCHEDULE.final,
            positions=None,
            conditioned=state,
            dtype=torch.bfloat16,
            attention=plain_attention,
            cache=None,
            schedule=SCHEDULE,
            view=view,
        )
        x = torch.cat((model.first_tokens(state), model.embed(inputs[:, view.rows[1:] - 1])), dim=1).float()
        logits = model.logits(model(x, ctx), state)
    wrong = F.cross_entropy(logits.flatten(0, 1).float(), targets[:, view.rows].flatten(), reduction="none")
    parts = wrong.view(len(labels), -1).mean(dim=0).split(view.counts)
    return torch.stack([part.mean() for part in parts])


class Batches:
    """Training batches from the cached tokens."""

    def __init__(self, out: Path, s: TransformerTraining, tokenizer: VQTokenizer, rank: int) -> None:
        self.store, self.s, self.quantizer, self.rank = TokenStore(out), s, tokenizer.quantize, rank

    def __call__(self, step: int) -> tuple[View, Tensor, Tensor, Tensor]:
        """View, labels, inputs and targets of a step."""
        rng = np.random.default_rng([self.s.seed, step, self.rank])
        ids, labels = self.store.batch(rng, self.s.size(step))
        part = self.s.part(step)
        view = window(rng) if part == "window" else first_scales(EARLY if part == "early" else len(SCHEDULE))
        known = ids[:EARLY] if part == "early" else ids
        with torch.no_grad():
            inputs = self.quantizer.teacher_inputs(known, SCHEDULE)
        dropped = torch.from_numpy(rng.random(len(labels)) < self.s.label_drop)
        labels = labels.masked_fill(dropped, CONFIG.classes)
        return view, labels, inputs, torch.cat([each.flatten(1) for each in known], dim=1)


@torch.inference_mode()
def pictures_of(
    model: VAR,
    tokenizer: VQTokenizer,
    labels: list[int],
    *,
    seed: int = 0,
    scales: int = len(SCHEDULE),
    settings: SamplingSettings = SAMPLING,
) -> Tensor:
    """Pictures (N, H, W, 3) in bytes of these classes after the first ``scales``."""
    images = []
    for start in range(0, len(labels), 25):
        part = labels[start : start + 25]
        with torch.autocast("cpu", torch.bfloat16):
            run = generate(
                model,
                ClassConditioning(tuple(part), None, torch.device("cpu")),
                SCHEDULE,
                settings,
                noise=SeededNoise(seed + start, len(part)),
                quantizer=tokenizer.quantizer(),
                policy=FirstScales(scales),
                attention=sdpa,
            )
        images += [to_uint8(tokenizer.decode(each)) for each in run.f_hat.float().split(5)]
    return torch.cat(images)


def score(
    model: VAR, tokenizer: VQTokenizer, judge: Judge, count: int, **options: object
) -> tuple[float, Tensor]:
    """Top-1 of ``count`` pictures of evenly spread classes, and the pictures."""
    labels = [index * CONFIG.classes // count % CONFIG.classes for index in range(count)]
    if count >= CONFIG.classes:
        labels = [index % CONFIG.classes for index in range(count)]
    images = pictures_of(model, tokenizer, labels, **options)
    logits, _ = judge.read(images)
    return float((logits.argmax(dim=1) == torch.tensor(labels)).float().mean()), images


def loaded_transformer(out: Path, name: str = "transformer") -> VAR:
    """The averaged weights of the last checkpoint."""
    return averaged(out / f"{name}.pt", VAR(CONFIG), "transformer")


def train_transformer(out: Path, s: TransformerTraining | None = None, *, workers: Workers) -> None:
    """Train, or resume from the last checkpoint."""
    s = s or TransformerTraining()
    torch.manual_seed(s.seed)
    path, log = out / "transformer.pt", Log(out / "transformer.jsonl")
    tokenizer = loaded_tokenizer(out)
    batches, model = Batches(out, s, tokenizer, workers.rank), VAR(CONFIG)
    initialise(model)
    excluded = ("class_embed", "position_embed", "level_embed", "word_embed", "head.", "ada")
    optimizer = Optimizer(*split_parameters(model, excluded), s.lr, s.steps, s.decay)
    ema = EMA(model, s.ema)
    first = resume(path, model=model, ema=ema.module, optimizer=optimizer)
    began, shown, seen = time.time(), time.time(), 0
    for step in range(first, s.steps):
        view, *batch = batches(step)
        parts = scale_losses(model, view, *batch)
        # Between a mean over tokens, which forgets the layout, and one over scales, which forgets texture.
        weights = torch.tensor(view.counts).float().sqrt()
        (parts @ weights / weights.sum()).backward()
        workers.average(model.parameters())
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(step)
        ema.update(model, step)
        seen += len(batch[0]) * workers.count
        last = step + 1 == s.steps
        if not workers.first:
            continue
        if step % 25 == 24 or last:
            rate = seen / (time.time() - began)
            log(step=step + 1, rate=rate, part=s.part(step), losses=[round(p, 3) for p in parts.tolist()])
            began, seen = time.time(), 0
        if time.time() - shown > s.shown or last:
            save_checkpoint(
                path,
                step=step + 1,
                model=model.state_dict(),
                ema=ema.module.state_dict(),
                optimizer=optimizer.state_dict(),
            )
            log(step=step + 1, **shown_scores(out, ema.module, tokenizer))
            began, shown, seen = time.time(), time.time(), 0


def shown_scores(out: Path, model: VAR, tokenizer: VQTokenizer, count: int = 75) -> dict[str, float]:
    """Top-1 after the early scales."""
    found, _ = score(model, tokenizer, loaded_judge(out), count, scales=EARLY)
    return {f"top1_{EARLY}": found}


def shortened(s: TransformerTraining, **changes: int) -> TransformerTraining:
    """The same with other numbers of steps and pictures."""
    return replace(s, **changes)
