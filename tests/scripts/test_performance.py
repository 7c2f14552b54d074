"""The official baseline of the bench, on a stand-in for the official code, and the report of measurements."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import bench
import performance_report
import pytest
import torch
import torch.nn.functional as F
from benchmark import models as bench_models
from benchmark import official as bench_official
from benchmark import standins

from stagevar_core.autoencoders.bsq import BSQTokenizerConfig
from stagevar_core.models.infinity import InfinityConfig

pytestmark = pytest.mark.slow

SHAPE = InfinityConfig(
    depth=2, width=64, heads=2, hidden=128, bits=4, text_width=24, null_rows=16, pool_heads=2
)
CODES = BSQTokenizerConfig(dim=4, width=32, multipliers=(1, 1, 1, 1, 1), blocks=1)

# The calls of the official classes that the harness relies on; every scale and the decoder take a while.
TOKENIZER = """
import time
import torch

class Tokenizer(torch.nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(dim))

    def decode(self, z):
        time.sleep(0.2)
        return torch.zeros(len(z), 3, 16 * z.shape[2], 16 * z.shape[3])

def vae_model(path, mode, dim, size, patch_size, encoder_ch_mult, decoder_ch_mult):
    assert not path and patch_size == 16 and size == 2**dim
    return Tokenizer(dim)
"""
TRANSFORMER = """
import time
import torch
from timm.models.layers import DropPath
from timm.models import register_model
from flash_attn import flash_attn_func

@torch.compile(fullgraph=True)
def double(x):
    return x + x

