"""Linear layers in 8 bits: how exact they are, on every backend, and what they keep in memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from stagevar_core import devices
from stagevar_core.network import eight_bit as eight
from stagevar_core.network.eight_bit import (
    EightBitFeedForward,
    EightBitLinear,
    eight_bit,
    plain_weight,
    rows_of,
)
from stagevar_core.network.layers import FeedForward
from stagevar_core.network.packing import pack
from stagevar_core.pipeline import Pipeline
from tests.support import tiny, tiny_star, tiny_var

vnni = devices.eight_bit_products(torch.device("cpu")) == "vnni"
KINDS = [
    pytest.param("vnni", marks=pytest.mark.skipif(not vnni, reason="this CPU has no 8-bit products")),
    "cuda",  # the CPU has the product of whole numbers that CUDA has
    None,
]
MODELS: dict[str, Callable[..., nn.Module]] = {
    "infinity": tiny.tiny_infinity,
    "var": tiny_var.tiny_var,
    "star": lambda **given: tiny_star.tiny_star(levels=5, sampler=1, **given),
}


@pytest.fixture(params=KINDS, ids=str)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """What multiplies, on every device."""
    monkeypatch.setattr(eight, "eight_bit_products", lambda device: request.param)
    return request.param


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """How many torch computes with meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def linear(inputs: int, outputs: int, bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias, dtype=dtype)
    tiny.randomize(layer, 0)
    return layer.requires_grad_(False)


def feed_forward(hidden: int) -> FeedForward:
    feed = FeedForward(64, hidden, 64)
    tiny.randomize(feed, 0)
    return feed.requires_grad_(False)


def narrowed(feed: FeedForward) -> EightBitFeedForward:
    return EightBitFeedForward(EightBitLinear(feed.fc1), EightBitLinear(feed.fc2))


def error(found: Tensor, exact: Tensor) -> float:
    return ((found.float() - exact).norm() / exact.norm()).item()


def test_rows_hold_the_weight_and_its_scales() -> None:
    weight = drawn(24, 40) * torch.linspace(0.01, 100, 24)[:, None]
    weight[3] = 0
    rows = rows_of(weight.bfloat16())
    assert rows.shape == (24, 40 + eight.TAIL) and rows.dtype == torch.int8
    codes, scale = eight.codes_of(rows)
    assert codes.abs().amax(1).tolist() == [127, 127, 127, 0] + [127] * 20
    off = (plain_weight(rows) - weight.bfloat16().float()).abs()
    assert (off <= scale[:, None] * 0.5001).all() and (off[3] == 0).all()
    assert torch.equal(rows_of(plain_weight(rows)), rows), "what was rounded once stays as it is"


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 40), (2, 7, 40), (3, 50, 40), (2, 0, 40), (40,)])
def test_a_layer_is_as_exact_as_8_bits(
    kind: str | None, shape: tuple[int, ...], dtype: torch.dtype, bias: bool
) -> None:
    layer, x = linear(40, 24, bias), drawn(*shape, seed=1).to(dtype)
    found = EightBitLinear(layer)(x)
    assert found.shape == (*shape[:-1], 24) and found.dtype == dtype
    if found.numel():
        assert error(found, layer(x.float())) < 0.02


def test_every_token_has_a_scale_of_its_own(kind: str | None) -> None:
    """Tokens of other sizes beside it, and other weights' rows, make none less exact."""
    layer, sizes = linear(64, 48), torch.logspace(-6, 6, 30)[:, None]
    layer.bias.zero_()
    layer.weight *= torch.logspace(-4, 4, 48)[:, None]
    x = drawn(30, 64, seed=1)
    found, exact = EightBitLinear(layer)(x * sizes), layer(x * sizes)
    off = (found - exact) / (x.norm(dim=1) * sizes[:, 0])[:, None] / layer.weight.norm(dim=1)
    assert off.abs().max() < 0.02


def test_a_token_has_the_same_bits_alone_and_among_others(kind: str | None, threads: int) -> None:
    """The sums are of whole numbers; products in bfloat16 or float32 round as the rows beside them are."""
    if kind is None:
        pytest.skip("these products are of float numbers")
    x = drawn(4, 150, 64, seed=1).bfloat16()
    for module in (EightBitLinear(linear(64, 96)), narrowed(feed_forward(256))):
        whole = module(x)
        assert torch.equal(whole[1:2], module(x[1:2])) and torch.equal(whole[:, 7], module(x[:, 7]))
        assert torch.equal(whole[2, 3], module(x[2, 3]))


