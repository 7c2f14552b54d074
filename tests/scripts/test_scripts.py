"""The scripts as far as they need neither a network nor ComfyUI: setup, quickstart, bench."""

from __future__ import annotations

import json
import sys
from datetime import date, timedelta
from pathlib import Path

import bench
import performance_report
import pytest
import torch
from benchmark import machine
from benchmark import models as bench_models
from benchmark import presets as bench_presets
from testbed import bootstrap, comfy_server, environment, setup_torch
from testbed.environment import SetupError

from stagevar_core.acceleration.presets import PRESETS
from stagevar_core.autoencoders.bsq import BSQTokenizerConfig
from stagevar_core.checkpoints.detect import spec_of
from stagevar_core.conditioning.t5 import T5EncoderConfig
from stagevar_core.models.infinity import InfinityConfig
from tests.support import tiny_families, tiny_switti_files

pytestmark = pytest.mark.slow


def test_pip_failures_become_one_line() -> None:
    said = "Collecting torch\nERROR: Could not install packages: [Errno 28] No space left on device\n"
    assert environment.explain(said, ("install",)).startswith("The disk is full")
    said = "WARNING: Retrying ... NewConnectionError: [Errno -3] Temporary failure in name resolution\n"
    assert environment.explain(said, ("install",)).startswith("No network")
    said = "Collecting x\nERROR: No matching distribution found for x\n"
    assert (
        environment.explain(said, ("install", "x"))
        == "pip install x failed: ERROR: No matching distribution found for x"
    )


def fake_pip(monkeypatch: pytest.MonkeyPatch, outputs: list[tuple[int, str]]) -> list[int]:
    """Lets pip answer with given exit codes and outputs; returns a list that grows with each call."""
    calls: list[int] = []

    def answer(command: list, **_: object) -> object:
        code, text = outputs[len(calls)]
        calls.append(code)
        return type("Result", (), {"returncode": code, "stdout": text, "stderr": ""})

    monkeypatch.setattr(environment, "run_quiet", answer)
    monkeypatch.setattr(environment.time, "sleep", lambda seconds: None)
    return calls


def test_pip_retries_what_may_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_pip(monkeypatch, [(1, "ReadTimeoutError: Read timed out."), (1, "error 503"), (0, "done")])
    environment.pip(Path("python"), "install", "x")
    assert calls == [1, 1, 0]


def test_pip_gives_up_on_what_cannot_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_pip(monkeypatch, [(1, "ERROR: No matching distribution found for x")])
    with pytest.raises(SetupError, match="No matching distribution"):
        environment.pip(Path("python"), "install", "x")
    assert calls == [1]


def test_torch_choice_follows_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = type(
        "Result", (), {"stdout": "Available versions: 2.15.0, 2.13.0+cpu, 2.13.0", "returncode": 0}
    )
    monkeypatch.delenv("STAGEVAR_TORCH", raising=False)
    monkeypatch.setattr(setup_torch.sys, "platform", "linux")
    monkeypatch.setattr(setup_torch, "run_quiet", lambda command: listing)
    monkeypatch.setattr(setup_torch, "reachable", lambda url: False)
    monkeypatch.setattr(setup_torch, "has_nvidia", lambda: True)
    assert setup_torch.torch_arguments(Path("python")) == ["torch", "torchvision"]
    monkeypatch.setattr(setup_torch, "has_nvidia", lambda: False)
    assert setup_torch.torch_arguments(Path("python")) == ["torch==2.13.0", "torchvision==0.28.0"]
    listing.stdout = "Available versions: 2.15.0"
    assert setup_torch.torch_arguments(Path("python")) == ["torch", "torchvision"]
    monkeypatch.setenv("STAGEVAR_TORCH", "torch==2.9.1 torchvision==0.24.1")
    assert setup_torch.torch_arguments(Path("python")) == ["torch==2.9.1", "torchvision==0.24.1"]


def test_dependencies_are_read_from_pyproject() -> None:
    names = {requirement.split(">")[0] for requirement in bootstrap.project_requirements()}
    assert {"torch", "safetensors", "numpy"} <= names
    assert all(">=" in requirement for requirement in bootstrap.project_requirements())


