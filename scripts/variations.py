"""What variations of a picture keep of it, on the embedded model.

    python scripts/variations.py                    100 pictures, into docs/measurements/variations.json
    python scripts/variations.py --pictures 20      a quick look

Of runs: pictures that the model drew of captions it was not trained on. Of pictures: scenes with freely
placed objects, through the tokenizer; the caption names them, but not where they are. The scorer reads
objects back from the pixels. The layout is kept where as many objects have the same shapes within half a
token of their places.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from stagevar_core.acceleration.stages import kept_scales  # noqa: E402
from stagevar_core.devices import hardware  # noqa: E402
from stagevar_core.evaluation.intervals import interval  # noqa: E402
from stagevar_core.pipeline import Pipeline  # noqa: E402
from stagevar_core.sampling.generate import generate  # noqa: E402
from stagevar_core.sampling.noise import SeededNoise  # noqa: E402
from stagevar_core.sampling.result import Generation  # noqa: E402
from stagevar_core.scenes.grammar import Scene, sample_caption  # noqa: E402
from stagevar_core.scenes.render import render  # noqa: E402
from stagevar_core.scenes.rewording import WORDS, sample_rewording  # noqa: E402
from stagevar_core.scenes.scorer import Reading, read  # noqa: E402

SEED, BATCH, NEAR = 4, 25, 4.0  # pixels; a token of the last scale has 8


def same_layout(one: Reading, other: Reading) -> bool:
    """Whether every object of one is found in the other: its shape, near its place, and no further ones."""
    left = list(other.objects)
    for each in one.objects:
        found = [o for o in left if o.shape == each.shape and abs(o.x - each.x) + abs(o.y - each.y) <= NEAR]
        if not found:
            return False
        left.remove(found[0])
    return not left


def same_colours(one: Reading, other: Reading) -> bool:
    """Whether objects and background have the colours that they had."""
    colours = [sorted(o.colour for o in reading.objects) for reading in (one, other)]
    return colours[0] == colours[1] and one.background == other.background


class Source:
    """Captions, and the codes of their pictures."""

    def __init__(self, pipeline: Pipeline, count: int) -> None:
        self.pipeline, self.schedule = pipeline, pipeline.schedule()
        rng = np.random.default_rng(SEED)
        self.captions, self.scenes = self.sampled(rng, count)

    def sampled(self, rng: np.random.Generator, count: int) -> tuple[list[str], list[Scene]]:
        """Captions, and their scenes where there are some."""
        return [sample_caption(rng, "test")[1] for _ in range(count)], []

    def codes(self, first: int) -> list[Tensor]:
        """Of a batch of pictures, scale by scale."""
        return [code for code in self.drawn(first, SEED + first, []).codes if code is not None]

    def drawn(self, first: int, seed: int, known: list[Tensor]) -> Generation:
        """The same captions behind the first scales of a picture."""
        captions = self.captions[first : first + BATCH]
        return generate(
            self.pipeline.transformer,
            self.pipeline.encode(captions),
            self.schedule,
            self.pipeline.settings(),
            noise=SeededNoise(seed, len(captions)),
            quantizer=self.pipeline.quantizer,
            known=known,
        )


class Pictures(Source):
    """Rendered scenes through the tokenizer."""

    def sampled(self, rng: np.random.Generator, count: int) -> tuple[list[str], list[Scene]]:
        """Captions that do not say where objects are, and where they are."""
        pairs = [sample_rewording(rng, WORDS[index % len(WORDS)]) for index in range(count)]
        return [pair.caption for pair in pairs], [pair.edit.source for pair in pairs]

    def codes(self, first: int) -> list[Tensor]:
        """As the tokenizer stores them."""
        pixels = torch.from_numpy(np.stack([render(scene) for scene in self.scenes[first : first + BATCH]]))
        features = self.pipeline.tokenizer.encode(pixels.float().movedim(-1, 1) / 127.5 - 1.0)
        return self.pipeline.quantizer.encode(features.float(), self.schedule)[0]


def measured(source: Source, variations: list[float]) -> dict[str, Any]:
    """For every variation shares with their intervals, and how far pixels are from the picture's."""
    pipeline, rows = source.pipeline, {f"{variation:g}": [] for variation in variations}
    for first in range(0, len(source.captions), BATCH):
        codes = source.codes(first)
        stored = pipeline.decode(pipeline.quantizer.accumulate(codes, source.schedule)).numpy()
        for variation in variations:
            kept = kept_scales(source.schedule, variation)
            made = pipeline.decode(source.drawn(first, SEED + 1000 + first, codes[:kept]).f_hat).numpy()
            rows[f"{variation:g}"] += [compared(*pair) for pair in zip(stored, made, strict=True)]
    found = {}
    for name, each in rows.items():
        layout, colours, psnr = np.array(each, float).T
        shares = (("layout", interval(layout, share=True)), ("colours", interval(colours, share=True)))
        found[name] = {"kept_scales": kept_scales(source.schedule, float(name))}
        found[name] |= {key: share._asdict() for key, share in shares if share}
        found[name]["psnr"] = float(psnr.mean())
    return found


def compared(before: np.ndarray, after: np.ndarray) -> tuple[bool, bool, float]:
    """Layout, colours, and the peak signal-to-noise ratio of two pictures (H, W, 3) in dB."""
    one, other = read(before), read(after)
    error = np.square(before.astype(float) - after).mean()
    return same_layout(one, other), same_colours(one, other), 10 * np.log10(255**2 / max(error, 1e-9))


def main(arguments: list[str] | None = None) -> None:
    """Measure, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--variations", default="0.25,0.5,0.75,1", help="comma-separated")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "measurements" / "variations.json")
    asked = parser.parse_args(arguments)
    pipeline, found = Pipeline.embedded(dtype=torch.float32), {}
    values = {
        "command": shlex.join(["python", "scripts/variations.py", *(arguments or sys.argv[1:])]),
        "hardware": hardware(pipeline.device),
        "pictures": asked.pictures,
        "of": found,
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    for name, source in (("runs", Source), ("pictures", Pictures)):
        with torch.inference_mode():
            variations = [float(part) for part in asked.variations.split(",")]
            found[name] = measured(source(pipeline, asked.pictures), variations)
        for variation, each in found[name].items():
            shares = ", ".join(f"{key} {each[key]['mean']:.2f}" for key in ("layout", "colours"))
            print(f"{name}, {variation}: {shares}, {each['psnr']:.1f} dB", flush=True)
        asked.out.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
