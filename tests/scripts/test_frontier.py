"""The plot of what was tried, and the policies that were tried for it alone."""

import json
from pathlib import Path

import frontier
import pytest
from cheaper import MASSES, ByDisagreement, ByMass, Entropies

from stagevar_core.acceleration.presets import FAST
from stagevar_core.sampling.noise import SeededNoise
from stagevar_core.sampling.settings import SamplingSettings
from tests.support.tiny import SQUARE, prompts, run, tiny_infinity


def stored(folder: Path, name: str, **variants: dict) -> None:
    rows = {key.replace("_", " "): value for key, value in variants.items()}
    (folder / name).write_text(json.dumps({"variants": rows}), encoding="utf-8")


def variant(ratio: float, psnr: float, texture: float) -> dict:
    return {"flop_ratio": ratio, "psnr": {"mean": psnr}, "texture": {"all": {"mean": texture}}}


def test_it_reads_every_variant_once(tmp_path: Path) -> None:
    stored(tmp_path, "a.json", off=variant(1, 0, 1), fast=variant(4, 28, 0.8), fastvar=variant(1.3, 30, 0.9))
    stored(
        tmp_path, "b.json", fast=variant(9, 9, 9), without_the_last_1=variant(2, 27, 0.3), x=variant(3, 1, 1)
    )
    rows = {row.name: row for row in frontier.read(("a.json", "b.json", "c.json"), tmp_path)}
    kinds = {"fast": "ours", "fastvar": "published", "without the last 1": "scales left out", "x": "tried"}
    assert {name: row.kind for name, row in rows.items()} == kinds
    assert rows["fast"].ratio == 4 and rows["fast"].values == {"psnr": 28, "texture": 0.8}


def test_it_draws_what_is_measured() -> None:
    image = frontier.picture().finish()
    assert image.size == (frontier.WIDTH, frontier.HEIGHT)
    colours = {colour for _, colour in image.getcolors(1 << 20)}
    assert set(frontier.KINDS.values()) <= colours
    assert frontier.place(1.0) == 0.0 and frontier.place(99.0) == 1.0


def test_a_budget_goes_by_what_a_picture_has() -> None:
    model = tiny_infinity()
    seen = Entropies("entropies", FAST.settings)
    noise = SeededNoise(0, 1)
    run(model, prompts(5), SQUARE, policy=seen, noise=noise)
    assert len(seen.shares) == len(MASSES) and seen.shares == sorted(seen.shares)
    tokens = [
        run(model, prompts(5), SQUARE, policy=ByMass("mass", FAST.settings, mass), noise=noise).trace.flops
        for mass in (0.2, 0.9)
    ]
    assert tokens[0] < tokens[1]


@pytest.mark.parametrize("cfg", [3.0, 1.0])
def test_disagreement_needs_both_rows(cfg: float) -> None:
    settings = SamplingSettings(cfg_scale=cfg, temperature=1.0)
    found = [
        run(tiny_infinity(), prompts(5, 9), policy=policy, noise=SeededNoise(0, 2), settings=settings)
        for policy in (ByDisagreement("rows", FAST.settings), FAST)
    ]
    assert found[0].trace.flops == found[1].trace.flops
