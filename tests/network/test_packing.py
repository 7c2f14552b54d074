"""Weights in the order that a CPU's products read."""

import gc
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from stagevar_core.network import packing
from stagevar_core.network.layers import FeedForward
from stagevar_core.network.packing import PackedFeedForward, PackedLinear, pack
from stagevar_core.pipeline import Pipeline
from stagevar_core.sampling.generate import generate
from stagevar_core.sampling.settings import SamplingSettings
from tests.support import tiny, tiny_star, tiny_var

packs = pytest.mark.skipif(
    not packing.available(), reason="this CPU or this torch multiplies no packed bfloat16 weights"
)
MODELS: dict[str, tuple[Callable, Callable]] = {
    "infinity": (tiny.tiny_infinity, lambda: tiny.prompts(5)),
    "var": (tiny_var.tiny_var, lambda: tiny_var.labels(1)),
    "star": (lambda **given: tiny_star.tiny_star(levels=5, sampler=1, **given), lambda: tiny_star.encoded(1)),
}


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias, dtype=torch.bfloat16)
    tiny.randomize(layer, 0)
    return layer.requires_grad_(False)


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """How many torch computes with meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@packs
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 40), (2, 7, 40), (3, 50, 40), (2, 0, 40)])
def test_a_packed_layer_gives_the_same_bits(threads: int, shape: tuple[int, ...], bias: bool) -> None:
    layer, x = linear(40, 24, bias), drawn(*shape, seed=1)
    assert torch.equal(PackedLinear(layer)(x), layer(x))
    part = drawn(shape[0], *[2 * size for size in shape[1:-1]], 40)[..., : shape[-1]]
    assert torch.equal(PackedLinear(layer)(part), layer(part))


@packs
def test_a_packed_feed_forward_is_as_exact_as_the_plain_one() -> None:
    plain = FeedForward(64, 256, 64, dtype=torch.bfloat16)
    tiny.randomize(plain, 0)
    x = drawn(2, 30, 64, seed=1)
    wide = FeedForward(64, 256, 64)
    wide.load_state_dict(plain.state_dict())
    exact = wide(x.float())

    def error(y: torch.Tensor) -> float:
        return ((y.float() - exact).norm() / exact.norm()).item()

    assert error(PackedFeedForward(plain.fc1, plain.fc2)(x)) <= 1.02 * error(plain(x))


@packs
@pytest.mark.parametrize("family", MODELS)
def test_every_layer_of_the_blocks_is_packed_and_draws_the_same(family: str) -> None:
    build, condition = MODELS[family]
    seen = []
    for prepare in (lambda model: model, pack):
        model = prepare(build(dtype=torch.bfloat16))
        logits = tiny.Logits()
        quantizer = None if family == "infinity" else tiny_var.tiny_vq().quantizer()
        settings = SamplingSettings(cfg_scale=2.0, greedy=True, refine="off")
        generate(
            model, condition(), tiny_var.SQUARES, settings, noise=None, quantizer=quantizer, monitor=logits
        )
        seen.append(logits.raw)
    left = [name for name, part in model.blocks.named_modules() if type(part) is nn.Linear]
    assert not left and any(isinstance(part, PackedLinear) for part in model.blocks.modules())
    assert all(part.dtype == torch.float32 for part in model.parameters() if part.dim() > 1)
    first, packed = seen[0][0], seen[1][0]
    assert (first - packed).norm() <= 5e-3 * first.norm()


@packs
def test_the_first_weights_are_given_back() -> None:
    module = nn.Sequential(nn.ModuleDict({"deep": linear(40, 24)}))
    gone = weakref.ref(module[0]["deep"].weight)
    pack(module)
    gc.collect()
    assert isinstance(module[0]["deep"], PackedLinear) and gone() is None


class Narrow(nn.Linear):
    """Stores its weight in some way of its own."""


@packs
def test_other_layers_stay_as_they_are() -> None:
    kept = nn.ModuleDict(
        {
            "wide": nn.Linear(8, 8),
            "own": Narrow(8, 8, dtype=torch.bfloat16),
            "wide feed-forward": FeedForward(8, 8, 8),
            "meta": nn.Linear(8, 8, dtype=torch.bfloat16, device="meta"),
        }
    )
    before = dict(kept.named_modules())
    assert pack(kept) is kept and dict(kept.named_modules()) == before


@pytest.mark.parametrize("missing", ["CPU", "operation"])
def test_nothing_is_packed_where_it_cannot_be_multiplied(missing: str, monkeypatch) -> None:
    if missing == "CPU":
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    else:
        monkeypatch.setattr(packing, "_OPERATIONS", ("_no_such_operation",))
    module = nn.Sequential(linear(8, 8))
    assert not packing.available() and type(pack(module)[0]) is nn.Linear


@packs
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_loaded_pipeline_is_packed_in_bfloat16_alone(dtype: torch.dtype) -> None:
    pipeline = Pipeline.embedded(dtype=dtype, device="cpu")
    assert any(isinstance(part, PackedLinear) for part in pipeline.transformer.modules()) == (
        dtype == torch.bfloat16
    )
    assert pipeline("a red circle", width=64, height=64).images.shape == (1, 128, 128, 3)
