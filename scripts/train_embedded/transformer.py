"""Training of the transformer on cached latents, mostly on the scales up to a quarter of the area."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import Log, averaged, resume, save_checkpoint, start_linears
from data import to_uint8
from latents import LatentStore, cache_latents, noisy_bits
from optim import EMA, Optimizer, split_parameters
from text import encode_texts, load_text
from tokenizer import CONFIG as TOKENIZER_CONFIG
from tokenizer import FLAT_SCALES, SCHEDULE
from torch import Tensor, nn

from stagevar_core.acceleration.policy import FirstScales
from stagevar_core.autoencoders.bsq import BSQTokenizer
from stagevar_core.conditioning.types import TextConditioning
from stagevar_core.evaluation.score import summarise
from stagevar_core.models.infinity import Infinity, InfinityConfig, TextState
from stagevar_core.models.teacher import TeacherContext
from stagevar_core.network.layers import with_factors
from stagevar_core.sampling.generate import generate
from stagevar_core.sampling.noise import SeededNoise
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.scenes import caption, is_held_out, parse, sample_caption, score
from stagevar_core.schedule import ScaleSchedule

CONFIG = InfinityConfig(
    depth=6,
    width=256,
    heads=4,
    hidden=1024,
    bits=TOKENIZER_CONFIG.dim,
    text_width=256,
    null_rows=64,
    pool_heads=2,
)
TEXT_LENGTH = 40  # captions are padded to it, so that shapes stay fixed; the longest has fewer tokens


@dataclass(frozen=True)
class TransformerTraining:
    """Settings of this phase; the learning rate decays over both parts together."""

    steps: int = 2560
    short_batch: int = 48  # images on the scales up to a quarter of the area
    long_batch: int = 24  # on all scales
    layout_steps: int = 648  # the first steps, of which every fifth sees all scales; then every second
    texture_steps: int = 1020  # the last steps: all scales, mostly scenes with patterned objects
    patterned: float = 0.8  # share of such scenes then; they are what is learned last
    lr: float = 2.5e-3
    decay: float = 0.5  # share of all steps over which the learning rate falls to nothing
    strength: float = 0.25  # of the bit flips
    text_drop: float = 0.1
    scenes: int = 20_480
    ema: float = 0.998
    texture_ema: float = 0.98
    seed: int = 4

    def is_texture(self, step: int) -> bool:
        """Whether a step belongs to the last part, which teaches the patterns of objects."""
        return step >= self.steps - self.texture_steps

    def is_long(self, step: int) -> bool:
        """Whether a step trains all scales; most train the first ones, which decide what is drawn."""
        every = 5 if step < self.layout_steps else 2
        return step % every == every - 1 or self.is_texture(step)


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, mask: Tensor | None = None
) -> Tensor:
    """Softmax attention written out: on a CPU its backward pass beats the fused one."""
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1) @ v


def initialise(model: Infinity) -> None:
    """Weights of a new model; the residual branches start small."""
    depth = model.config.depth
    start_linears(model)
    with torch.no_grad():
        model.null_text.normal_()
        model.text_norm.fill_(1.0)
        model.text_pool.query.normal_()
        model.start.normal_(std=0.1)
        model.level_embed.normal_(std=0.3)
        for ada in (model.block_ada, model.head_ada):
            ada.weight.mul_(0.1)
        model.head.weight.mul_(0.1)
        for block in model.blocks:
            block.ada.normal_(std=0.02)
            block.ada[:2] += 0.5
            block.self_attn.log_scale.fill_(float(np.log(4.0)))
            block.cross_norm.reset_parameters()
            for linear in (block.self_attn.proj, block.cross_attn.proj, block.ffn.fc2):
                linear.weight.mul_(depth**-0.5)


def text_state(model: Infinity, text: Tensor, mask: Tensor) -> TextState:
    """What `Infinity.condition` computes, for texts (N, T, width) padded to one fixed length."""
    wide = text * torch.rsqrt(text.square().mean(dim=-1, keepdim=True) + 1e-6) * model.text_norm
    pooled = model.text_pool(wide, mask, plain_attention)
    projected = model.text_mlp(wide)
    shared = model.block_ada(F.silu(pooled)).float().unflatten(-1, (1, 6, -1))
    return TextState(
        start=pooled,
        block_ada=[with_factors(shared + block.ada) for block in model.blocks],
        head_ada=with_factors(model.head_ada(F.silu(pooled)).float().unflatten(-1, (1, 2, -1))),
        keys_values=[block.cross_attn.keys_values(projected) for block in model.blocks],
        lengths=[block.self_attn.lengths(text.device) for block in model.blocks],
        mask=mask,
    )


def scale_losses(
    model: Infinity, schedule: ScaleSchedule, text: Tensor, mask: Tensor, inputs: Tensor, targets: Tensor
) -> Tensor:
    """Cross-entropy per scale, mean over bits and samples."""
    with torch.autocast("cpu", torch.bfloat16):
        state = text_state(model, text, mask)
        ctx = TeacherContext(
            scale=schedule.final,
            positions=torch.cat([model.positions(schedule, s, text.device) for s in schedule], dim=1),
            conditioned=state,
            dtype=torch.bfloat16,
            attention=plain_attention,
            cache=None,
            schedule=schedule,
        )
        x = torch.cat((model.first_tokens(state), model.embed(inputs)), dim=1).float()
        pairs = model.logits(model(x, ctx), state).float().unflatten(-1, (-1, 2))
    wrong = F.softplus((pairs[..., 0] - pairs[..., 1]) * (2 * targets - 1)).mean(dim=(0, 2))
    return torch.stack([part.mean() for part in wrong.split([s.tokens for s in schedule])])


class Batches:
    """Training batches: fresh paraphrases of cached scenes, text features, noisy bits."""

    def __init__(self, out: Path, s: TransformerTraining) -> None:
        self.store, self.s = LatentStore(out), s
        self.encoder, self.tokenizer = load_text(out)

    def features(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Text features (N, T, width), zero where padded, and the mask (N, T)."""
        ids, mask = encode_texts(self.tokenizer, texts)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        pad = TEXT_LENGTH - ids.shape[1]
        return F.pad(hidden * mask.unsqueeze(-1), (0, 0, 0, pad)), F.pad(mask, (0, pad))

    def __call__(self, model: Infinity, step: int, size: int, schedule: ScaleSchedule) -> tuple[Tensor, ...]:
        """Text, mask, inputs and targets of a step."""
        rng = np.random.default_rng([self.s.seed, step])
        texts, z = self.store.batch(rng, size, self.s.patterned if self.s.is_texture(step) else 0.0)
        for i, text in enumerate(texts):
            other = caption(parse(text), rng)
            texts[i] = text if is_held_out(other) else other
        text, mask = self.features(texts)
        dropped = torch.from_numpy(rng.random(size) < self.s.text_drop).view(-1, 1, 1)
        text = torch.where(dropped, model.null_text[:TEXT_LENGTH] * mask.unsqueeze(-1), text)
        targets, inputs = noisy_bits(z, schedule, self.s.strength, SCHEDULE.final.height)
        return text, mask[:, None, None, :], torch.cat(inputs, dim=1), torch.cat(targets, dim=1).float()


