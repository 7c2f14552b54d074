"""Compiled blocks and decoders: the same pictures for every family and policy, few graphs, and a way back.

The name puts it behind the memory tests: once torch has compiled something, a run under a dispatch mode, with
which they count storages, holds a tensor more.
"""

from __future__ import annotations

import copy
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from benchmark import compiling as bench_compile

from stagevar_core.acceleration.presets import PRESETS, preset
from stagevar_core.autoencoders import bands
from stagevar_core.models.compiling import CompiledTokenizer, CompiledTransformer, Compiler
from stagevar_core.pipeline import Pipeline
from stagevar_core.sampling.generate import generate
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.schedule import ScaleSchedule
from tests.support.capability import FAMILIES
from tests.support.tiny import (
    SQUARE,
    TALL,
    InterruptAt,
    Interrupted,
    Logits,
    live_tensors,
    prompts,
    run,
    same_codes,
    tiny_infinity,
    tiny_tokenizer,
)
from tests.support.tiny_var import tiny_vq

pytestmark = pytest.mark.slow

PIECES = 3  # before attention, after it, the feed-forward
HAS_COMPILER = any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++", "cl") if name)


class Counting:
    """A backend that compiles nothing; ``broken``: what the graph with this number raises."""

    def __init__(self, broken: dict[int, Exception] | None = None) -> None:
        self.graphs, self.broken = 0, broken or {}

    def __call__(self, graph: Any, inputs: list) -> Callable:
        self.graphs += 1
        if self.graphs - 1 in self.broken:
            raise self.broken[self.graphs - 1]
        return graph.forward


