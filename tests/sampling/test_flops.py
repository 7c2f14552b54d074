"""Counted transformer FLOPs and KV bytes of the presets on the full-size 1024 px schedules.

The runs are real ones of ``generate``: real depth, schedule, rows, tokens and cache. Only the width is not,
since what is counted (tokens per branch, pairs of queries and keys, keys stored) does not depend on it; the
counts are priced with the unit costs of the full-size model. ``test_stand_in_counts_like_the_full_width``
holds that against the full width on the meta device.
"""

from dataclasses import asdict, dataclass, replace

import pytest
import torch

from stagevar_core.acceleration.policy import AccelerationPolicy
from stagevar_core.acceleration.presets import PRESETS, preset
from stagevar_core.conditioning.types import TextConditioning
from stagevar_core.costs import UnitCosts, kv_bytes
from stagevar_core.models.infinity import Infinity
from stagevar_core.models.infinity_config import INFINITY_2B, INFINITY_8B, InfinityConfig
from stagevar_core.sampling.generate import generate
from stagevar_core.sampling.noise import SeededNoise
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.sampling.trace import Trace
from stagevar_core.schedule import infinity_aspect_table
from tests.support.tiny import randomize

MEGAPIXEL = infinity_aspect_table().schedule(1.0, "1M")
MODELS = {"2b": INFINITY_2B, "8b": INFINITY_8B}
WIDTH, TEXT_TOKENS = 8, 64
# Dense FLOPs over those of the preset, for a guided image at 1024 px with 64 text tokens.
RATIOS = {
    "quality": (1.69, 1.66),
    "balanced": (3.75, 3.45),
    "fast": (4.61, 4.19),
    "turbo": (5.15, 4.67),
    "paper": (4.61, 4.19),
    "paper-released": (5.15, 4.67),
    "fastvar": (4.24, 3.63),
}
PUBLISHED = [
    (name, model, expected)
    for name, row in RATIOS.items()
    for model, expected in zip(MODELS, row, strict=True)
    if expected is not None
]
TOLERANCE = 0.03


@dataclass(frozen=True)
class Narrow(InfinityConfig):
    """A narrow transformer at the prices of a wide one."""

    priced: InfinityConfig | None = None

    @property
    def unit_costs(self) -> UnitCosts:
        return self.priced.unit_costs


def narrow(real: InfinityConfig) -> Infinity:
    """The stand-in of ``real``; the bits per latent pixel are fewer as well."""
    few = {"width": WIDTH, "heads": 1, "hidden": WIDTH, "bits": real.patch**2, "text_width": WIDTH}
    model = Infinity(Narrow(**asdict(real) | few | {"pool_heads": 1, "priced": real}), dtype=torch.bfloat16)
    randomize(model, 0)
    return model


def free_attention(q, k, v, *, scale=None, mask=None):
    """Costs nothing here; what it would cost is counted where it is called."""
    return q


def trace_of(model: Infinity, policy, schedule=MEGAPIXEL) -> Trace:
    """The trace of one guided image."""
    device = next(model.parameters()).device
    text = TextConditioning((torch.zeros(TEXT_TOKENS, model.config.text_width, device=device),))
    noise = SeededNoise(0, 1)
    return generate(
        model,
        text,
        schedule,
        SamplingSettings(),
        noise=noise,
        policy=policy,
        attention=free_attention,
        device=device,
    ).trace


def ratio(model: str, policy: AccelerationPolicy) -> float:
    """Dense over counted FLOPs; mixing tokens is the one count that knows the width."""
    real = MODELS[model]
    trace = trace_of(narrow(real), policy)
    mixing = sum(scale.flops.reduction for scale in trace.scales) * (real.width / WIDTH - 1.0)
    return trace.dense_flops / (trace.flops + mixing)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "model", "expected"), PUBLISHED)
def test_preset_saves_what_is_published(name, model, expected):
    assert ratio(model, PRESETS[name]) == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("model", MODELS)
def test_off_saves_nothing(model):
    assert ratio(model, PRESETS["off"]) == 1.0


@pytest.mark.parametrize(("model", "least"), [("2b", 2.13), ("8b", 1.92)])
def test_local_attention_saves_more(model, least):
    assert ratio(model, preset("quality", attention="local")) >= least


def test_local_attention_sees_a_sixth_of_the_keys():
    trace = trace_of(narrow(INFINITY_2B), preset("quality", attention="local"))
    for before, scale in enumerate(trace.scales):
        keys = sum(earlier.scale.tokens for earlier in trace.scales[: before + 1])
        share = scale.visible / keys
        assert 0.14 < share < 0.17 if scale.stage == "fidelity" else share == 1.0


def wide_bytes(trace: Trace) -> list[float]:
    """KV bytes after every scale, at the width of the 2B."""
    return [scale.kv_bytes * INFINITY_2B.width / WIDTH for scale in trace.scales]


def one_layer(tokens: float, rows: int) -> int:
    """Bytes of the memory that the layers share at a scale that is not stored, at the width of the 2B."""
    return kv_bytes(replace(INFINITY_2B, depth=1), round(tokens), rows=rows)


def test_off_reserves_once_what_later_scales_look_at():
    *found, last = wide_bytes(trace_of(narrow(INFINITY_2B), PRESETS["off"]))
    stored = kv_bytes(INFINITY_2B, MEGAPIXEL.tokens - MEGAPIXEL.final.tokens)
    assert set(found) == {stored} and stored == pytest.approx(3.4e9, rel=0.01)
    assert last == stored + one_layer(MEGAPIXEL.tokens, rows=2)


def test_cache_of_the_default_preset_stays_small():
    trace = trace_of(narrow(INFINITY_2B), PRESETS["balanced"])
    found = wide_bytes(trace)
    assert max(found) <= 0.8e9
    # Where the rows are dropped their half is gone, and there is room for what comes and for nothing else.
    both = [scale for scale in trace.scales if scale.rows == 2]
    stored = sum(scale.computed for scale in trace.scales[:-1])
    seen = stored + trace.scales[-1].computed
    assert set(found[: len(both)]) == {kv_bytes(INFINITY_2B, sum(s.scale.tokens for s in both), rows=2)}
    assert set(found[len(both) : -1]) == {kv_bytes(INFINITY_2B, round(stored), rows=1)}
    assert found[-1] == kv_bytes(INFINITY_2B, round(stored), rows=1) + one_layer(seen, rows=1)
    assert trace.scales[-1].kv_length == stored


@pytest.mark.parametrize("name", ["off", "balanced", "paper"])
def test_stand_in_counts_like_the_full_width(name):
    real, schedule = replace(INFINITY_2B, depth=2), infinity_aspect_table().schedule(1.0, "0.25M")
    wide = trace_of(Infinity(real, dtype=torch.bfloat16, device="meta"), PRESETS[name], schedule)
    stand_in = trace_of(narrow(real), PRESETS[name], schedule)
    for expected, found in zip(wide.scales, stand_in.scales, strict=True):
        mixing = found.flops.reduction * (real.width / WIDTH - 1.0)
        assert found.flops.total + mixing == pytest.approx(expected.flops.total, rel=1e-9)
        assert found.dense.total == pytest.approx(expected.dense.total, rel=1e-9)
        assert found.kv_bytes * real.width / WIDTH == expected.kv_bytes