def test_given_tree_must_be_comfyui(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(SetupError, match="main.py is missing"):
        bootstrap.fetch_comfy(Path("python"))


def test_requirements_of_a_newer_tree_leave_pytorch_alone(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text(
        "torch\ncomfy-kitchen>=0.2 # kernels\n\n#x\nPyOpenGL\nav>=16\n"
    )
    assert bootstrap.comfy_requirements(tmp_path) == ["comfy-kitchen>=0.2", "av>=16"]


def test_positive_text_is_found_through_other_nodes() -> None:
    prompt = {
        "1": {"class_type": "CLIPTextEncode", "inputs": {"text": "good", "clip": ["9", 0]}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "bad", "clip": ["9", 0]}},
        "3": {
            "class_type": "ConditioningSetTimestepRange",
            "inputs": {"conditioning": ["1", 0], "start": 0.0},
        },
        "4": {
            "class_type": "StageVARSampler",
            "inputs": {"positive": ["3", 0], "negative": ["2", 0], "seed": 1},
        },
    }
    assert comfy_server.positive_text_node(prompt) == "1"


def test_base_directory_links_the_pack_and_survives_a_second_call(tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    pack.mkdir()
    (pack / "__init__.py").write_text("")
    for _ in range(2):
        place = comfy_server.make_base_directory(tmp_path / "base", pack)
    assert (place / "__init__.py").is_file()
    assert (tmp_path / "base" / "models").is_dir()


# -------------------------------------------------------------------------------------------------- bench

TINY = {
    "infinity": (
        InfinityConfig(
            depth=2, width=64, heads=2, hidden=128, bits=4, text_width=24, null_rows=16, pool_heads=2
        ),
        BSQTokenizerConfig(dim=4, width=32, multipliers=(1, 1, 1, 1, 1), blocks=1),
    ),
    "var": (tiny_families.VAR, tiny_families.TOKENIZER),
    "star": (tiny_families.STAR, tiny_families.TOKENIZER),
    "switti": (tiny_switti_files.switti(ar=False), tiny_families.TOKENIZER),
}


def run_bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *options: str) -> dict:
    """What the bench of the embedded model reports in its last line."""
    ceiling = {"matmul_flops_per_s": 1e12, "copy_bytes_per_s": 1e10}
    monkeypatch.setattr(bench, "ceilings", lambda device, dtype: ceiling)
    monkeypatch.setattr(sys, "argv", ["bench.py", "--device", "cpu", *options])
    assert bench.main() == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_bench_compares_presets_with_off(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    file = tmp_path / "bench.json"
    found = run_bench(monkeypatch, capsys, "--presets", "turbo,quality+local", "--json", str(file))
    assert json.loads(file.read_text()) == found
    off, turbo, local = found["presets"]
    assert [row["preset"] for row in found["presets"]] == ["off", "turbo", "quality+local"]
    ratios = (
        "flop_ratio",
        "wall_ratio",
        "wall_ratio_total",
        "wall_share",
        "batch_ratio",
        "batch_ratio_total",
    )
    assert [off[name] for name in ratios] == pytest.approx([1] * 6)
    for row in found["presets"]:
        totals = row["trace"]["totals"]
        assert row["flops"] == totals["flops"] == sum(s["flops"]["total"] for s in row["trace"]["scales"])
        assert row["flop_ratio"] == pytest.approx(totals["flop_ratio"])
        assert row["bytes"]["kv_cache"] == totals["kv_peak_bytes"] < row["bytes"]["peak"]
        assert row["of_ceiling"] == pytest.approx(row["flops"] / row["seconds"]["transformer"] / 1e12)
        assert 1e3 * row["seconds"]["transformer"] == pytest.approx(totals["milliseconds"])
        assert row["wall_ratio"] == off["seconds"]["transformer"] / row["seconds"]["transformer"]
        assert row["wall_share"] == pytest.approx(row["wall_ratio"] / row["flop_ratio"])
    assert turbo["scales_skipped"] == 1 and turbo["flop_ratio"] > 4
    assert local["trace"]["scales"][-1]["visible"] < off["trace"]["scales"][-1]["visible"] / 2


def test_bench_compares_batches_with_the_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    found = run_bench(monkeypatch, capsys, "--presets", "balanced", "--batch", "1,3")
    off, one, three = found["presets"]
    assert [(row["preset"], row["batch"]) for row in found["presets"]] == [
        ("off", 1),
        ("balanced", 1),
        ("balanced", 3),
    ]
    assert (found["batch"], three["trace"]["images"]) == (1, 3)
    assert three["flop_ratio"] == pytest.approx(one["flop_ratio"]) and three["flops"] == 3 * one["flops"]
    for suffix, phase in (("", "transformer"), ("_total", "total")):
        assert three[f"batch_ratio{suffix}"] == three["seconds"][phase] / one["seconds"][phase]
        assert three[f"wall_ratio{suffix}"] is None  # off was not asked for at this size
    assert three["wall_share"] is None and three["bytes"]["kv_cache"] == 3 * one["bytes"]["kv_cache"]


def test_bench_of_the_dense_run_counts_what_ran(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    both = run_bench(monkeypatch, capsys)
    one = run_bench(monkeypatch, capsys, "--cfg", "1")
    assert (both["rows"], one["rows"]) == (2, 1)
    assert one["bytes"]["kv_cache"] * 2 == both["bytes"]["kv_cache"]
    for found in (both, one):
        assert found["flops"]["transformer"] == pytest.approx(sum(s["flops"] for s in found["scales"]))
        spent = sum(scale["seconds"] for scale in found["scales"])
        assert found["seconds"]["transformer"] == pytest.approx(spent, abs=1e-4)  # each is rounded
        assert found["of_ceiling"]["transformer"] == pytest.approx(found["flops_per_s"]["transformer"] / 1e12)
    pairs = list(zip(both["scales"], one["scales"], strict=True))[1:]  # the first has the text's projections
    assert [a["flops"] / b["flops"] for a, b in pairs] == [2] * 6
    assert all(0 < scale["attention_flops"] < scale["flops"] / 2 for scale in both["scales"])


def test_bench_tells_memory_by_kind(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    found = run_bench(monkeypatch, capsys)
    memory = found["bytes"]
    models = ("transformer", "tokenizer", "text_encoder")
    assert memory["weights"] == sum(memory[name] for name in models) > 4e7
    assert memory["peak"] == max(memory["peak_sampling"], memory["peak_decode"])
    assert memory["beyond_weights"] == memory["peak"] - memory["weights"]
    assert memory["kv_cache"] == max(scale["kv_bytes"] for scale in found["scales"])
    highest = max(found["scales"], key=lambda scale: (scale["peak_bytes"], scale["kv_bytes"]))
    rest = memory["weights"] + memory["process"] + highest["kv_bytes"]
    assert memory["activations"] == max(0, highest["peak_bytes"] - rest)
    assert memory["kind"] == "resident" and memory["resident"] == memory["peak"]


def test_bench_says_when_and_of_what_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    found = run_bench(monkeypatch, capsys)
    assert abs(date.fromisoformat(found["date"]) - date.today()) <= timedelta(days=1)  # time zones
    assert found["command"] == "python scripts/bench.py --device cpu" and "commit" in found
    assert machine.code_version(Path("/")) is None


def test_ceilings_of_a_disturbed_measurement_do_not_count() -> None:
    assert machine.higher({"a": 1.0, "b": 5.0}, {"a": 2.0, "b": 4.0}) == {"a": 2.0, "b": 5.0}


def test_bench_takes_all_presets_and_puts_off_first() -> None:
    everything = [preset for preset, _ in bench_presets.chosen("all")]
    assert everything == ["off", *(name for name in PRESETS if name != "off")]
    assert list(bench_presets.chosen("balanced, off,balanced")) == [("off", 1), ("balanced", 1)]
    local = bench_presets.chosen("quality+local")["quality+local", 1]
    assert local.settings.cache.attention == "local"
    several = list(bench_presets.chosen("balanced", (1, 4)))
    assert several == [("off", 1), ("balanced", 1), ("balanced", 4)]
    assert list(bench_presets.chosen("balanced", (1, 4), alone=True)) == several[1:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--presets", "balanced,best"], "--presets: preset is 'best'; expected one of"),
        (["--presets", "paper+local", "--json", "/no/such/folder/x.json"], "expected a file in an existing"),
        (["--repeat", "0"], "--repeat is 0; expected 1 or more"),
        (["--batch", "1,0", "--presets", "fast"], "--batch is 0; expected 1 or more"),
        (["--batch", "two"], "--batch is two; expected numbers with commas"),
        (["--batch", "1,4"], "--batch has several numbers, which --presets compares"),
        (["--weights", "fp8"], "--weights fp8 is of the full-size models"),
        (["--official", "x"], "--official is for Infinity of full size; the model is embedded"),
        (["--text-encoder", "--model", "var-d30"], "--text-encoder is for Infinity of full size"),
        (["--alone"], "--alone leaves off out of --presets"),
        (["--cold", "--model", "infinity-2b"], "--cold times the embedded model"),
    ],
)
def test_bench_refuses_before_it_measures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, options: list[str], message: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.py", *options])
    with pytest.raises(SystemExit):
        bench.main()
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(bench_models.FULL_SIZE))
def test_full_size_models_have_a_module_a_tokenizer_and_a_size(name: str) -> None:
    """Built without storage: the bench fills them with random weights."""
    family, config, codes = bench_models.FULL_SIZE[name]
    spec = spec_of("transformer", family)
    spec.module(config, device="meta")
    spec_of("tokenizer", spec.tokenizer or family).module(codes, device="meta")
    assert spec.sizes(config).pixels_per_token == codes.stride * config.patch
    assert codes.dim == config.dim


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("var", tiny_families.VAR),
        ("star", tiny_families.STAR),
        ("switti", tiny_switti_files.switti(ar=False)),
        ("switti", tiny_switti_files.switti(ar=True)),
    ],
    ids=["class", "text", "alone", "AR"],
)
def test_bench_measures_both_kinds_of_conditioning(family: str, config: object) -> None:
    device = torch.device("cpu")
    pipeline = bench_models.full_size(family, config, tiny_families.TOKENIZER, 7, device, torch.float32)
    request = {"width": 256, "height": 256, "batch": 1, "settings": pipeline.settings(cfg=2.0)}
    bench_models.warm_up(pipeline, request, whole=False)
    run = bench_models.measured(pipeline, request, 1)
    assert run.pictures.size == (256, 256) and run.pictures.settings.cfg_scale == 2.0
    assert run.trace.flops == run.trace.dense_flops > 0