@pytest.fixture(autouse=True)
def no_graphs() -> Iterator[None]:
    """What other tests compiled is forgotten."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def close(first: Any, second: Any) -> bool:
    """Whether two generations have the same codes and, up to rounding, the same latent."""
    return same_codes(first, second) and torch.allclose(first.f_hat, second.f_hat, atol=1e-4)


@pytest.mark.parametrize(
    "family", [family for family in FAMILIES if " " not in family.name], ids=lambda f: f.name
)
def test_every_family_makes_the_same_picture_under_every_policy(family) -> None:
    schedule = ScaleSchedule.of(family.grids[0])
    network, quantizer = family.build(schedule), family.quantizer(schedule)
    backend = Counting()
    compiled = CompiledTransformer(network, Compiler(backend))
    settings = SamplingSettings(cfg_scale=3.0, temperature=1.0, greedy=True)
    policies = {name: PRESETS[name] for name in ("balanced", "paper", "fastvar", "skipvar")}
    for name, policy in {**policies, "local": preset("quality", attention="local")}.items():
        expected, found = (
            generate(
                model,
                family.condition(2),
                schedule,
                settings,
                noise=None,
                quantizer=quantizer,
                policy=policy,
            )
            for model in (network, compiled)
        )
        assert close(found, expected), name
        assert found.trace.flops == expected.trace.flops, name
    assert not compiled.compiler.failed and PIECES <= backend.graphs <= 3 * PIECES


def test_lengths_and_runs_share_three_graphs() -> None:
    backend, network = Counting(), tiny_infinity()
    for schedule in (SQUARE, TALL):
        for texts in (prompts(5, 9), prompts(4, 2, 7)):
            monitor, plain = Logits(), Logits()
            found = run(CompiledTransformer(network, Compiler(backend)), texts, schedule, monitor=monitor)
            assert close(found, run(network, texts, schedule, monitor=plain))
            for a, b in zip(monitor.raw, plain.raw, strict=True):
                assert torch.allclose(a, b, atol=1e-4)
    assert backend.graphs == PIECES


def test_models_share_graphs_where_their_shapes_allow() -> None:
    """Another model of the same shape compiles nothing, one of another dtype its own."""
    backend = Counting()
    for index, dtype in enumerate((None, None, torch.bfloat16)):
        network = tiny_infinity(seed=index, dtype=dtype)
        found = run(CompiledTransformer(network, Compiler(backend)), prompts(5))
        assert backend.graphs == (2 * PIECES if dtype else PIECES)
        if dtype is None:  # in bfloat16 the compiler may round less often
            assert close(found, run(network, prompts(5)))


def test_rows_that_run_in_turn_are_compiled_as_well() -> None:
    network, backend = tiny_infinity(), Counting()
    compiled = CompiledTransformer(network, Compiler(backend))
    assert close(run(compiled, prompts(5, 3), sequential=True), run(network, prompts(5, 3)))
    assert backend.graphs == PIECES


@pytest.mark.parametrize("piece", range(PIECES))
def test_what_cannot_be_compiled_runs_as_it_is(piece: int, caplog: pytest.LogCaptureFixture) -> None:
    """Whichever graph fails, the keys and values that are stored by then are not stored twice."""
    network = tiny_infinity()
    backend = Counting({piece: RuntimeError("no compiler\nat all")})
    compiled = CompiledTransformer(network, Compiler(backend))
    expected = run(network, prompts(5))
    with caplog.at_level(logging.WARNING):
        assert close(run(compiled, prompts(5)), expected)
        assert close(run(compiled, prompts(5)), expected)
    assert backend.graphs == piece + 1 and compiled.compiler.failed
    (said,) = [record.getMessage() for record in caplog.records if record.name.endswith("compiling")]
    assert "RuntimeError: no compiler (" in said


def test_running_out_of_memory_is_no_reason_to_stop_compiling() -> None:
    def backend(graph: Any, inputs: list) -> Callable:
        def out_of_memory(*arguments: Any) -> Any:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

        return out_of_memory

    compiled = CompiledTransformer(tiny_infinity(), Compiler(backend))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        run(compiled, prompts(5))
    assert not compiled.compiler.failed


@pytest.mark.parametrize("build", [tiny_tokenizer, tiny_vq], ids=["bsq", "vq"])
def test_a_decoder_is_one_graph_for_sizes_of_a_kind(build: Callable) -> None:
    """On a CPU torch multiplies small maps in another way, so that they are a graph of their own."""
    tokenizer, backend = build(), Counting()
    compiled = CompiledTokenizer(tokenizer, Compiler(backend))
    with torch.inference_mode():
        for grid, graphs in (((6, 6), 1), ((5, 9), 2), ((7, 4), 2), ((9, 6), 2), ((6, 6), 2)):
            f_hat = torch.randn(1, 4, *grid, generator=torch.Generator().manual_seed(sum(grid)))
            assert torch.allclose(compiled.decode(f_hat), tokenizer.decode(f_hat), atol=1e-5)
            assert backend.graphs <= graphs
    assert backend.graphs and not compiled.compiler.failed
    assert compiled.config is tokenizer.config


def test_a_decoder_in_bands_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "BAND_BYTES", 4 * 32 * 24**2 - 1)
    tokenizer, backend = tiny_tokenizer(), Counting()
    compiled = CompiledTokenizer(tokenizer, Compiler(backend))
    with torch.inference_mode():
        for side, graphs in ((6, 0), (5, 1)):
            f_hat = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(0))
            assert torch.allclose(compiled.decode(f_hat), tokenizer.decode(f_hat), atol=1e-5)
            assert backend.graphs == graphs


def test_a_decoder_that_cannot_be_compiled_runs_as_it_is() -> None:
    tokenizer, f_hat = tiny_tokenizer(), torch.zeros(1, 4, 6, 6)
    compiled = CompiledTokenizer(tokenizer, Compiler(Counting({0: RuntimeError("no compiler")})))
    with torch.inference_mode():
        for _ in range(2):
            assert torch.equal(compiled.decode(f_hat), tokenizer.decode(f_hat))
    assert compiled.compiler.failed


def test_an_interrupted_run_leaves_nothing_behind() -> None:
    network = tiny_infinity()
    names = set(vars(network)) | {name for name, _ in network.named_modules()}
    compiled = CompiledTransformer(network, Compiler(Counting()))
    expected = run(compiled, prompts(5))
    before = live_tensors()
    for _ in range(2):
        with pytest.raises(Interrupted):
            run(compiled, prompts(5), monitor=InterruptAt(2, 1))
    assert live_tensors() <= before
    assert close(run(compiled, prompts(5)), expected)
    assert set(vars(network)) | {name for name, _ in network.named_modules()} == names


def test_a_compiler_is_shared_by_copies_of_what_it_is_attached_to() -> None:
    compiler = Compiler()
    assert copy.deepcopy({"here": [compiler]})["here"][0] is copy.copy(compiler) is compiler


def test_the_bench_compares_both_ways(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(bench_compile, "Compiler", lambda: Compiler(Counting()))
    plain = pipeline.transformer, pipeline.tokenizer
    found = bench_compile.measure(pipeline, {}, repeat=2)
    assert (pipeline.transformer, pipeline.tokenizer) == plain and not found["failed"]
    assert found["graphs"] == [PIECES + 1] * 2  # and the decoder
    assert [row["codes_changed"] for row in found["scales"]] == [0.0] * len(pipeline.schedule())
    assert all(
        value > 0 for row in (found, found["decode"], *found["scales"]) for value in row["seconds"].values()
    )
    bench_compile.show(found)
    assert f"{PIECES + 1} graphs" in capsys.readouterr().out


@pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler on this machine")
def test_the_embedded_model_draws_the_same_codes_compiled() -> None:
    from torch._dynamo.utils import counters

    pipeline = Pipeline.embedded(dtype=torch.float32, device="cpu")
    expected = pipeline("a red circle left of a blue square", seed=3)
    pipeline.transformer = CompiledTransformer(pipeline.transformer, Compiler())
    counters.clear()
    found = pipeline("a red circle left of a blue square", seed=3)
    assert not pipeline.transformer.compiler.failed
    assert counters["stats"]["unique_graphs"] == PIECES
    assert close(found.generation, expected.generation)
    assert (found.images.int() - expected.images.int()).abs().max() <= 1
