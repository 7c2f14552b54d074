"""Counted work against the published table, and against PyTorch's own counter, dense and accelerated."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stagevar_core.acceleration.changes import changed
from stagevar_core.acceleration.presets import PRESETS
from stagevar_core.acceleration.settings import StageSettings
from stagevar_core.acceleration.staged import StagedPolicy
from stagevar_core.autoencoders.bsq import BSQTokenizer, BSQTokenizerConfig
from stagevar_core.autoencoders.costs import decode_flops
from stagevar_core.conditioning.types import TextConditioning
from stagevar_core.costs import Flops, kv_bytes, scale_flops, schedule_flops
from stagevar_core.models.infinity import Infinity
from stagevar_core.models.infinity_config import INFINITY_2B, INFINITY_8B, InfinityConfig
from stagevar_core.sampling.generate import generate
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.schedule import ScaleSchedule, infinity_aspect_table
from tests.support.tiny import plain_attention

MEGAPIXEL = infinity_aspect_table().schedule(1.0, "1M")


@pytest.mark.parametrize(
    ("config", "linear", "attention"), [(INFINITY_2B, 79.08, 35.91), (INFINITY_8B, 302.72, 78.54)]
)
def test_published_totals(config, linear, attention):
    costs = sum(schedule_flops(config.unit_costs, MEGAPIXEL), Flops())
    assert costs.linear / 1e12 == pytest.approx(linear, abs=0.01)
    assert costs.attention / 1e12 == pytest.approx(attention, abs=0.01)


def test_published_sum_with_64_text_tokens():
    for config, teraflops in ((INFINITY_2B, 115.3), (INFINITY_8B, 382.0)):
        assert sum(schedule_flops(config.unit_costs, MEGAPIXEL), Flops()).total / 1e12 == pytest.approx(
            teraflops, abs=0.1
        )


def test_published_rows_of_the_table():
    costs = schedule_flops(INFINITY_2B.unit_costs, MEGAPIXEL)
    assert [round(cost.linear / 1e12, 3) for cost in costs[-3:]] == [12.026, 17.317, 30.786]
    assert [round(cost.attention / 1e12, 3) for cost in costs[-3:]] == [3.457, 7.761, 22.594]


def test_published_cache_and_decoder():
    assert kv_bytes(INFINITY_2B, MEGAPIXEL.tokens) / 1e9 == pytest.approx(5.5, abs=0.05)
    assert kv_bytes(INFINITY_8B, MEGAPIXEL.tokens) / 1e9 == pytest.approx(12.1, abs=0.05)
    assert decode_flops(BSQTokenizerConfig(dim=32), (64, 64)) / 1e12 == pytest.approx(9.8, abs=0.2)
    assert decode_flops(BSQTokenizerConfig(14, multipliers=(1, 2, 4, 4)), (128, 128)) / 1e12 == pytest.approx(
        9.8, abs=0.2
    )


def test_one_row_costs_half():
    both, one = (scale_flops(INFINITY_2B.unit_costs, 64, 128, rows=rows).total for rows in (2, 1))
    assert both == 2 * one


CONFIG = InfinityConfig(2, 32, 2, 96, bits=8, text_width=16, null_rows=8, pool_heads=4)


def counted_by_pytorch(schedule, policy=None):
    """The trace of a run, and what PyTorch counts of it beside the text and the word embedding."""
    model, generator = Infinity(CONFIG), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.05, generator=generator)
    text = TextConditioning((torch.randn(5, 16, generator=generator),))
    settings = SamplingSettings(greedy=True)
    with FlopCounterMode(display=False) as counter:
        result = generate(
            model, text, schedule, settings, noise=None, attention=plain_attention, policy=policy
        )
    embedded = sum(s.scale.tokens for s in result.trace.scales[1:] if s.ran)
    once = CONFIG.condition_flops(2, 5)
    once += 2 * 4 * 5 * CONFIG.width  # pooling: one query per head over five text tokens, two rows
    return result.trace, counter.get_total_flops() - once - 2 * embedded * CONFIG.bits * CONFIG.width


def test_transformer_equals_the_counter_of_pytorch():
    schedule = ScaleSchedule.of([(1, 1), (2, 2), (3, 4)])
    trace, found = counted_by_pytorch(schedule)
    assert found == trace.flops == trace.dense_flops
    assert found == sum(schedule_flops(CONFIG.unit_costs, schedule, text_tokens=5), Flops()).total


@pytest.mark.parametrize(
    "settings",
    [
        {"guidance": "both", "attention": "local"},
        {"guidance": "conditional", "attention": "local", "kv": "none"},
        {"guidance": "reuse", "tokens": "gather", "keep": 0.3, "spans": 2},
        {"guidance": "unconditional", "tokens": "projection", "keep": 0.3, "restoration": "state"},
        {"guidance": "conditional", "tokens": "gather", "keep": 0.3, "kv": "none", "skip": 1},
    ],
    ids=lambda settings: "-".join(str(value) for value in settings.values()),
)
def test_accelerated_runs_equal_the_counter_of_pytorch(settings):
    schedule = ScaleSchedule.of([(1, 1), (3, 3), (8, 8), (10, 12), (16, 16)])
    trace, found = counted_by_pytorch(schedule, StagedPolicy("test", changed(StageSettings(), **settings)))
    assert found == trace.flops < trace.dense_flops


def test_fastvar_equals_the_counter_of_pytorch():
    schedule = ScaleSchedule.of([(1, 1), (3, 3), (6, 6), (8, 8), (10, 10), (12, 12)])
    trace, found = counted_by_pytorch(schedule, PRESETS["fastvar"])
    assert found == trace.flops < trace.dense_flops


def test_decoder_equals_the_counter_of_pytorch():
    config = BSQTokenizerConfig(4, width=32, multipliers=(1, 2), blocks=1)
    tokenizer = BSQTokenizer(config)
    with FlopCounterMode(display=False) as counter:  # with gradients every layer runs as it is defined
        tokenizer.decode(torch.zeros(2, 4, 3, 5))
    assert counter.get_total_flops() == decode_flops(config, (3, 5), batch=2)
