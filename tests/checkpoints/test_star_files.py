"""STAR's files: published variants, own and broken ones; stored outputs of the official code."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stagevar_core.checkpoints import CheckpointError, build, check_pairing, load_transformer, prepare, save
from stagevar_core.models.star_config import STAR_256, STAR_512, STAR_1024, STARConfig
from stagevar_core.schedule import SIDES_256, SIDES_512, SIDES_1024, SquareTable
from tests.parity import __main__ as parity
from tests.parity.report import Report
from tests.support.official_star import transformer
from tests.support.official_var import tokenizer as tokenizer_file
from tests.support.tiny import tiny_tokenizer
from tests.support.tiny_var import squares, tiny_vq

STAR_D16 = STARConfig.released(16, SIDES_256)
RELEASED = {
    "256 d16": STAR_D16,
    "256 d30": STAR_256,
    "512 d30": STAR_512,
    "1024 d30": STAR_1024,
    "1024 d30 sampler": STARConfig.released(30, SIDES_1024, sampler=True),
}


@pytest.mark.parametrize("name", RELEASED)
def test_published_file(name: str) -> None:
    config, sides = RELEASED[name], RELEASED[name].sides
    file = {"trainer": {"var_wo_ddp": dict(transformer(config)), "config": {"patch_nums": list(sides)}}}
    checkpoint = prepare({"epoch": 3, "iter": 20000, **file}, None, name)
    assert (checkpoint.kind, checkpoint.family) == ("transformer", "star")
    assert checkpoint.config == config
    assert checkpoint.trained == SquareTable.of(sides)
    pixels = sides[-1] * 16
    assert checkpoint.trained.snap(pixels, pixels).grids[-1] == (sides[-1],) * 2
    module = build(checkpoint, dtype=torch.bfloat16)
    assert not checkpoint.tensors and bool(module.refinements) == name.endswith("sampler")
    assert module.blocks[-1].cross_attn.kv.weight.dtype == torch.bfloat16
    assert module.head.weight.dtype == module.blocks[0].self_attn.log_scale.dtype == torch.float32


def test_the_published_size_is_1_7_billion() -> None:
    assert transformer(STAR_1024).parameters == pytest.approx(1.7e9, rel=0.02)


def test_ten_scales_without_their_sides_offer_both_sizes() -> None:
    trained = prepare(transformer(STAR_D16), None, "bare").trained
    for sides in (SIDES_256, SIDES_512):
        assert trained.snap(16 * sides[-1], 16 * sides[-1]) == squares(*sides)
    assert trained.restrict([1.0], ["256"]) == SquareTable.of(SIDES_256)
    with pytest.raises(ValueError, match="unknown pixel budget '1024'; this model has .'512', '256'."):
        trained.schedule(1.0, "1024")


@pytest.mark.parametrize("told", [[1, 2, 3], "1_2_3", [0] * 10, None])
def test_sides_that_make_no_sense_are_not_believed(told) -> None:
    file = {"trainer": {"var_wo_ddp": dict(transformer(STAR_D16)), "config": {"patch_nums": told}}}
    assert prepare(file, None, "odd").config.sides == ()


def small(*, sampler: bool = False) -> dict:
    config = replace(STARConfig.released(1, (1,) * 6, sampler=sampler), vocab=24, dim=4, text_width=24)
    return transformer(config, device="cpu")


def test_biases_are_folded_under_our_names() -> None:
    raw = small(sampler=True)
    tensors = prepare(raw, None, "small").tensors
    q, k, v = tensors["blocks.0.self_attn.qkv.bias"].chunk(3)
    assert torch.equal(q, raw["blocks.0.attn.q_bias"]) and torch.equal(v, raw["blocks.0.attn.v_bias"])
    assert k.abs().max() == 0
    assert torch.equal(tensors["blocks.0.cross_attn.q.bias"], raw["blocks.0.cross_attn.q_bias"])
    k, v = tensors["blocks.0.cross_attn.kv.bias"].chunk(2)
    assert k.abs().max() == 0 and torch.equal(v, raw["blocks.0.cross_attn.v_bias"])
    assert torch.equal(
        tensors["sampler.blocks.2.ffn.fc1.weight"], raw["feat_extract_blocks.2.ffn.fc1.weight"]
    )
    assert torch.equal(tensors["sampler.merge.bias"], raw["head_proj.bias"])


@pytest.mark.parametrize("sampler", [False, True])
def test_own_files_keep_what_their_tensors_do_not_show(sampler: bool, tmp_path) -> None:
    checkpoint = prepare(small(sampler=sampler), None, "small")
    checkpoint.config = replace(checkpoint.config, sides=(1, 2, 3, 4, 5, 6), rope_norm=32.0)
    path = tmp_path / "star.safetensors"
    save(path, checkpoint.tensors, checkpoint.header())
    loaded = load_transformer(path)
    assert loaded.checkpoint.config == checkpoint.config
    assert loaded.checkpoint.trained == SquareTable.of((1, 2, 3, 4, 5, 6))
    assert loaded.checkpoint.defaults == {"cfg": 4.0, "temperature": 1.0, "top_k": 600, "top_p": 0.8}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.pop("blocks.0.cross_attn.q_bias"), "are missing: blocks.0.cross_attn.q.bias"),
        (lambda raw: raw.pop("feat_extract_blocks.1.attn.proj.bias"), "sampler.blocks.1.self_attn.proj.bias"),
        (lambda raw: raw.pop("head_logits2.weight"), "are missing: sampler.head.weight"),
        (lambda raw: raw.put("blocks.0.ada_gss", 1, 6, 64), "stands for modulation by the scale"),
        (lambda raw: raw.put("encoder_proj.weight", 64, 2048), "those of the T5 ablation"),
    ],
)
def test_broken_files_are_named(change, message: str) -> None:
    raw = small(sampler=True)
    change(raw)
    with pytest.raises(CheckpointError, match=message):
        prepare(raw, None, "broken")


def test_the_tokenizer_is_that_of_var() -> None:
    codes, other = prepare(tokenizer_file(tiny_vq().config, device="cpu"), None, "vq"), None
    model = prepare(small(), None, "star")
    check_pairing(model, codes)
    bitwise = tiny_tokenizer()
    other = replace(codes, family="infinity", config=bitwise.config, source="bits")
    with pytest.raises(CheckpointError, match="bits does not belong to star: it is of the family infinity"):
        check_pairing(model, other)


# ---------------------------------------------------------------------------------------------- parity

COMMITTED = Path(__file__).parents[1] / "fixtures" / "star"


@pytest.mark.parametrize(
    ("run", "tensor", "by"),
    [("greedy_b2", "idx.3", 1), ("smooth_b1", "h.2", 0.02), ("greedy_b2", "dbg.cross1.1", 1e-3)],
)
def test_a_wrong_value_is_a_miss(run: str, tensor: str, by: float, tmp_path) -> None:
    folder = shutil.copytree(COMMITTED / "d3_basic", tmp_path / "star" / "copy")
    shutil.copytree(COMMITTED.parent / "var" / "vae_ch32_quantizer", tmp_path / "var" / "vae_ch32_quantizer")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["runs"] = {run: config["runs"][run]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "teacher_forced.safetensors").unlink()
    stored = load_file(folder / f"run_{run}.safetensors")
    stored[tensor][0, 0] += by
    save_file(stored, folder / f"run_{run}.safetensors")
    report = Report(lambda line: None)
    parity.compare_folder(folder, report)
    assert report.missed == 1 and not report.unreadable