class Infinity(torch.nn.Module):
    def __init__(self, vae_local, embed_dim, depth, block_chunks, **options):
        super().__init__()
        self.unregistered_blocks = [torch.nn.Linear(embed_dim, embed_dim) for _ in range(depth)]
        self.blocks = torch.nn.ModuleList(self.unregistered_blocks)

    def add_lvl_embeding(self, feature, scale_ind, scale_schedule, need_to_pad=0):
        return feature

    def autoregressive_infer_cfg(self, vae, scale_schedule, label_B_or_BLT, B, g_seed, ret_img=False,
                                 trunk_scale=1000, **options):
        features, lengths, offsets, longest = label_B_or_BLT
        assert features.shape[0] == sum(lengths) == offsets[-1] and len(lengths) == B
        print("chatter")
        for index, (_, height, width) in enumerate(scale_schedule[:trunk_scale]):
            x = self.add_lvl_embeding(torch.zeros(2 * B, height * width, 64), index, scale_schedule)
            with torch.cuda.amp.autocast(enabled=False):
                x = double(self.blocks[0](x.bfloat16()))
            time.sleep(0.05 if index else 0.3)
        if not ret_img:
            return None, None, []
        image = vae.decode(torch.zeros(B, 4, height, width))
        return None, None, image.permute(0, 2, 3, 1)
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that looks like a clone of the official code."""
    models = tmp_path / "infinity" / "models"
    (models / "bsq_vae").mkdir(parents=True)
    (models / "infinity.py").write_text(TRANSFORMER)
    (models / "bsq_vae" / "vae.py").write_text(TOKENIZER)
    return tmp_path


def test_bench_times_the_official_code_first(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(bench_models.FULL_SIZE, "infinity-125m", ("infinity", SHAPE, CODES))
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")  # nothing can be compiled, as without a compiler
    monkeypatch.setattr(bench, "ceilings", lambda *a: {"matmul_flops_per_s": 1e12, "copy_bytes_per_s": 1e10})
    options = ["--model", "infinity-125m", "--pixels", "256", "--threads", "1", "--batch", "2"]
    arguments = [*options, "--device", "cpu", "--official", str(checkout)]
    monkeypatch.setattr(sys, "argv", ["bench.py", *arguments])
    assert bench.main() == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    official, seconds = found["official"], found["official"]["seconds"]
    assert official["size"] == found["size"] == [256, 256]
    assert len(official["scales"]) == len(found["scales"]) == 7
    assert official["scales"][0] >= 0.3 and min(official["scales"]) >= 0.05
    assert seconds["decode"] >= 0.2
    assert seconds["total"] == pytest.approx(seconds["transformer"] + seconds["decode"], abs=1e-3)
    assert seconds["transformer"] == pytest.approx(sum(official["scales"]), abs=1e-3)
    ratio = seconds["transformer"] / found["seconds"]["transformer"]
    assert official["ratio"]["transformer"] == pytest.approx(ratio)
    assert official["of_ceiling"] == pytest.approx(
        found["flops"]["transformer"] / seconds["transformer"] / 1e12
    )
    assert official["bytes"]["weights"] == 2 * 2 * (64 * 64 + 64) + 4 * 4  # blocks in bfloat16
    replaced = "\n".join(official["replaced"])
    assert "autocast" in replaced
    assert ("flash-attn" in replaced) == standins.missing("flash_attn")


def test_bench_says_why_the_official_code_failed(checkout: Path) -> None:
    (checkout / "infinity" / "models" / "bsq_vae" / "vae.py").write_text("raise ImportError('no kornia')")
    job = {"threads": 1, "device": "cpu", "dtype": "float32", "shape": {"multipliers": [1], "dim": 4}}
    with pytest.raises(ValueError, match="official code in .* failed: ImportError: no kornia"):
        bench_official.measure(checkout, job)
    with pytest.raises(ValueError, match="is no clone of FoundationVision/Infinity"):
        bench_official.measure(checkout / "infinity", job)


def test_what_cannot_be_compiled_runs_as_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiler(*arguments: object, **options: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", compiler)
    (said,) = standins.replace_compiler(torch.device("cpu"))
    assert "RuntimeError" in said

    def double(x: int) -> int:
        return 2 * x

    assert torch.compile(fullgraph=True)(double) is torch.compile(double) is double


def test_packed_attention_looks_at_the_text_of_its_own_row() -> None:
    generator = torch.Generator().manual_seed(0)
    q, kv = (torch.randn(shape, generator=generator) for shape in ((2 * 3, 4, 8), (5 + 2, 2, 4, 8)))
    found = standins.plain_packed_attention(
        q, kv, torch.tensor([0, 3, 6]), torch.tensor([0, 5, 7]), 3, 5, softmax_scale=0.5
    )
    visible = torch.tensor([[True] * 5 + [False] * 2] * 3 + [[False] * 5 + [True] * 2] * 3)
    k, v = kv.transpose(0, 2).unbind(1)
    expected = F.scaled_dot_product_attention(q.transpose(0, 1), k, v, attn_mask=visible, scale=0.5)
    assert torch.allclose(found, expected.transpose(0, 1), atol=1e-6)


# --------------------------------------------------------------------------------------------- the report


def measurement(**changes: object) -> dict:
    """A dense run in round figures."""
    found = {
        "name": "bench_x",
        "command": "python scripts/bench.py --model infinity-2b",
        "date": "2026-01-02",
        "commit": "abc1234",
        "model": "infinity-2b",
        "dtype": "bfloat16",
        "weights": "bfloat16",
        "size": [1024, 1024],
        "batch": 1,
        "seconds": {"text": 0.0, "transformer": 8.0, "decode": 2.0, "total": 10.0},
        "flops": {"transformer": 4e12, "decode": 1e12},
        "of_ceiling": {"transformer": 0.5, "decode": 0.5},
        "bytes": {
            "weights": 4_000_000_000,
            "kv_cache": 2_000_000_000,
            "peak": 7_500_000_000,
            "process": None,
        },
        "scales": [],
        "ceilings": {"matmul_flops_per_s": 1e12, "copy_bytes_per_s": 4e10},
        "hardware": {"processor": "some CPU", "threads": 2, "torch": "2.13.0"},
    }
    return found | changes


def cells(text: str) -> list[list[str]]:
    """The rows of a table without its head."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:]]


