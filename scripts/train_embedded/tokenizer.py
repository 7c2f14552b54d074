"""Trains the bitwise image tokenizer: short prefixes of scales learn shapes, all scales learn texture."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from common import Log, resume, save_checkpoint
from data import scene_batch, scene_tensors, to_uint8
from optim import EMA, Optimizer, split_parameters
from torch import Tensor, nn

from stagevar_core.autoencoders.bsq import BSQTokenizer, BSQTokenizerConfig, resize_latent
from stagevar_core.evaluation.score import summarise
from stagevar_core.scenes import score
from stagevar_core.scenes.grammar import SHAPES
from stagevar_core.schedule import ScaleSchedule

SCHEDULE = ScaleSchedule.of([(s, s) for s in (1, 2, 4, 6, 8, 12, 16)], reference=(64, 64))
CONFIG = BSQTokenizerConfig(dim=16, width=32, multipliers=(1, 1, 3, 4), blocks=1, groups=8)
FLAT_SCALES = 5  # prefixes up to here (a quarter of the area) are decoded to the scene without patterns
# How often 1, 2, ... 7 scales are decoded in the first half of training, which learns texture, and in the
# second, which moves the shapes into the first five scales.
PREFIX_WEIGHTS = ((0.01, 0.01, 0.03, 0.06, 0.27, 0.07, 0.55), (0.01, 0.01, 0.02, 0.05, 0.49, 0.05, 0.37))


@dataclass(frozen=True)
class TokenizerTraining:
    """Settings of this phase."""

    steps: int = 2400
    batch: int = 8
    lr: float = 3e-3
    warmup: int = 120  # steps that decode the latent itself
    blend: int = 200  # further steps over which quantization fades in
    object_weight: float = 4.0
    edge_weight: float = 1.0
    shape_weight: float = 0.05
    commitment: float = 0.1
    flip: float = 0.02  # bit noise on half of the samples: sampled bits are never perfect
    ema: float = 0.995
    seed: int = 1


def quantize(z: Tensor, counts: Tensor, flip: Tensor) -> tuple[Tensor, Tensor]:
    """Accumulated codes of the first `counts` scales and of all, straight-through.

    The arithmetic of `BitwiseQuantizer.encode`; a gradient reaches z through the area pooling of the scales
    that are decoded. `flip`: probability per sample that a bit is inverted.
    """
    dim, final = z.shape[1], tuple(z.shape[-2:])
    residual, prefix, full = z, 0, 0
    for index, scale in enumerate(SCHEDULE):
        pooled = residual if scale.grid == final else F.interpolate(residual, size=scale.grid, mode="area")
        unit = F.normalize(pooled, dim=1)
        sign = (unit.detach() > 0).to(z.dtype) * 2 - 1
        sign = torch.where(torch.rand_like(sign) < flip.view(-1, 1, 1, 1), -sign, sign)
        hard = sign / math.sqrt(dim)
        code = resize_latent(unit + (hard - unit).detach(), final)
        residual = residual - code.detach()
        prefix = prefix + code * (counts > index).to(z.dtype).view(-1, 1, 1, 1)
        full = full + code.detach()
    return prefix, full


class ShapeHead(nn.Module):
    """Tells from the accumulated codes which shape covers each latent cell (training only)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(dim, 64, 3, padding=1), nn.GELU(), nn.Conv2d(64, 1 + len(SHAPES), 3, padding=1)
        )

    def loss(self, f_hat: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy against the labels (N, H, W) at the cell centres."""
        stride = labels.shape[-1] // f_hat.shape[-1]
        return F.cross_entropy(
            self.net(f_hat).float(), labels[:, stride // 2 :: stride, stride // 2 :: stride]
        )


def reconstruction_loss(image: Tensor, target: Tensor, labels: Tensor, s: TokenizerTraining) -> Tensor:
    """L1 + MSE, heavier on and around objects, plus the difference of image gradients."""
    near = F.max_pool2d((labels > 0).float().unsqueeze(1), 5, 1, 2)
    weight = 1 + s.object_weight * near
    error = image - target
    pixel = ((error.abs() + 2 * error.square()) * weight).mean() / weight.mean()
    edges = 0
    for axis in (2, 3):
        edges = (
            edges + (torch.diff(error, dim=axis).abs() * weight.narrow(axis, 1, 127)).mean() / weight.mean()
        )
    return pixel + s.edge_weight * edges


def training_loss(
    model: BSQTokenizer, head: ShapeHead, s: TokenizerTraining, step: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of one batch and its parts."""
    scenes, _ = scene_batch(s.seed, step, s.batch)
    textured, flat, labels = scene_tensors(scenes)
    generator = torch.Generator().manual_seed(s.seed * 1_000_003 + step)
    weights = torch.tensor(PREFIX_WEIGHTS[step >= s.steps // 2])
    counts = 1 + torch.multinomial(weights, s.batch, True, generator=generator)
    blend = min(max((step - s.warmup) / s.blend, 0.0), 1.0)
    flip = s.flip * (torch.rand(s.batch, generator=generator) < 0.5) * (blend == 1)
    target = torch.where((counts > FLAT_SCALES).view(-1, 1, 1, 1), textured, flat)
    if blend == 0:
        target, counts = textured, torch.full_like(counts, len(SCHEDULE))
    with torch.autocast("cpu", torch.bfloat16):
        z = model.encoder(textured)
    z = z.float()
    f_hat, full = quantize(z, counts, flip)
    if blend < 1:
        full_rows = (counts == len(SCHEDULE)).float().view(-1, 1, 1, 1)
        f_hat = f_hat + (1 - blend) * full_rows * (z - f_hat)
    with torch.autocast("cpu", torch.bfloat16):
        image = model.decoder(f_hat)
        shape = head.loss(f_hat, labels)
    pixel = reconstruction_loss(image.float(), target, labels, s)
    commitment = F.mse_loss(z, full)
    loss = pixel + s.shape_weight * shape + s.commitment * commitment
    return loss, {"loss": pixel.detach(), "shape": shape.detach(), "commit": commitment.detach()}


@torch.no_grad()
def evaluate(model: BSQTokenizer, count: int = 96, prefixes: tuple[int, ...] = (5, 7)) -> dict[str, float]:
    """Strict and texture scores of reconstructions of unseen scenes per number of scales, and PSNR."""
    quantizer, results = model.quantizer(), {}
    scores: dict[int, list] = {k: [] for k in prefixes}
    squared, used = [], []
    for start in range(0, count, 16):
        scenes, texts = scene_batch(10_000 + start, 0, min(16, count - start), "test")
        images, _, _ = scene_tensors(scenes)
        with torch.autocast("cpu", torch.bfloat16):
            z = model.encode(images).float()
        bits, _ = quantizer.encode(z, SCHEDULE)
        used.append(torch.stack([b.float().mean(dim=(0, 2, 3)) for b in bits[-3:]]))
        for k in prefixes:
            with torch.autocast("cpu", torch.bfloat16):
                image = model.decode(quantizer.accumulate(bits[:k], SCHEDULE)).float()
            scores[k] += [score(t, x) for t, x in zip(texts, to_uint8(image), strict=True)]
            if k == len(SCHEDULE):
                squared.append((image - images).square().mean(dim=(1, 2, 3)))
    for k, found in scores.items():
        summary = summarise(found)
        for part in ("strict", "texture", "shape", "count"):
            results[f"{part}{k}"] = summary["all"][part]["mean"]
        for task in ("single", "pair", "count"):
            results[f"{task}{k}"] = summary[task]["strict"]["mean"]
    if squared:
        results["psnr"] = float((10 * torch.log10(4 / torch.cat(squared))).mean())
    ones = torch.stack(used).mean(dim=0)
    results["dead_bits"] = float(((ones < 0.02) | (ones > 0.98)).float().mean())
    return results


def train_tokenizer(out: Path, s: TokenizerTraining | None = None) -> BSQTokenizer:
    """Train, or resume, or load when finished; returns the averaged weights."""
    s = s or TokenizerTraining()
    torch.manual_seed(s.seed)
    path, log = out / "tokenizer.pt", Log(out / "tokenizer.jsonl")
    model = BSQTokenizer(CONFIG).to(memory_format=torch.channels_last)
    head = ShapeHead(CONFIG.dim)
    matrices, others = split_parameters(model, excluded=("conv_in", "conv_out"))
    optimizer = Optimizer(matrices, others + list(head.parameters()), s.lr, s.steps)
    ema = EMA(model, s.ema)
    first = resume(path, model=model, head=head, ema=ema.module, optimizer=optimizer)
    last_time = time.time()
    for step in range(first, s.steps):
        loss, parts = training_loss(model, head, s, step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*model.parameters(), *head.parameters()], 1.0)
        optimizer.step(step)
        ema.update(model, step)
        if step % 20 == 19:
            rate, last_time = 20 * s.batch / (time.time() - last_time), time.time()
            log(step=step + 1, rate=rate, **{k: float(v) for k, v in parts.items()})
        if step % 250 == 249 or step + 1 == s.steps:
            save_checkpoint(
                path,
                step=step + 1,
                model=model.state_dict(),
                head=head.state_dict(),
                ema=ema.module.state_dict(),
                optimizer=optimizer.state_dict(),
            )
            log(step=step + 1, **evaluate(ema.module))
            last_time = time.time()
    return ema.module
