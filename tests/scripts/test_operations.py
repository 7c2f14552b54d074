"""Operations are counted without weights: what is computed, and no views."""

import torch
from benchmark.operations import Operations, counted

from stagevar_core.autoencoders.bsq import BSQTokenizerConfig
from stagevar_core.models.infinity import InfinityConfig

CODES = BSQTokenizerConfig(dim=4, width=32, multipliers=(1, 1, 1, 1, 1), blocks=1)


def of_depth(depth: int, policy: str = "off") -> int:
    shape = InfinityConfig(
        depth=depth, width=64, heads=2, hidden=128, bits=4, text_width=24, null_rows=16, pool_heads=2
    )
    return sum(counted("infinity", shape, CODES, 256, policy, 5).values())


def test_views_allocations_and_the_cpu_do_not_count() -> None:
    x, beside = torch.empty(2, 3, device="meta"), torch.ones(2)
    with torch.inference_mode(), Operations() as mode:
        y = x.transpose(0, 1)[1:].unsqueeze(0)
        torch.empty_like(y)
        beside + 1
        x.add_(1.0)
        torch.mul(x, 2.0)
    assert dict(mode.found) == {"add_": 1, "mul": 1}


def test_a_block_starts_few_operations_at_every_scale() -> None:
    """A norm, a projection, attention and what joins them; what does not change is computed once per run."""
    scales = 7  # of 256 px
    blocks = (of_depth(3) - of_depth(2)) / scales
    assert 24 <= blocks <= 29
    assert of_depth(3, "balanced") < of_depth(3)
