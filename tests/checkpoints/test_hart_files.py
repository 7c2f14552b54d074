"""HART's files: the published layout, own and broken ones; stored outputs of the official code."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stagevar_core.autoencoders.hybrid import HybridTokenizer
from stagevar_core.autoencoders.vq import VQTokenizer, VQTokenizerConfig
from stagevar_core.checkpoints import (
    CheckpointError,
    build,
    check_pairing,
    load_tokenizer,
    load_transformer,
    prepare,
    read,
    save,
)
from stagevar_core.models.hart_config import HART_0_7B, HARTConfig
from stagevar_core.schedule import SIDES_1024, SquareTable
from tests.parity import __main__ as parity
from tests.parity.report import Report
from tests.support import official_var
from tests.support.official_hart import tokenizer, transformer

SMALL = HARTConfig(
    2, 64, 1, 96, (1, 2, 3), context=7, text_width=24, vocab=24, dim=4, diff_width=16, diff_depth=2
)
CODES = VQTokenizerConfig(24, 4, width=32, multipliers=(1,) * 5, blocks=1)
VARIANTS = {
    "as published": SMALL,
    "modulated": replace(SMALL, modulation="own", cosine=True, heads=2, level_table=True),
    "by a table": replace(SMALL, modulation="shared"),
    "plain texts": replace(SMALL, context_norm=False),
}


def test_the_published_file() -> None:
    layout = transformer(HART_0_7B)
    checkpoint = prepare(layout, None, "ema_model.bin")
    assert (checkpoint.kind, checkpoint.family, checkpoint.config) == ("transformer", "hart", HART_0_7B)
    assert checkpoint.trained == SquareTable.of(SIDES_1024) and not checkpoint.notes
    assert checkpoint.trained.snap(1024, 1024).tokens == 9451
    module = build(checkpoint, dtype=torch.bfloat16)
    assert not checkpoint.tensors
    assert module.blocks[-1].ffn.down.weight.dtype == module.diffusion.out.weight.dtype == torch.bfloat16
    assert module.head.weight.dtype == module.blocks[0].norm.dtype == torch.float32


def test_the_published_size_is_0_7_billion() -> None:
    layout = transformer(HART_0_7B)
    assert layout.parameters == pytest.approx(0.7e9, rel=0.06)
    head = sum(tensor.numel() for key, tensor in layout.items() if key.startswith("diffloss."))
    assert head == pytest.approx(37e6, rel=0.03)


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_are_told_by_their_tensors(name: str, tmp_path: Path) -> None:
    config = VARIANTS[name]
    checkpoint = prepare(transformer(config, device="cpu"), None, name)
    assert checkpoint.config == config
    save(tmp_path / "own.safetensors", checkpoint.tensors, checkpoint.header())
    again = load_transformer(tmp_path / "own.safetensors")
    assert again.checkpoint.config == config and again.checkpoint.trained == SquareTable.of((1, 2, 3))
    assert again.checkpoint.defaults == {"cfg": 4.5, "temperature": 1.0, "top_k": 600, "top_p": 0.0}


def test_biases_are_folded_under_our_names() -> None:
    raw = transformer(SMALL, device="cpu")
    tensors = prepare(raw, None, "small").tensors
    q, k, v = tensors["blocks.1.self_attn.qkv.bias"].chunk(3)
    assert torch.equal(q, raw["blocks.1.attn.q_bias"]) and torch.equal(v, raw["blocks.1.attn.v_bias"])
    assert k.abs().max() == 0
    assert torch.equal(tensors["diffusion.blocks.1.norm_bias"], raw["diffloss.net.res_blocks.1.in_ln.bias"])
    assert torch.equal(tensors["level_net.fc2.weight"], raw["lvl_embed.mlp.2.weight"])


def folder_of(path: Path, **told) -> Path:
    """The folder ``llm`` as published: weights, averaged ones, and what the tensors do not say."""
    path.mkdir()
    save_file(dict(transformer(SMALL, device="cpu", seed=1)), path / "model.safetensors")
    torch.save(dict(transformer(SMALL, device="cpu", seed=2)), path / "ema_model.bin")
    (path / "config.json").write_text(json.dumps({"model_type": "hart_transformer_t2i", **told}))
    return path


def test_a_folder_stands_for_its_averaged_weights_and_tells_what_they_do_not(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "llm", num_heads=4, num_sampling_steps="6", sep_aln_pooling_mode="avg")
    loaded = load_transformer(folder)
    assert loaded.checkpoint.config == replace(SMALL, heads=4, diff_steps=6, pooling="avg")
    averaged = transformer(SMALL, device="cpu", seed=2)["head.weight"]
    assert torch.equal(loaded.module.head.weight, averaged)
    assert load_transformer(folder / "model.safetensors").checkpoint.config.heads == 4
    (folder / "config.json").write_text(json.dumps({"model_type": "flux", "num_heads": 4}))
    assert load_transformer(folder).checkpoint.config == SMALL


@pytest.mark.parametrize(
    "told", [{"num_heads": "many"}, {"num_heads": True}, {"num_sampling_steps": "ddim8"}, {"num_heads": -2}]
)
def test_settings_that_make_no_sense_are_not_believed(told: dict, tmp_path: Path) -> None:
    assert load_transformer(folder_of(tmp_path / "llm", **told)).checkpoint.config == SMALL


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.pop("blocks.0.attn.q_bias"), "blocks.0.self_attn.qkv.bias is incomplete"),
        (lambda raw: raw.pop("diffloss.net.final_layer.linear.bias"), "are missing: diffusion.out.bias"),
        (lambda raw: raw.put("pos_1LC", 1, 20, 64), "stands for blocks of the GPT-2 kind"),
        (lambda raw: raw.put("blocks.0.cross_attn.q.weight", 4, 4), "stands for cross-attention to the text"),
        (lambda raw: raw.put("diffloss.net.extra.weight", 4, 4), "diffloss.net.extra.weight"),
        (lambda raw: raw.put("blocks.1.ffn.up_proj.weight", 95, 64), r"blocks.1.ffn.up.weight.*95"),
    ],
)
def test_broken_files_are_named(change, message: str) -> None:
    raw = transformer(SMALL, device="cpu")
    change(raw)
    with pytest.raises(CheckpointError, match=message):
        prepare(raw, None, "broken")


def test_a_table_of_levels_without_its_schedule_has_no_sizes() -> None:
    raw = transformer(replace(SMALL, level_table=True), device="cpu")
    del raw["lvl_1L"]
    checkpoint = prepare(raw, None, "bare")
    assert checkpoint.trained is None and len(checkpoint.config.sides) == 3


def test_heads_that_the_settings_make_impossible_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the head size does not come out whole: 64 / 7"):
        load_transformer(folder_of(tmp_path / "llm", num_heads=7))


# ------------------------------------------------------------------------------------------- tokenizer


@pytest.mark.parametrize("second", [False, True])
def test_the_tokenizer_is_told_by_its_prefix(second: bool, tmp_path: Path) -> None:
    torch.save(dict(tokenizer(CODES, second=second, device="cpu")), tmp_path / "pytorch_model.bin")
    loaded = load_tokenizer(tmp_path / "pytorch_model.bin")
    assert isinstance(loaded.module, HybridTokenizer)
    assert (loaded.checkpoint.family, loaded.checkpoint.config) == ("hart", CODES)
    notes = " ".join(loaded.checkpoint.notes)
    assert "disc (2 tensors)" in notes and ("second decoder" in notes) == second


def test_our_own_file_of_the_tokenizer_stays_one_of_hart(tmp_path: Path) -> None:
    checkpoint = prepare(tokenizer(CODES, device="cpu"), None, "vae")
    save(tmp_path / "own.safetensors", checkpoint.tensors, checkpoint.header())
    again = load_tokenizer(tmp_path / "own.safetensors")
    assert isinstance(again.module, HybridTokenizer) and again.checkpoint.family == "hart"
    plain = prepare(official_var.tokenizer(CODES, device="cpu"), None, "var")
    save(tmp_path / "var.safetensors", plain.tensors, plain.header())
    assert type(load_tokenizer(tmp_path / "var.safetensors").module) is VQTokenizer
    tensors, metadata, _ = read(tmp_path / "var.safetensors")
    prefixed = {f"vae.{key}": tensor for key, tensor in tensors.items()}
    assert prepare(prefixed, metadata, "prefixed", kind="tokenizer").family == "var"


def test_the_tokenizers_of_var_and_hart_are_not_taken_for_each_other() -> None:
    model, own = prepare(transformer(SMALL), None, "hart"), prepare(tokenizer(CODES), None, "own")
    check_pairing(model, own)
    other = prepare(official_var.tokenizer(CODES), None, "vq")
    with pytest.raises(
        CheckpointError, match="vq does not belong to hart: it is of the family var, expected"
    ):
        check_pairing(model, other)
    with pytest.raises(CheckpointError, match="it has 32 codes, the transformer predicts 24"):
        check_pairing(model, prepare(tokenizer(replace(CODES, vocab=32)), None, "large"))


# ---------------------------------------------------------------------------------------------- parity

COMMITTED = Path(__file__).parents[1] / "fixtures" / "hart"


@pytest.mark.parametrize(
    ("run", "tensor", "by"),
    [("sampled_b1", "idx.3", 1), ("sampled_b1", "diff.out", 1e-3), ("discrete_only_b1", "f_hat.4", 1e-3)],
)
def test_a_wrong_value_is_a_miss(run: str, tensor: str, by: float, tmp_path: Path) -> None:
    folder = shutil.copytree(COMMITTED / "d2_aln_l2", tmp_path / "hart" / "copy")
    shutil.copytree(COMMITTED.parent / "var" / "vae_ch32_quantizer", tmp_path / "var" / "vae_ch32_quantizer")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["runs"] = {run: config["runs"][run]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    stored = load_file(folder / f"run_{run}.safetensors")
    stored[tensor][0, 0] += by
    save_file(stored, folder / f"run_{run}.safetensors")
    report = Report(lambda line: None)
    parity.compare_folder(folder, report)
    assert report.missed == 1 and not report.unreadable


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"attn_type": "gpt2"}, "skipped, options no release uses: attn_type gpt2"),
        ({"num_sampling_steps": "ddim8"}, "skipped, options no release uses: num_sampling_steps ddim8"),
        ({"diff_depth": 5}, "detected diff_depth 3, but config.json says 5"),
    ],
)
def test_folders_that_do_not_fit_say_why(part: dict, said: str, tmp_path: Path) -> None:
    folder = shutil.copytree(COMMITTED / "d2_aln_l2", tmp_path / "hart" / "copy")
    shutil.copytree(COMMITTED.parent / "var" / "vae_ch32_quantizer", tmp_path / "var" / "vae_ch32_quantizer")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | part
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    lines: list[str] = []
    parity.compare_folder(folder, Report(lines.append))
    assert any(said in line for line in lines), lines
