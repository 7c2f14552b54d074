"""The memory that a run is said to need, against what its tensors take, counted one by one."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from stagevar_core.acceleration.policy import RunInfo
from stagevar_core.acceleration.presets import PRESETS
from stagevar_core.autoencoders.vq import VQTokenizer, VQTokenizerConfig
from stagevar_core.conditioning.types import ClassConditioning, TextConditioning
from stagevar_core.models.hart import HART
from stagevar_core.models.hart_config import HARTConfig
from stagevar_core.models.infinity import Infinity
from stagevar_core.models.infinity_config import INFINITY_2B, INFINITY_8B, InfinityConfig
from stagevar_core.models.star import STAR
from stagevar_core.models.star_config import STARConfig
from stagevar_core.models.switti import Switti
from stagevar_core.models.switti_config import SwittiConfig
from stagevar_core.models.var import VAR, VARConfig
from stagevar_core.network import tokens
from stagevar_core.network.attention import sdpa
from stagevar_core.network.cache import KVCache
from stagevar_core.sampling.forecast import forecast
from stagevar_core.sampling.generate import generate
from stagevar_core.sampling.memory import MemoryEstimate, estimate_memory
from stagevar_core.sampling.noise import SeededNoise
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.schedule import SIDES_256, ScaleSchedule, infinity_aspect_table
from tests.support.memory import Peak
from tests.support.tiny import randomize

pytestmark = pytest.mark.slow

TEXT_WIDTH, TOKENS, GIB = 64, 6, 2**30
KNOWN_BEFORE = ("off", "quality", "balanced", "fast", "paper", "paper-released", "fastvar")
WAYS = {
    "together": {},
    "in turn": {"sequential": True},
    "in turn, half elsewhere": {"sequential": True, "offload": "cpu"},
}


@functools.lru_cache(maxsize=1)
def family(name: str, dtype: torch.dtype) -> tuple[Any, ScaleSchedule, Any, Any]:
    """A model with the proportions of a released one, its schedule, conditioning, and quantizer."""
    text, null = torch.randn(2, TOKENS, TEXT_WIDTH, generator=torch.Generator().manual_seed(0)).unbind()
    schedule = ScaleSchedule.of([(side, side) for side in SIDES_256])
    shape = {"depth": 8, "width": 192, "heads": 12, "hidden": 768}
    codebook = {"vocab": 384, "dim": 8}
    if name in ("infinity", "infinity that edits"):
        schedule, edits = infinity_aspect_table().schedule(1.0, "0.06M"), name != "infinity"
        sizes = {"bits": 4, "text_width": TEXT_WIDTH, "null_rows": TOKENS, "pool_heads": 4, "edits": edits}
        model = Infinity(InfinityConfig(**shape, **sizes), dtype=dtype)
        conditioning = TextConditioning((text,), source=torch.ones(1, 4, 16, 16) if edits else None)
    elif name == "hart":
        sizes = {"context": 30, "text_width": TEXT_WIDTH, "diff_width": 128, "diff_depth": 6}
        model = HART(
            HARTConfig(**{**shape, "hidden": 512}, **codebook, sides=SIDES_256, **sizes), dtype=dtype
        )
        conditioning = TextConditioning((text.repeat(5, 1),), padding=(12,))
    elif name == "var":
        model = VAR(VARConfig(**shape, **codebook, sides=SIDES_256), dtype=dtype)
        conditioning = ClassConditioning((3,))
    elif name.startswith("switti"):
        shape |= {"hidden": 512, "text_width": TEXT_WIDTH, "pooled_width": 32}
        config = SwittiConfig(**shape, **codebook, levels=len(schedule), ar=name.endswith("AR"))
        model, conditioning = Switti(config, dtype=dtype), TextConditioning((text,), null=null)
    else:
        config = STARConfig(**shape, **codebook, levels=len(schedule), text_width=TEXT_WIDTH)
        model, conditioning = STAR(config, dtype=dtype), TextConditioning((text,), null=null)
    randomize(model, 0)
    quantizer = None
    if not name.startswith("infinity"):
        tokenizer = VQTokenizer(VQTokenizerConfig(384, 8, width=32, multipliers=(1,) * 5, blocks=1))
        randomize(tokenizer, 1)
        quantizer = tokenizer.eval().quantizer()
    return model.eval(), schedule, conditioning, quantizer


@contextlib.contextmanager
def as_on_a_gpu(peak: Peak) -> Iterator[None]:
    """Nothing in parts, and what waits elsewhere is not counted."""
    with pytest.MonkeyPatch.context() as patch:
        make = KVCache._empty

        def empty(self: KVCache, capacity: int, device: torch.device | None = None) -> Tensor:
            made = make(self, capacity, device)
            if device is None and self._elsewhere is not None:
                peak.forget(made)
            return made

        patch.setattr(tokens, "PART", 2**62)
        patch.setattr(KVCache, "_empty", empty)
        with peak:
            yield


def both(name: str, preset: str, how: dict, dtype: torch.dtype = torch.float32) -> tuple[MemoryEstimate, int]:
    """What is said and what is counted."""
    model, schedule, conditioning, quantizer = family(name, dtype)
    config, policy = model.config, PRESETS[preset]
    prefix = model.prefix(conditioning, schedule)
    info = RunInfo(schedule, config.depth, 1, True, False, (0,), prefix, corrects=model.corrects)
    ways = {"sequential": "sequential" in how, "offload": "offload" in how}
    expected = forecast(policy, info, config.unit_costs, conditioning.tokens, **ways)
    settings = SamplingSettings(cfg_scale=3.0, temperature=1.0, top_k=100)
    peak = Peak()
    with as_on_a_gpu(peak):
        generate(
            *(model, conditioning, schedule, settings),
            noise=SeededNoise(0, 1),
            quantizer=quantizer,
            policy=policy,
            attention=sdpa,
            **how,
        )
    return estimate_memory(config, expected, 2 * conditioning.tokens, dtype), peak.bytes


HALF, FULL = torch.bfloat16, torch.float32
CASES = [("infinity", HALF, preset, "together") for preset in KNOWN_BEFORE]
CASES += [("infinity", HALF, preset, how) for preset in ("off", "fastvar") for how in list(WAYS)[1:]]
CASES += [("infinity", FULL, preset, "together") for preset in ("off", "balanced", "fastvar")]
CASES += [("infinity that edits", HALF, preset, how) for preset in ("off", "balanced") for how in WAYS]
CASES += [
    (name, HALF, preset, "together")
    for name in ("var", "star", "hart", "switti", "switti AR")
    for preset in ("off", "balanced", "paper")
]
CASES += [(name, FULL, "off", "together") for name in ("switti", "switti AR")]


@pytest.mark.parametrize(("name", "dtype", "preset", "how"), CASES)
def test_estimate_is_the_peak_and_little_more(name: str, dtype: torch.dtype, preset: str, how: str) -> None:
    said, counted = both(name, preset, WAYS[how], dtype)
    assert counted <= said.total <= 1.3 * counted, (said, counted, said.total / counted)


@pytest.mark.parametrize("how", ["together", "in turn, half elsewhere"])
@pytest.mark.parametrize("preset", sorted(set(PRESETS) - set(KNOWN_BEFORE)))
def test_estimate_covers_plans_that_are_made_on_the_way(preset: str, how: str) -> None:
    said, counted = both("infinity", preset, WAYS[how], HALF)
    assert counted <= said.total


def test_what_runs_in_parts_on_a_cpu_needs_less() -> None:
    model, schedule, conditioning, _ = family("infinity", torch.float32)
    settings = SamplingSettings(cfg_scale=3.0, temperature=1.0)
    found = []
    for part in (2**62, 2**14):
        with pytest.MonkeyPatch.context() as patch, Peak() as peak:
            patch.setattr(tokens, "PART", part)
            generate(model, conditioning, schedule, settings, noise=SeededNoise(0, 1), attention=sdpa)
        found.append(peak.bytes)
    assert found[1] < 0.95 * found[0]


def test_peak_counts_what_lives_at_once() -> None:
    with Peak() as peak:
        a = torch.zeros(1000)
        b = a + 1
        del a
        c = b.view(10, 100) * 2
        del b
        c.add_(1)
    assert peak.bytes == 8000 and peak.now == 4000


def estimate(config: InfinityConfig, preset: str, **ways: bool) -> float:
    """GiB beside the weights, a prompt of 64 tokens at 1024 px."""
    schedule = infinity_aspect_table().schedule(1.0, "1M")
    info = RunInfo(schedule, config.depth, 1, True, False, (0,))
    expected = forecast(PRESETS[preset], info, config.unit_costs, 64, **ways)
    return estimate_memory(config, expected, 128, torch.bfloat16).total / GIB


def test_released_sizes_fit_where_they_should() -> None:
    """Beside the weights: the limits that the project sets itself, and what rows in turn save."""
    assert estimate(INFINITY_2B, "off") <= 6.5 and estimate(INFINITY_2B, "balanced") <= 2.5
    turns = {"sequential": True, "offload": True}
    for config in (INFINITY_2B, INFINITY_8B):
        assert estimate(config, "off", **turns) <= 0.6 * estimate(config, "off")
        assert estimate(config, "off", sequential=True) < estimate(config, "off")
    assert estimate(INFINITY_8B, "balanced") < estimate(INFINITY_8B, "off") / 2
