"""How often a changed word changes what it should and nothing else, on the embedded model.

    python scripts/word_edits.py                    200 pairs, into docs/measurements/word_edits.json
    python scripts/word_edits.py --pairs 40         a quick look

Scenes with freely placed objects, of which the caption leaves out where they are and in half of them patterns
or the background: what a prompt does not say only survives where the picture is kept. The scorer reads
everything back from the pixels. Settings were chosen on pairs of another seed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from stagevar_core.devices import hardware  # noqa: E402
from stagevar_core.evaluation.intervals import interval  # noqa: E402
from stagevar_core.pipeline import Pipeline  # noqa: E402
from stagevar_core.sampling.generate import generate  # noqa: E402
from stagevar_core.sampling.noise import SeededNoise  # noqa: E402
from stagevar_core.sampling.word_edit import STRENGTH, WordEdit, reworded  # noqa: E402
from stagevar_core.scenes.edits import EditScore, score_edit  # noqa: E402
from stagevar_core.scenes.render import render  # noqa: E402
from stagevar_core.scenes.rewording import WORDS, Rewording, sample_rewording  # noqa: E402

SEED, BATCH = 2, 40


class Batch:
    """Some pairs: encoded pictures, and both captions."""

    def __init__(self, pipeline: Pipeline, pairs: list[Rewording], seed: int) -> None:
        self.pipeline, self.pairs, self.schedule = pipeline, pairs, pipeline.schedule()
        pictures = np.stack([render(pair.edit.source) for pair in pairs])
        pixels = torch.from_numpy(pictures).float().movedim(-1, 1) / 127.5 - 1.0
        self.features = pipeline.tokenizer.encode(pixels).float()
        self.before = pipeline.encode([pair.caption for pair in pairs])
        self.after = pipeline.encode([pair.edit.instruction for pair in pairs])
        self.noise = SeededNoise(seed, len(pairs))

    def stored(self) -> Tensor:
        """The pictures as the tokenizer has them."""
        return self.pipeline.quantizer.encode(self.features, self.schedule)[1]

    def plain(self) -> Tensor:
        """The second caption alone."""
        return self._drawn(self.after)

    def first(self, scales: int) -> Tensor:
        """The second caption, after the first scales of the picture."""
        codes = self.pipeline.quantizer.encode(self.features, self.schedule)[0]
        return self._drawn(self.after, known=codes[:scales])

    def agreed(self, strength: float) -> Tensor:
        """What this is about."""
        asked = reworded(self.after, self.before)
        return self._drawn(asked, words=WordEdit(self.features, strength))

    def _drawn(self, conditioning, **given) -> Tensor:
        pipeline = self.pipeline
        settings, quantizer = pipeline.settings(), pipeline.quantizer
        found = generate(
            pipeline.transformer,
            conditioning,
            self.schedule,
            settings,
            noise=self.noise,
            quantizer=quantizer,
            **given,
        )
        return found.f_hat


def variants(strengths: list[float], scales: list[int]) -> dict[str, Callable[[Batch], Tensor]]:
    """Name and how the latents are made."""
    found = {f"agreement, strength {s:g}": lambda b, s=s: b.agreed(s) for s in strengths}
    found |= {f"first {count} scales kept": lambda b, n=count: b.first(n) for count in scales}
    return found | {"the new prompt alone": Batch.plain, "the tokenizer alone": Batch.stored}


def summary(scores: list[EditScore]) -> dict[str, dict[str, object]]:
    """Shares with their intervals, of all pairs and of those of a kind."""
    found = {}
    for kind in ("all", *WORDS):
        some = [score for score in scores if kind in ("all", score.kind)]
        values = {
            "followed": [score.followed for score in some],
            "unchanged": [score.unchanged for score in some],
            "both": [score.followed and score.unchanged for score in some],
        }
        shares = {name: interval(np.array(each, float), share=True) for name, each in values.items()}
        found[kind] = {name: share._asdict() for name, share in shares.items() if share}
    return found


def measure(
    pipeline: Pipeline, pairs: list[Rewording], made: dict[str, Callable[[Batch], Tensor]]
) -> Iterator[tuple[str, dict]]:
    """All variants on all pairs, one after the other."""
    batches = [
        Batch(pipeline, pairs[start : start + BATCH], SEED + start) for start in range(0, len(pairs), BATCH)
    ]
    for name, make in made.items():
        started, scores = time.perf_counter(), []
        for batch in batches:
            images = pipeline.decode(make(batch)).numpy()
            scores += [score_edit(p.edit, image) for p, image in zip(batch.pairs, images, strict=True)]
        found = summary(scores)
        shares = ", ".join(f"{key} {share['mean']:.3f}" for key, share in found["all"].items())
        print(f"{name}: {shares} ({time.perf_counter() - started:.0f} s)", flush=True)
        yield name, found


def main(arguments: list[str] | None = None) -> None:
    """Measure, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=SEED, help="of the pairs")
    parser.add_argument("--strengths", default=f"{STRENGTH:g}", help="comma-separated")
    parser.add_argument("--scales", default="4,5", help="first scales that are kept, comma-separated")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "measurements" / "word_edits.json")
    asked = parser.parse_args(arguments)
    rng = np.random.default_rng(asked.seed)
    pairs = [sample_rewording(rng, WORDS[index % len(WORDS)]) for index in range(asked.pairs)]
    pipeline, found = Pipeline.embedded(dtype=torch.float32), {}
    made = variants(
        [float(part) for part in asked.strengths.split(",")],
        [int(part) for part in asked.scales.split(",")],
    )
    values = {
        "command": shlex.join(["python", "scripts/word_edits.py", *(arguments or sys.argv[1:])]),
        "hardware": hardware(pipeline.device),
        "pairs": asked.pairs,
        "seed": asked.seed,
        "variants": found,
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        for name, shares in measure(pipeline, pairs, made):
            found[name] = shares
            asked.out.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
