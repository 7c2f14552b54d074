"""Trains the tokenizer: first as a plain autoencoder on crops, then with its codebook on whole pictures."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stagevar_core.autoencoders.vq import VQTokenizer, VQTokenizerConfig
from stagevar_core.schedule import SIDES_512, ScaleSchedule

from ..train_embedded.common import Log, averaged, resume, save_checkpoint
from ..train_embedded.optim import EMA, Optimizer, split_parameters
from .codebook import Codebook, kmeans
from .compose import Composer, to_tensor
from .judging import loaded_judge
from .parallel import Workers
from .sources import gather

SCHEDULE = ScaleSchedule.of([(side, side) for side in SIDES_512])
EARLY = 7  # scales up to a quarter of the area, 13 x 13: 316 of 2,240 tokens
CONFIG = VQTokenizerConfig(vocab=1024, dim=8, width=16, multipliers=(1, 2, 4, 4), blocks=1, phis=4, groups=4)
# How often 1, 2, ... 10 scales are decoded.
PREFIXES = (0.0, 0.0, 0.01, 0.02, 0.03, 0.06, 0.30, 0.08, 0.08, 0.42)


@dataclass(frozen=True)
class TokenizerTraining:
    """Settings of this phase, batches of each process; the first ``plain`` steps have no codebook."""

    plain: int = 700
    steps: int = 1200
    crop: int = 128
    plain_batch: int = 8
    batch: int = 3
    lr: float = 2e-3
    noise: float = 0.1  # on latents without a codebook
    commitment: float = 0.25
    spread: float = 0.1  # weight of the latents' mean and variance
    restarts: float = 0.6  # of the steps, after which unused codes stay as they are
    ema: float = 0.995
    seed: int = 1


def initialise(model: VQTokenizer) -> None:
    """The phi convolutions begin as identities, so that phi is one."""
    with torch.no_grad():
        for conv in model.quantize.phi:
            torch.nn.init.dirac_(conv.weight)
            torch.nn.init.zeros_(conv.bias)
        model.quantize.codebook.normal_()
    model.quantize.codebook.requires_grad_(False)


def low_pass(z: Tensor, side: int) -> Tensor:
    """What a grid of ``side`` cells holds of a latent."""
    if side == z.shape[-1]:
        return z
    return F.interpolate(F.interpolate(z, size=(side, side), mode="area"), size=z.shape[-2:], mode="bicubic")


def reconstruction_loss(image: Tensor, target: Tensor) -> Tensor:
    """L1 and MSE of pixels, L1 of their differences; heavier where the picture has edges and colour."""
    error = image - target
    chroma = (target.amax(dim=1, keepdim=True) - target.amin(dim=1, keepdim=True)) / 2
    weight = 1 + 2 * F.max_pool2d(chroma, 5, 1, 2)
    loss = ((error.abs() + 2 * error.square()) * weight).mean() / weight.mean()
    return loss + sum(torch.diff(error, dim=axis).abs().mean() for axis in (2, 3))


def plain_loss(
    model: VQTokenizer, pictures: Tensor, s: TokenizerTraining, rng: np.random.Generator
) -> Tensor:
    """Of an autoencoder on crops, of which some latents are coarse and all are noisy."""
    top, left = rng.integers(0, pictures.shape[-1] - s.crop + 1, 2)
    crops = pictures[..., top : top + s.crop, left : left + s.crop]
    with torch.autocast("cpu", torch.bfloat16):
        z = model.encode(crops.contiguous(memory_format=torch.channels_last)).float()
    coarse = low_pass(z, max(1, round(z.shape[-1] * SIDES_512[EARLY - 1] / SIDES_512[-1])))
    rows = torch.from_numpy(rng.random(len(z)) < 0.35).view(-1, 1, 1, 1)
    latent = torch.where(rows, coarse, z)
    latent = latent + s.noise * torch.randn_like(latent)
    image = decoded(model, latent)
    return reconstruction_loss(image, crops) + 0.02 * spread_loss(z)


def spread_loss(z: Tensor) -> Tensor:
    """How far the channels of a latent are from mean 0 and variance 1.

    Without it they run away once there is a codebook: codes follow features, which follow codes.
    """
    return z.square().mean(dim=(0, 2, 3)).log().square().mean() + z.mean(dim=(0, 2, 3)).square().mean()


def decoded(model: VQTokenizer, latent: Tensor) -> Tensor:
    """The picture, not clamped, so that its gradient lives."""
    with torch.autocast("cpu", torch.bfloat16):
        return model.decoder(model.post_quant_conv(latent)).float()


def quantized(model: VQTokenizer, z: Tensor) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
    """The latent after every scale, and (features, ids) of every scale; gradients reach phi alone."""
    quantizer, residual, f_hat = model.quantize, z.detach(), torch.zeros_like(z)
    after, chosen = [], []
    for scale in SCHEDULE:
        with torch.no_grad():
            whole = scale == SCHEDULE.final
            pooled = residual if whole else F.interpolate(residual, size=scale.grid, mode="area")
            ids = quantizer.nearest(pooled)
        chosen.append((pooled, ids))
        following = quantizer.add(f_hat, quantizer.codes(ids), SCHEDULE, scale)
        residual = residual - (following - f_hat).detach()
        f_hat = following
        after.append(f_hat)
    return after, chosen


def coded_loss(
    model: VQTokenizer, codebook: Codebook, pictures: Tensor, s: TokenizerTraining, generator: torch.Generator
) -> Tensor:
    """Of whole pictures through the codes of all scales, or of the first ones."""
    with torch.autocast("cpu", torch.bfloat16):
        z = model.encode(pictures.contiguous(memory_format=torch.channels_last)).float()
    after, chosen = quantized(model, z)
    codebook.observe(chosen)
    counts = 1 + torch.multinomial(torch.tensor(PREFIXES), len(z), True, generator=generator)
    rows = []
    for row, count in enumerate(counts.tolist()):
        # The gradient of a short prefix reaches only what its grid can hold.
        smooth = low_pass(z[row : row + 1], SIDES_512[count - 1])
        rows.append(smooth + (after[count - 1][row : row + 1] - smooth).detach())
    image = decoded(model, torch.cat(rows))
    target = z.detach()
    phi = sum(F.mse_loss(f_hat, target) for f_hat in after) / len(after)
    early, side = after[EARLY - 1].detach(), SIDES_512[EARLY - 1]
    commitment = F.mse_loss(z, after[-1].detach()) + F.mse_loss(low_pass(z, side), low_pass(early, side))
    near = phi + s.commitment * commitment + s.spread * spread_loss(z)
    return reconstruction_loss(image, pictures) + near


@torch.no_grad()
def begin_codes(model: VQTokenizer, pictures: Tensor, workers: Workers) -> None:
    """Latents of unit variance, and a codebook from the clusters of what every scale adds to them."""
    with torch.autocast("cpu", torch.bfloat16):
        z = torch.cat([model.encode(part).float() for part in pictures.split(4)])
    deviation = z.std(dim=(0, 2, 3))
    model.quant_conv.weight /= deviation.view(-1, 1, 1, 1)
    model.quant_conv.bias /= deviation
    model.post_quant_conv.weight *= deviation.view(1, -1, 1, 1)
    residual, samples = z / deviation.view(1, -1, 1, 1), []
    for scale in SCHEDULE:
        pooled = F.interpolate(residual, size=scale.grid, mode="area")
        cells = pooled.movedim(1, -1).reshape(-1, z.shape[1])
        samples.append(cells[torch.randperm(len(cells))[:1500]])
        # Codes are not exact: what they leave over is about a third of what they replace.
        residual = residual - 0.7 * F.interpolate(pooled, size=z.shape[-2:], mode="bicubic")
    model.quantize.codebook.copy_(kmeans(torch.cat(samples), model.config.vocab))
    workers.same(model)


@torch.no_grad()
def evaluate(model: VQTokenizer, out: Path, count: int = 48) -> dict[str, float]:
    """PSNR, and top-1 of the judge where there is one, of pictures through all scales and the early ones."""
    composer, rng = Composer(gather(out)), np.random.default_rng(77)
    judge = loaded_judge(out) if (out / "judge.pt").exists() else None
    pictures, labels = composer.batch(rng, count)
    found: dict[str, list[float]] = {}
    used: set[int] = set()
    for part, names in zip(pictures.split(8), labels.split(8), strict=True):
        image = to_tensor(part)
        ids, _ = model.quantize.encode(model.encode(image), SCHEDULE)
        used |= set(torch.cat([each.flatten() for each in ids]).tolist())
        for scales in (EARLY, len(SCHEDULE)):
            near = model.decode(model.quantize.accumulate(ids[:scales], SCHEDULE))
            error = (near - image).square().mean(dim=(1, 2, 3))
            found.setdefault(f"psnr{scales}", []).extend((10 * torch.log10(4 / error)).tolist())
            if judge is not None:
                right = judge(near).argmax(dim=1) == names
                found.setdefault(f"top1_{scales}", []).extend(right.float().tolist())
    return {name: sum(values) / len(values) for name, values in found.items()} | {"codes": len(used)}


def train_tokenizer(out: Path, s: TokenizerTraining | None = None, *, workers: Workers) -> None:
    """Train, or resume, or do nothing when finished."""
    s = s or TokenizerTraining()
    torch.manual_seed(s.seed)
    path, log, composer = out / "tokenizer.pt", Log(out / "tokenizer.jsonl"), Composer(gather(out))
    model = VQTokenizer(CONFIG).to(memory_format=torch.channels_last)
    initialise(model)
    codebook = Codebook(model.quantize, workers)
    matrices, others = split_parameters(model, ("conv_in", "conv_out", "quantize", "quant_conv"))
    optimizer = Optimizer(matrices, [p for p in others if p.requires_grad], s.lr, s.steps, decay=0.4)
    ema = EMA(model, s.ema)
    first = resume(path, model=model, ema=ema.module, optimizer=optimizer, codebook=codebook)
    began, seen = time.time(), 0
    for step in range(first, s.steps):
        rng = np.random.default_rng([s.seed, step, workers.rank])
        plain = step < s.plain
        if step == s.plain:
            begin_codes(model, to_tensor(composer.batch(rng, 32)[0]), workers)
            ema = EMA(model, s.ema)
        pictures = to_tensor(composer.batch(rng, s.plain_batch if plain else s.batch)[0])
        if plain:
            loss = plain_loss(model, pictures, s, rng)
        else:
            generator = torch.Generator().manual_seed(int(rng.integers(2**60)))
            loss = coded_loss(model, codebook, pictures, s, generator)
        loss.backward()
        workers.average(model.parameters())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(step)
        if not plain:
            codebook.update(restart=step % 20 == 0 and step < s.restarts * s.steps)
        ema.update(model, step)
        seen += len(pictures) * workers.count
        if workers.first and step % 20 == 19:
            log(
                step=step + 1,
                loss=float(loss.detach()),
                spread=float(model.quantize.codebook.std()),
                rate=seen / (time.time() - began),
            )
            began, seen = time.time(), 0
        if workers.first and (step % 200 == 199 or step + 1 == s.steps):
            save_checkpoint(
                path,
                step=step + 1,
                model=model.state_dict(),
                ema=ema.module.state_dict(),
                optimizer=optimizer.state_dict(),
                codebook=codebook.state_dict(),
            )
            if not plain:
                log(step=step + 1, **evaluate(ema.module, out))
            began, seen = time.time(), 0


def loaded_tokenizer(out: Path) -> VQTokenizer:
    """The averaged weights of the trained tokenizer."""
    model = VQTokenizer(CONFIG).to(memory_format=torch.channels_last)
    return averaged(out / "tokenizer.pt", model)