SAMPLING = SamplingSettings(cfg_scale=2.0, temperature=0.7, top_k=0, top_p=0.0)


@torch.no_grad()
def evaluate(
    model: Infinity,
    tokenizer: BSQTokenizer,
    batches: Batches,
    scales: int,
    count: int = 96,
    settings: SamplingSettings = SAMPLING,
) -> dict[str, float]:
    """Scores of pictures for held-out captions, decoded after the first scales and after `scales`."""
    rng, results = np.random.default_rng(77), {}
    texts = [sample_caption(rng, "test")[1] for _ in range(count)]
    scores: dict[int, list] = {k: [] for k in sorted({FLAT_SCALES, scales})}
    quantizer = model.quantizer()
    for start in range(0, count, 24):
        part = texts[start : start + 24]
        text, mask = batches.features(part)
        conditioning = TextConditioning(tuple(t[: int(m.sum())] for t, m in zip(text, mask, strict=True)))
        with torch.autocast("cpu", torch.bfloat16):
            run = generate(
                model,
                conditioning,
                SCHEDULE,
                settings,
                noise=SeededNoise(start, len(part)),
                policy=FirstScales(scales),
            )
            for k, found in scores.items():
                f_hat = quantizer.accumulate([c for c in run.codes[:k] if c is not None], SCHEDULE)
                images = to_uint8(tokenizer.decode(f_hat))
                found += [score(t, x) for t, x in zip(part, images, strict=True)]
    for k, found in scores.items():
        summary = summarise(found)
        results |= {f"{p}{k}": summary["all"][p]["mean"] for p in ("strict", "texture", "shape", "count")}
        results |= {f"{t}{k}": summary[t]["strict"]["mean"] for t in ("single", "pair", "count")}
    return results


def load_tokenizer(out: Path) -> BSQTokenizer:
    """The averaged weights of the finished tokenizer."""
    model = BSQTokenizer(TOKENIZER_CONFIG).to(memory_format=torch.channels_last)
    return averaged(out / "tokenizer.pt", model)


def train_transformer(out: Path, s: TransformerTraining | None = None) -> None:
    """Train, or resume from the last checkpoint."""
    s = s or TransformerTraining()
    torch.manual_seed(s.seed)
    path, log = out / "transformer.pt", Log(out / "transformer.jsonl")
    tokenizer = load_tokenizer(out)
    cache_latents(tokenizer, out, s.scenes)
    batches, model = Batches(out, s), Infinity(CONFIG)
    initialise(model)
    excluded = ("null_text", "text_pool.query", "level_embed", "word_embed", "head.", "ada")
    optimizer = Optimizer(*split_parameters(model, excluded), s.lr, s.steps, s.decay)
    ema = EMA(model, s.ema)
    first = resume(path, model=model, ema=ema.module, optimizer=optimizer)
    last_time, seen, shown = time.time(), 0, time.time()
    for step in range(first, s.steps):
        schedule = SCHEDULE if s.is_long(step) else SCHEDULE.prefix(FLAT_SCALES)
        size = s.long_batch if s.is_long(step) else s.short_batch
        parts = scale_losses(model, schedule, *batches(model, step, size, schedule))
        # Between a mean over tokens, which forgets the layout, and one over scales, which forgets texture.
        weights = torch.tensor([float(scale.tokens) ** 0.5 for scale in schedule])
        (parts @ weights / weights.sum()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(step)
        ema.decay = s.texture_ema if s.is_texture(step) else s.ema
        ema.update(model, step)
        seen += size
        if step % 50 == 49:
            rate, last_time, seen = seen / (time.time() - last_time), time.time(), 0
            log(step=step + 1, rate=rate, losses=[round(p, 3) for p in parts.tolist()])
        last = step + 1 == s.steps
        if time.time() - shown > 420 or last:
            save_checkpoint(
                path,
                step=step + 1,
                model=model.state_dict(),
                ema=ema.module.state_dict(),
                optimizer=optimizer.state_dict(),
            )
            log(step=step + 1, **evaluate(ema.module, tokenizer, batches, len(SCHEDULE), 300 if last else 96))
            last_time, seen, shown = time.time(), 0, time.time()
