"""Switti's files: published variants, own and broken ones; stored outputs of the official code."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stagevar_core.checkpoints import CheckpointError, build, check_pairing, load_transformer, prepare, save
from stagevar_core.checkpoints.files import read
from stagevar_core.models.switti_config import (
    SWITTI_512,
    SWITTI_512_AR,
    SWITTI_1024,
    SWITTI_1024_AR,
    SwittiConfig,
)
from stagevar_core.schedule import SquareTable
from tests.parity import __main__ as parity
from tests.parity.report import Report
from tests.support.official_switti import transformer
from tests.support.official_var import tokenizer as tokenizer_file
from tests.support.tiny import tiny_tokenizer
from tests.support.tiny_var import tiny_vq

RELEASED = {
    "Switti": SWITTI_512,
    "Switti-AR": SWITTI_512_AR,
    "Switti-1024": SWITTI_1024,
    "Switti-1024-AR": SWITTI_1024_AR,
}
SIDES = (1, 2, 3, 4)


@pytest.mark.parametrize("name", RELEASED)
def test_published_file(name: str) -> None:
    config = RELEASED[name]
    checkpoint = prepare(transformer(config), None, name)
    assert (checkpoint.kind, checkpoint.family) == ("transformer", "switti")
    assert checkpoint.config == config and checkpoint.config.ar == name.endswith("AR")
    assert checkpoint.trained == SquareTable.of(config.sides)
    assert checkpoint.defaults == {"cfg": 6.0, "temperature": 1.0, "top_k": 400, "top_p": 0.95}
    module = build(checkpoint, dtype=torch.bfloat16)
    assert not checkpoint.tensors
    assert module.blocks[-1].ffn.down.weight.dtype == torch.bfloat16
    assert module.head.weight.dtype == module.crop.frequencies.dtype == torch.float32


def test_the_published_size_is_2_5_billion() -> None:
    config = SWITTI_512
    assert (config.width, config.heads, config.head_dim, config.hidden) == (1920, 30, 64, 5120)
    assert transformer(config).parameters == pytest.approx(2.5e9, rel=0.02)


def small(*, ar: bool = True, crop: bool = True) -> dict:
    config = replace(SwittiConfig.released(1, SIDES, ar=ar), vocab=24, dim=4, crop=crop)
    return transformer(replace(config, text_width=24, pooled_width=16), device="cpu")


@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("ar", [False, True])
def test_own_files_keep_what_their_tensors_do_not_show(ar: bool, crop: bool, tmp_path) -> None:
    checkpoint = prepare(small(ar=ar, crop=crop), None, "small")
    assert (checkpoint.config.ar, checkpoint.config.crop) == (ar, crop)
    checkpoint.config = replace(checkpoint.config, heads=2, guided=3)
    path = tmp_path / "switti.safetensors"
    save(path, checkpoint.tensors, checkpoint.header())
    loaded = load_transformer(path)
    assert loaded.checkpoint.config == checkpoint.config
    assert loaded.checkpoint.trained == SquareTable.of(SIDES)


def test_a_folder_as_the_hub_has_it_is_read(tmp_path) -> None:
    (tmp_path / "config.json").write_text('{"depth": 1, "use_ar": true}', encoding="utf-8")
    tensors = {key: tensor.contiguous() for key, tensor in small().items()}
    save_file(tensors, tmp_path / "model.safetensors")
    assert prepare(*read(tmp_path), kind="transformer").config.ar


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.pop("attn_bias_for_masking"), "does not say whether its scales see the ones before"),
        (lambda raw: raw.pop("blocks.0.crop_cond_scales"), "are missing: blocks.0.crop_scale"),
        (lambda raw: raw.pop("blocks.0.cross_attention_norm2.weight"), "missing: blocks.0.cross_norm_out"),
        (lambda raw: raw.put("pos_1LC", 1, 30, 64), "stands for learned positions"),
        (lambda raw: raw.put("blocks.0.ffn.fc1.weight", 256, 64), "stands for a feed-forward without gates"),
        (lambda raw: raw.put("word_embed.weight", 96, 4), "number of heads does not come out whole: 96 / 64"),
    ],
)
def test_broken_files_are_named(change, message: str) -> None:
    raw = small()
    change(raw)
    with pytest.raises(CheckpointError, match=message):
        prepare(raw, None, "broken")


def test_the_tokenizer_has_the_names_of_vars() -> None:
    codes = prepare(tokenizer_file(tiny_vq().config, device="cpu"), None, "vq")
    model = prepare(small(), None, "switti.safetensors")
    check_pairing(model, replace(codes, config=replace(codes.config, multipliers=(1,) * 5)))
    for family in ("infinity", "hart"):
        other = replace(codes, family=family, config=tiny_tokenizer().config, source=f"{family}.safetensors")
        message = f"{family}.safetensors does not belong to switti.safetensors: it is of the family {family}"
        with pytest.raises(CheckpointError, match=message):
            check_pairing(model, other)


# ---------------------------------------------------------------------------------------------- parity

COMMITTED = Path(__file__).parents[1] / "fixtures" / "switti"


@pytest.mark.parametrize(("tensor", "by"), [("idx.4", 1), ("h.2", 0.02), ("logits_post.4", 0.02)])
def test_a_wrong_value_is_a_miss(tensor: str, by: float, tmp_path) -> None:
    folder = shutil.copytree(COMMITTED / "d2_nonar", tmp_path / "switti" / "copy")
    shutil.copytree(COMMITTED.parent / "var" / "vae_ch32_quantizer", tmp_path / "var" / "vae_ch32_quantizer")
    (folder / "teacher_forced.safetensors").unlink()
    stored = load_file(folder / "run_smooth_b1.safetensors")
    stored[tensor][0, 0] += by
    save_file(stored, folder / "run_smooth_b1.safetensors")
    report = Report(lambda line: None)
    parity.compare_folder(folder, report)
    assert report.missed == 1 and not report.unreadable


@pytest.mark.parametrize("option", [{"turn_off_cfg_start_si": 3}, {"last_scale_temp": 0.2}, {"cfg": 5.0}])
def test_another_option_is_a_miss(option: dict, tmp_path) -> None:
    folder = shutil.copytree(COMMITTED / "d2_nonar", tmp_path / "switti" / "copy")
    shutil.copytree(COMMITTED.parent / "var" / "vae_ch32_quantizer", tmp_path / "var" / "vae_ch32_quantizer")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["runs"]["smooth_b1"] |= option
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    report = Report(lambda line: None)
    parity.compare_folder(folder, report)
    assert report.missed and not report.unreadable
