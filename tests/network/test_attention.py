"""The attention functions, and what a CPU computes in parts."""

import pytest
import torch

from stagevar_core.network import attention, rotary, tokens
from stagevar_core.network.attention import attend, blocked, sdpa
from stagevar_core.network.tokens import in_parts


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def exact(q, k, v, scale: float, mask=None) -> torch.Tensor:
    scores = q.double() @ k.double().mT * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ v.double()


def error(y: torch.Tensor, expected: torch.Tensor) -> float:
    return ((y.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("scale", [None, 1.0, 0.3])
@pytest.mark.parametrize("scores", [64, 700, 10**6])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (7, 33), (50, 130), (200, 65)])
def test_blocks_give_what_one_product_gives(queries, keys, scores, scale, monkeypatch) -> None:
    monkeypatch.setattr(attention, "SCORES", scores)
    q, k, v = drawn(2, 3, queries, 16), drawn(2, 3, keys, 16, seed=1), drawn(2, 3, keys, 16, seed=2)
    expected = exact(q, k, v, 0.25 if scale is None else scale)
    assert error(blocked(q, k, v, scale=scale), expected) < 1e-5
    narrow = blocked(q.bfloat16(), k.bfloat16(), v.bfloat16(), scale=scale)
    assert narrow.dtype == torch.bfloat16
    expected = exact(q.bfloat16(), k.bfloat16(), v.bfloat16(), 0.25 if scale is None else scale)
    assert error(narrow, expected) < 6e-3


@pytest.mark.parametrize("longest", [1.0, 20.0, 100.0])
def test_large_scores_lose_no_more_than_in_the_kernel(longest: float) -> None:
    """Unit keys and queries of the largest length that a head can learn, close to some of the keys."""
    k = torch.nn.functional.normalize(drawn(1, 2, 900, 64), dim=-1)
    near = drawn(1, 2, 300, 64, seed=1) * 0.05 + k[:, :, :300]
    q = torch.nn.functional.normalize(near, dim=-1) * longest
    q, k, v = (x.bfloat16() for x in (q, k, drawn(1, 2, 900, 64, seed=2)))
    expected = exact(q, k, v, 1.0)
    assert (
        error(blocked(q, k, v, scale=1.0), expected) < 1.5 * error(sdpa(q, k, v, scale=1.0), expected) + 1e-3
    )


def test_masked_keys_are_not_seen() -> None:
    q, k, v = drawn(2, 2, 40, 16), drawn(2, 2, 12, 16, seed=1), drawn(2, 2, 12, 16, seed=2)
    mask = torch.ones(2, 1, 1, 12, dtype=torch.bool)
    mask[1, ..., 5:] = False
    expected = exact(q, k, v, 1.0, mask)
    assert error(blocked(q, k, v, scale=1.0, mask=mask), expected) < 1e-5
    changed = torch.where(mask.mT, v, v + 100.0)
    assert torch.equal(blocked(q, k, changed, scale=1.0, mask=mask), blocked(q, k, v, scale=1.0, mask=mask))


def test_a_slice_of_a_cache_is_read_in_place() -> None:
    keys, values = drawn(2, 3, 50, 16).bfloat16(), drawn(2, 3, 50, 16, seed=1).bfloat16()
    q = drawn(2, 20, 3, 16, seed=2).bfloat16().transpose(1, 2)
    part = keys[:, :, :31], values[:, :, :31]
    y = blocked(q, *part, scale=1.0)
    assert torch.equal(y, blocked(q.contiguous(), *(x.contiguous() for x in part), scale=1.0))
    assert y.transpose(1, 2).is_contiguous()  # its heads merge without a copy


@pytest.mark.parametrize("capability", ["AVX512", "DEFAULT"])
def test_many_scores_in_bfloat16_on_a_cpu_take_blocks_where_products_are_fast(
    capability, monkeypatch
) -> None:
    calls = []

    def counted(*args, **options):
        calls.append(args[0].dtype)
        return blocked(*args, **options)

    monkeypatch.setattr(attention, "blocked", counted)
    monkeypatch.setattr(attention, "FEW", 70)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    q, k, v = drawn(1, 2, 8, 16), drawn(1, 2, 9, 16, seed=1), drawn(1, 2, 9, 16, seed=2)
    assert torch.equal(attend(q, k, v, scale=1.0), sdpa(q, k, v, scale=1.0)) and not calls
    narrow = [x.bfloat16() for x in (q, k, v)]
    for queries, blocks in ((7, False), (8, True)):
        calls.clear()
        y = attend(narrow[0][:, :, :queries], *narrow[1:], scale=1.0)
        assert error(y, exact(q[:, :, :queries], k, v, 1.0)) < 2e-2
        fast = capability == "AVX512" and torch.backends.mkldnn.is_available()
        assert calls == ([torch.bfloat16] if fast and blocks else [])


def test_parts_give_the_whole(monkeypatch) -> None:
    x, angles = drawn(2, 13, 8), drawn(2, 13, 4, seed=1)

    def compute(part, at):
        return part * 2.0, part.unflatten(-1, (2, 4)) * at[0].unsqueeze(-2)

    whole = compute(x, angles)
    lengths = []
    monkeypatch.setattr(tokens, "PART", 2 * 8 * 5)
    with torch.inference_mode():
        parts = in_parts(lambda p, at: lengths.append(p.shape[1]) or compute(p, at), x, angles)
        single = in_parts(lambda p, at: p[:1] + 1.0, x)
    assert lengths == [5, 5, 3]
    assert all(torch.equal(a, b) for a, b in zip(parts, whole, strict=True))
    assert torch.equal(single, x[:1] + 1.0)


def test_training_computes_the_whole_at_once(monkeypatch) -> None:
    monkeypatch.setattr(tokens, "PART", 1)
    x = drawn(1, 6, 4).requires_grad_()
    in_parts(lambda p, at: p * 3.0, x).sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 3.0))


@pytest.mark.parametrize("rows", [(), (2,)])
def test_angles_of_single_rows_are_divided_like_shared_ones(rows, monkeypatch) -> None:
    monkeypatch.setattr(tokens, "PART", 2 * 3 * 8 * 4)
    x, angles = drawn(2, 10, 3, 8), drawn(2, *rows, 10, 4, seed=1)
    with torch.inference_mode():
        parts = in_parts(lambda p, at: rotary.rotate(p.unflatten(-1, (3, 8)), at), x.flatten(2), angles)
    assert torch.equal(parts, rotary.rotate(x, angles))