def test_parts_change_nothing(kind: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = EightBitLinear(linear(64, 48)), drawn(2, 50, 64, seed=1)
    whole = layer(x)
    monkeypatch.setattr(eight, "PART", 64 * 7)
    assert torch.allclose(layer(x), whole, atol=1e-6)


def test_a_feed_forward_is_as_exact_as_its_layers_apart(kind: str | None) -> None:
    feed, x = feed_forward(256), drawn(2, 30, 64, seed=1) * 3
    exact, fused = feed(x), narrowed(feed)
    apart = fused.fc2(nn.functional.gelu(fused.fc1(x), approximate="tanh"))
    assert error(fused(x), exact) < min(0.02, 1.1 * error(apart, exact))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so_and_stays_in_its_token(kind: str | None, value: float) -> None:
    layers = (EightBitLinear(linear(64, 48)), narrowed(feed_forward(64)))
    x = drawn(20, 64, seed=1)
    bad = x.clone()
    bad[4, 5] = value
    for layer in layers:
        found, fine = layer(bad), layer(x)
        assert not found[4].isfinite().all()
        rest = torch.arange(20) != 4
        assert torch.allclose(found[rest], fine[rest], atol=1e-6)


def test_a_token_of_zeros_is_the_bias(kind: str | None) -> None:
    layer = linear(64, 48)
    assert torch.allclose(EightBitLinear(layer)(torch.zeros(3, 64)), layer.bias.expand(3, -1))


@pytest.mark.parametrize("family", MODELS)
def test_every_layer_of_the_blocks_but_modulation_is_changed(family: str) -> None:
    model = eight_bit(MODELS[family]())
    left = [name for name, part in model.blocks.named_modules() if isinstance(part, nn.Linear)]
    assert all(name.endswith("modulation") for name in left), left
    assert any(isinstance(part, EightBitLinear) for part in model.blocks.modules())
    assert isinstance(model.head, nn.Linear)


def test_a_module_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear has no blocks to compute in 8 bits; load it in bfloat16"):
        eight_bit(linear(8, 8))


@pytest.mark.skipif(not vnni, reason="this CPU has no order of its own")
def test_packed_rows_are_given_back_as_they_were() -> None:
    """Whoever changes weights reads rows and writes rows; between them there is one copy."""
    layer = EightBitLinear(linear(40, 24))
    rows, x = layer.weight.clone(), drawn(3, 40, seed=1)
    before, gone = layer(x), weakref.ref(layer.weight)
    gc.collect()
    assert gone() is None and layer._parameters["weight"].is_mkldnn
    assert torch.equal(layer.weight, rows) and torch.equal(layer(x), before)
    layer.weight = nn.Parameter(rows_of(2 * plain_weight(rows)), requires_grad=False)
    assert torch.allclose(layer(x) - layer.bias, 2 * (before - layer.bias), atol=1e-5)
    layer.weight = nn.Parameter(rows, requires_grad=False)
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize("packed", [False, True])
def test_weights_take_half_of_bfloat16(packed: bool) -> None:
    def held(module: nn.Module) -> int:
        return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))

    wide = nn.ModuleDict({"blocks": nn.ModuleList([linear(1024, 1024, dtype=torch.bfloat16)])})
    before, gone = held(wide), weakref.ref(wide["blocks"][0].weight)
    narrow = eight_bit(wide)
    narrow = pack(narrow) if packed else narrow
    gc.collect()
    assert gone() is None and 0.5 <= held(narrow) / before < 0.51
    assert not any(isinstance(value, Tensor) for value in vars(narrow["blocks"][0]).values())


@pytest.mark.parametrize("reason", ["CPU", "torch", "operation"])
def test_without_8_bit_products_it_computes_with_plain_numbers(
    reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason == "CPU":
        monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False, raising=False)
    elif reason == "torch":
        monkeypatch.delattr(torch.cpu, "_is_vnni_supported", raising=False)
    else:
        monkeypatch.setattr(devices, "_PRODUCTS", ("_no_such_operation",))
    assert devices.eight_bit_products(torch.device("cpu")) is None
    layer = EightBitLinear(linear(40, 24))
    layer(drawn(3, 40))
    assert not layer._parameters["weight"].is_mkldnn


def test_a_loaded_model_draws_nearly_the_same() -> None:
    """Bits of the first five scales and pictures of two captions; every run with it the same."""
    captions, seeds = ["a red circle above a blue square", "two green rings on a black background"], [3, 4]
    exact, narrow = (
        Pipeline.embedded(dtype=torch.float32, device="cpu", weights=weights) for weights in (None, "int8")
    )
    expected, found = exact(captions, seed=seeds), narrow(captions, seed=seeds)
    pairs = list(zip(expected.generation.codes[:5], found.generation.codes[:5], strict=True))
    same = sum((a == b).sum().item() for a, b in pairs)
    assert same >= 0.97 * sum(a.numel() for a, _ in pairs)
    off = (expected.images.double() - found.images.double()).square().mean().item()
    assert off <= 255**2 / 10**3.5, "35 dB"
    assert torch.equal(narrow(captions, seed=seeds).images, found.images)


def test_weights_that_are_not_known_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weights is 'int4'; expected .*int8"):
        Pipeline.embedded(device="cpu", weights="int4")
