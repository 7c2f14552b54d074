"""What variations of a picture keep of it, on the embedded model.

    python scripts/variations.py                    100 pictures, into docs/measurements/variations.json
    python scripts/variations.py --pictures 20      a quick look

Scenes with freely placed objects; the caption names them, but not where they are. The scorer reads objects
back from the pixels. The layout is kept where as many objects have the same shapes within half a token of
their places. The baseline is the picture as the tokenizer stores it.
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

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from stagevar_core.acceleration.stages import kept_scales  # noqa: E402
from stagevar_core.devices import hardware  # noqa: E402
from stagevar_core.evaluation.intervals import interval  # noqa: E402
from stagevar_core.pipeline import Pipeline  # noqa: E402
from stagevar_core.sampling.generate import generate  # noqa: E402
from stagevar_core.sampling.noise import SeededNoise  # noqa: E402
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


def varied(pipeline: Pipeline, pairs: list[Any], variation: float, first: int) -> tuple[np.ndarray, ...]:
    """Pictures (B, H, W, 3) as the tokenizer stores them, and their variations."""
    schedule, quantizer = pipeline.schedule(), pipeline.quantizer
    pixels = torch.from_numpy(np.stack([render(pair.edit.source) for pair in pairs]))
    features = pipeline.tokenizer.encode(pixels.float().movedim(-1, 1) / 127.5 - 1.0).float()
    codes, stored = quantizer.encode(features, schedule)
    drawn = generate(
        pipeline.transformer,
        pipeline.encode([pair.caption for pair in pairs]),
        schedule,
        pipeline.settings(),
        noise=SeededNoise(SEED + first, len(pairs)),
        quantizer=quantizer,
        known=codes[: kept_scales(schedule, variation)],
    )
    return pipeline.decode(stored).numpy(), pipeline.decode(drawn.f_hat).numpy()


def measured(pipeline: Pipeline, pairs: list[Any], variation: float) -> dict[str, Any]:
    """Shares with their intervals, and how far pixels are from the picture's."""
    layouts, colours, psnr = [], [], []
    for first in range(0, len(pairs), BATCH):
        for before, after in zip(
            *varied(pipeline, pairs[first : first + BATCH], variation, first), strict=True
        ):
            one, other = read(before), read(after)
            layouts.append(same_layout(one, other))
            colours.append(same_colours(one, other))
            error = np.square(before.astype(float) - after).mean()
            psnr.append(10 * np.log10(255**2 / max(error, 1e-9)))
    shares = {
        name: interval(np.array(each, float), share=True)
        for name, each in (("layout", layouts), ("colours", colours))
    }
    return {
        "kept_scales": kept_scales(pipeline.schedule(), variation),
        **{name: share._asdict() for name, share in shares.items() if share},
        "psnr": float(np.mean(psnr)),
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--variations", default="0.25,0.5,0.6,0.75,1", help="comma-separated")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "measurements" / "variations.json")
    asked = parser.parse_args(arguments)
    rng = np.random.default_rng(SEED)
    pairs = [sample_rewording(rng, WORDS[index % len(WORDS)]) for index in range(asked.pictures)]
    pipeline, found = Pipeline.embedded(dtype=torch.float32), {}
    values = {
        "command": shlex.join(["python", "scripts/variations.py", *(arguments or sys.argv[1:])]),
        "hardware": hardware(pipeline.device),
        "pictures": asked.pictures,
        "variations": found,
    }
    with torch.inference_mode():
        for variation in map(float, asked.variations.split(",")):
            found[f"{variation:g}"] = each = measured(pipeline, pairs, variation)
            print(
                variation,
                {key: value["mean"] if isinstance(value, dict) else value for key, value in each.items()},
                flush=True,
            )
            asked.out.parent.mkdir(parents=True, exist_ok=True)
            asked.out.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
