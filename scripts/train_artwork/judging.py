"""Training and testing of the classifier that reads the pictures, also without one of the sets."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stagevar_core.evaluation.judge import Judge, JudgeConfig

from ..train_embedded.common import Log, averaged, resume, save_checkpoint
from ..train_embedded.optim import EMA, Optimizer, split_parameters
from .compose import Composer, to_tensor
from .parallel import Workers
from .sources import class_names, gather, listed

HALF = 128  # pixels that it is trained on; it looks at 64


@dataclass(frozen=True)
class JudgeTraining:
    """Settings of this phase; ``without``: the name of a set that it does not see."""

    steps: int = 1000
    batch: int = 48  # of each process
    lr: float = 3e-3
    smoothing: float = 0.05
    seed: int = 5
    without: str = ""

    @property
    def name(self) -> str:
        """Of its checkpoint and log."""
        return f"judge without {self.without}" if self.without else "judge"


def roughened(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """What tokenizers do to pictures (B, 3, H, W): blur, noise, other brightness and contrast."""
    count = len(pictures)
    blurred = F.interpolate(F.avg_pool2d(pictures, 2), scale_factor=2.0, mode="bilinear")
    share, gain, shift, noise = torch.rand(4, count, 1, 1, 1, generator=generator)
    pictures = pictures.lerp(blurred, share)
    pictures = pictures * (0.8 + 0.4 * gain) + 0.3 * (shift - 0.5)
    return pictures + 0.15 * noise.square() * torch.randn(pictures.shape, generator=generator)


def loaded_judge(out: Path, name: str = "judge") -> Judge:
    """The averaged weights of a trained judge."""
    judge = Judge(JudgeConfig(classes=len(class_names())), class_names())
    return averaged(out / f"{name}.pt", judge, "judge")


def accuracy(judge: Judge, composer: Composer, count: int, seed: int) -> float:
    """Share of right answers on ``count`` pictures."""
    rng, right = np.random.default_rng(seed), 0
    for start in range(0, count, 100):
        pictures, labels = composer.batch(rng, min(100, count - start))
        logits, _ = judge.read(pictures)
        right += int((logits.argmax(dim=1) == labels).sum())
    return right / count


def train_judge(out: Path, s: JudgeTraining | None = None, *, workers: Workers) -> None:
    """Train, or resume, or do nothing when finished."""
    s = s or JudgeTraining()
    torch.manual_seed(s.seed)
    path, log = out / f"{s.name}.pt", Log(out / f"{s.name}.jsonl")
    artwork = gather(out)
    if s.without:
        artwork = artwork.only(artwork.sets != [each["name"] for each in listed()["sets"]].index(s.without))
    composer = Composer(artwork, HALF, "any")
    judge = Judge(JudgeConfig(classes=len(class_names())))
    optimizer = Optimizer(*split_parameters(judge, ("stem", "head")), s.lr, s.steps, decay=0.6)
    ema = EMA(judge, 0.995)
    first = resume(path, model=judge, ema=ema.module, optimizer=optimizer)
    began = time.time()
    for step in range(first, s.steps):
        rng = np.random.default_rng([s.seed, step, workers.rank])
        generator = torch.Generator().manual_seed(int(rng.integers(2**60)))
        pictures, labels = composer.batch(rng, s.batch)
        logits = judge(roughened(to_tensor(pictures), generator))
        loss = F.cross_entropy(logits, labels, label_smoothing=s.smoothing)
        loss.backward()
        workers.average(judge.parameters())
        optimizer.step(step)
        ema.update(judge, step)
        last = step + 1 == s.steps
        if workers.first and (step % 100 == 99 or last):
            rate = (step + 1 - first) * s.batch * workers.count / (time.time() - began)
            log(step=step + 1, rate=rate, loss=float(loss.detach()))
            save_checkpoint(
                path,
                step=step + 1,
                model=judge.state_dict(),
                ema=ema.module.state_dict(),
                optimizer=optimizer.state_dict(),
            )
        if workers.first and last:
            log(**tested(out, s))


def tested(out: Path, s: JudgeTraining, count: int = 2000) -> dict[str, float]:
    """Accuracy on unseen sizes, places and backgrounds, at the size of the model's pictures.

    ``without``: on the set that it never saw.
    """
    judge, artwork = loaded_judge(out, s.name), gather(out)
    if not s.without:
        found = {f"{kind} backgrounds": Composer(artwork, kind=kind) for kind in ("unseen", "model")}
        return {name: accuracy(judge, composer, count, 99) for name, composer in found.items()}
    left_out = artwork.only(artwork.sets == [each["name"] for each in listed()["sets"]].index(s.without))
    return {s.without: accuracy(judge, Composer(left_out, kind="unseen"), count, 99)}