def test_every_row_says_on_what_and_when_it_was_measured() -> None:
    for name in ("models", "memory", "gpu"):
        row = cells(performance_report.TABLES[name]([measurement(hardware=GPU)]))[0]
        assert row[-1] == "some GPU, 2026-01-02, `bench_x`"
    (row,) = cells(performance_report.models([measurement()]))
    assert row[1:] == [
        "8.00 s",
        "50%",
        "2.00 s",
        "10.0 s",
        "7.50 GB",
        "some CPU, 2 threads, 2026-01-02, `bench_x`",
    ]
    (row,) = cells(performance_report.runs([measurement(note="in a hurry")]))
    assert row[-2:] == ["`python scripts/bench.py --model infinity-2b`", "in a hurry"] and row[2] == "abc1234"


GPU = {"gpu": "some GPU", "processor": "some CPU", "threads": 8, "torch": "2.13.0"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hardware": GPU, "size": [512, 512]},
        {"hardware": GPU, "weights": "fp8"},
        {"hardware": GPU, "batch": 4},
    ],
    ids=["cpu", "other size", "other weights", "several images"],
)
def test_what_was_not_measured_on_a_gpu_is_said_so(changes: dict) -> None:
    rows = cells(performance_report.gpu([measurement(**changes)]))
    open_rows = [row for row in rows if "not measured" in row]
    assert len(open_rows) == len(performance_report.WANTED_ON_GPU)
    rows = cells(performance_report.gpu([measurement(hardware=GPU)]))
    assert [row[1] for row in rows if "not measured" in row] == ["`balanced`", "`off`", "`balanced`"]


def test_the_official_code_and_ours_are_rows_of_one_run() -> None:
    official = {
        "seconds": {"transformer": 12.0, "decode": 5.0, "total": 17.0},
        "of_ceiling": 0.33,
        "bytes": {"peak": 15_000_000_000},
        "ratio": {"transformer": 1.5, "decode": 2.5, "total": 1.7},
    }
    rows = cells(performance_report.official([measurement(official=official), measurement()]))
    assert [row[1] for row in rows] == ["official", "`off`", "ratio"]
    assert rows[2][2:7] == ["1.50x", "", "2.50x", "1.70x", "2.00x"]


def test_scales_tell_attention_from_matrix_products() -> None:
    flops = {"linear": 2e12, "attention": 5e11, "text": 5e11, "head": 0.0, "reduction": 0.0, "total": 3e12}
    trace = {"scales": [{"scale": {"grid": [4, 4]}, "milliseconds": 6000.0, "flops": flops}]}
    off = {"preset": "off", "bytes": {"kv_cache": 0}, "trace": trace}
    dense = [{"grid": [4, 4], "seconds": 6.0, "flops": 3e12, "attention_flops": 1e12}]
    for changes in ({"presets": [off]}, {"scales": dense}):
        text = performance_report.scales([measurement(**changes)])
        assert text.splitlines()[-1] == "| 4x4 | 6.000 | 2.000 | 1.000 | 0.500 | 50% |"
    alone = measurement(presets=[off | {"preset": "balanced"}])
    assert performance_report.scales([alone]) == performance_report.presets([alone]) == "Not measured."


def test_tables_are_replaced_and_all_other_text_stays() -> None:
    text = "before\n<!-- table models -->\nold\n<!-- end of table models -->\nafter\n"
    made = performance_report.filled(text, [measurement()])
    assert made.startswith("before\n") and made.endswith("\nafter\n") and "old" not in made
    assert performance_report.filled(made, [measurement()]) == made
    assert "Not measured." in performance_report.filled(text, [])
    with pytest.raises(ValueError, match="has no <!-- end of table models -->"):
        performance_report.filled("<!-- table models -->", [])
    with pytest.raises(ValueError, match="there is no such table; expected one of models"):
        performance_report.filled("<!-- table prices -->", [])


@pytest.mark.parametrize(("content", "message"), [("{", "is no JSON"), ("{}", "no ceilings or no date")])
def test_files_that_no_bench_wrote_are_named(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "bench_y.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=f"bench_y.json.*{message}"):
        performance_report.read([file])


def test_the_documents_hold_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """After a new measurement: python scripts/performance_report.py."""
    monkeypatch.setattr(sys, "argv", ["performance_report.py", "--check"])
    assert performance_report.main() == 0, capsys.readouterr().out
    assert all("<!-- table " in document.read_text() for document in performance_report.DOCUMENTS)