@pytest.mark.parametrize("family", ["infinity", "var", "star", "switti"])
def test_one_byte_weights_halve_the_blocks_and_change_little(family: str) -> None:
    """The same numbers rounded to three bits of mantissa, computed in the dtype of the run."""
    config, codes = TINY[family]
    device, pipelines = torch.device("cpu"), {}
    for weights in (None, bench_models.FP8):
        pipelines[weights] = bench_models.full_size(family, config, codes, 7, device, torch.bfloat16, weights)
    wide, narrow = (pipeline.transformer for pipeline in pipelines.values())
    assert narrow.compute_dtype == torch.bfloat16
    inside, around = narrow.blocks[0].self_attn.proj, narrow.head
    assert (inside.weight.dtype, inside.bias.dtype) == (bench_models.FP8, torch.bfloat16)
    assert around.weight.dtype == torch.float32
    x = torch.randn(3, inside.in_features, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = wide.blocks[0].self_attn.proj(x)
    assert 0 < (inside(x) - expected).norm() / expected.norm() < 0.05
    sizes = [bench_models.weight_bytes(model.blocks[0].self_attn.proj) for model in (wide, narrow)]
    assert sizes[0] / 2 < sizes[1] < 0.6 * sizes[0]
    pipeline = pipelines[bench_models.FP8]
    request = {"width": 256, "height": 256, "batch": 1, "settings": pipeline.settings(cfg=2.0)}
    assert bench_models.measured(pipeline, request, 1).pictures.size == (256, 256)


@pytest.mark.parametrize("family", ["infinity", "var", "star", "switti"])
def test_int8_weights_are_made_without_wider_ones(family: str) -> None:
    config, codes = TINY[family]
    pipeline = bench_models.full_size(
        family, config, codes, 7, torch.device("cpu"), torch.bfloat16, bench_models.INT8
    )
    inside = pipeline.transformer.blocks[0].self_attn.proj
    assert inside.weight.dtype == torch.int8 and inside.bias.dtype == torch.bfloat16
    request = {"width": 256, "height": 256, "batch": 1, "settings": pipeline.settings(cfg=2.0)}
    assert bench_models.measured(pipeline, request, 1).pictures.size == (256, 256)


def test_bench_measures_int8_weights(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    plain, found = run_bench(monkeypatch, capsys), run_bench(monkeypatch, capsys, "--weights", "int8")
    assert (found["weights"], found["dtype"]) == ("int8", "float32")
    assert found["bytes"]["transformer"] < 0.4 * plain["bytes"]["transformer"]


@pytest.mark.parametrize("weights", [None, bench_models.FP8])
def test_a_text_encoder_makes_place_before_anything_else_is_loaded(
    weights: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    width = TINY["infinity"][0].text_width
    config = T5EncoderConfig(vocab_size=40, d_model=width, d_ff=96, d_kv=16, num_heads=4, num_layers=2)
    monkeypatch.setitem(bench_models.FULL_SIZE, "infinity-125m", ("infinity", *TINY["infinity"]))
    pipeline = bench_models.load("infinity-125m", 7, torch.device("cpu"), torch.bfloat16, weights, config)
    text = pipeline.text_encoder
    assert text.features.shape == (7, width) and text.features.isfinite().all()
    linear = 2 * (4 * width * 64 + 3 * width * 96)
    rest = 2 * (40 * width + 32 * 4 + 5 * width)
    assert text.bytes == linear * (1 if weights else 2) + rest
    request = {"width": 256, "height": 256, "batch": 1, "settings": pipeline.settings(cfg=2.0)}
    memory = bench_models.memory_by_kind(pipeline, [bench_models.measured(pipeline, request, 1)])
    assert (memory["text_first"], memory["peak_text"]) == (text.bytes, text.peak)
    assert memory["peak"] == max(memory[f"peak_{phase}"] for phase in ("text", "sampling", "decode"))
    assert not memory["text_encoder"]  # it is not there any more


def test_presets_can_be_measured_without_the_dense_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    found = run_bench(monkeypatch, capsys, "--presets", "turbo", "--alone")
    (row,) = found["presets"]
    assert row["preset"] == "turbo" and row["wall_ratio"] is None and row["batch_ratio"] == 1.0
    assert performance_report.models([found | {"name": "x"}]) == "Not measured."
