"""Detection, conversion and strict loading, against full-size state dicts without storage."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from stagevar_core.autoencoders.bsq import BSQTokenizerConfig
from stagevar_core.checkpoints import (
    CheckpointError,
    build,
    check_pairing,
    load_tokenizer,
    load_transformer,
    prepare,
    read,
    save,
    state_dict,
)
from stagevar_core.checkpoints.header import dump
from stagevar_core.conditioning.t5 import T5EncoderConfig
from stagevar_core.models.infinity_config import INFINITY_2B, INFINITY_8B, INFINITY_125M
from stagevar_core.pipeline import EMBEDDED
from stagevar_core.schedule import infinity_aspect_table
from tests.support import official_files as official
from tests.support.official_files import SMALL, latent, small_tokenizer, small_transformer

# Config, chunks in the file, bits that the specification's parameter count refers to, that count.
TRANSFORMERS = {
    "125M": (INFINITY_125M, 4, 32, 125.2e6),
    "2B": (INFINITY_2B, 8, 32, 2.205e9),
    "8B": (INFINITY_8B, 8, 56, 8.376e9),
}
D32, D14 = BSQTokenizerConfig(dim=32), BSQTokenizerConfig(dim=14, multipliers=(1, 2, 4, 4))
# d32 and d32reg, the sixth published file, have the same shapes.
TOKENIZERS = [replace(D32, dim=16), replace(D32, dim=24), D32, replace(D32, dim=64), D14]


@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.parametrize("chunked", [True, False])
def test_official_transformer(name, chunked):
    config, chunks, _, _ = TRANSFORMERS[name]
    checkpoint = prepare(official.transformer(config, chunks=chunks if chunked else None), None, name)
    assert (checkpoint.kind, checkpoint.family, checkpoint.config) == ("transformer", "infinity", config)
    assert checkpoint.trained == infinity_aspect_table(16)
    module = build(checkpoint, dtype=torch.bfloat16)
    assert not checkpoint.tensors
    assert module.blocks[-1].self_attn.qkv.weight.dtype == torch.bfloat16
    assert module.head.weight.dtype == module.blocks[0].ada.dtype == torch.float32


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_parameter_counts_are_the_published_ones(name):
    config, chunks, bits, published = TRANSFORMERS[name]
    counted = official.transformer(replace(config, bits=bits), chunks=chunks).parameters
    assert abs(counted - published) / published < 5e-4  # the published numbers have four digits


@pytest.mark.parametrize("config", TOKENIZERS, ids=str)
@pytest.mark.parametrize("wrapped", [True, False])
def test_official_tokenizer(config, wrapped):
    layout = official.tokenizer(config, wrapped=wrapped)
    discriminator = {"layers.0.weight": torch.zeros(3, device="meta")}
    extra = {"discriminator": discriminator, "ema": dict(layout), "epoch": 7}
    checkpoint = prepare({"vae": dict(layout), **extra}, None, "vae.pth")
    assert (checkpoint.kind, checkpoint.config) == ("tokenizer", config)
    assert checkpoint.notes == ("discriminator (1 tensors)",)
    assert build(checkpoint).encoder.conv_out.weight.shape[0] == config.dim


@pytest.mark.parametrize(("config", "published"), [(D32, 110.1e6), (D14, 81.6e6)], ids=["d32", "d14"])
def test_tokenizer_parameter_counts(config, published):
    assert abs(official.tokenizer(config).parameters - published) / published < 1e-3


@pytest.mark.parametrize("full", [True, False])
def test_flan_t5_xl(full):
    checkpoint = prepare(official.flan_t5_xl(decoder=full), None, "flan-t5-xl")
    assert (checkpoint.kind, checkpoint.config) == ("text_encoder", T5EncoderConfig())
    assert checkpoint.trained is None
    assert set(checkpoint.tensors) == set(official.flan_t5_xl(decoder=False)) - {
        "encoder.embed_tokens.weight"
    }
    said = {note.partition(" (")[0] for note in checkpoint.notes}
    assert said == ({"text decoder", "language model head"} if full else set())


def test_t5_input_embedding_under_its_other_name():
    tensors = official.flan_t5_xl(decoder=False)
    del tensors["shared.weight"]
    assert "shared.weight" in prepare(tensors, None, "t5").tensors


def test_umt5_is_no_t5():
    tensors = official.flan_t5_xl(decoder=False)
    tensors.put("encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight", 32, 32)
    with pytest.raises(CheckpointError, match="looks like a umT5 text encoder"):
        prepare(tensors, None, "umt5")


def test_biases_are_folded_and_blocks_renumbered():
    raw = small_transformer()
    tensors = prepare(raw, None, "small").tensors
    old = "block_chunks.1.module.0."
    q, _, v = tensors["blocks.2.self_attn.qkv.bias"].chunk(3)
    assert torch.equal(q, raw[f"{old}sa.q_bias"]) and torch.equal(v, raw[f"{old}sa.v_bias"])
    assert tensors["blocks.2.self_attn.qkv.bias"].chunk(3)[1].abs().max() == 0
    assert torch.equal(tensors["blocks.2.cross_attn.kv.bias"].chunk(2)[1], raw[f"{old}ca.v_bias"])
    assert torch.equal(tensors["text_pool.kv.bias"].chunk(2)[1], raw["text_proj_for_sos.ca.v_bias"])
    weight = tensors["blocks.2.self_attn.qkv.weight"]
    assert weight.data_ptr() == raw[f"{old}sa.mat_qkv.weight"].data_ptr()  # renamed, not copied


@pytest.mark.parametrize("change", ["flash_scale", "flat", "no_zero_bias", "old_buffers", "bfloat16"])
def test_variants_of_a_file_give_the_same_model(change):
    reference = prepare(small_transformer(), None, "small")
    raw = small_transformer(flash_scale=change == "flash_scale", chunks=None if change == "flat" else 2)
    if change == "no_zero_bias":
        raw = {key: tensor for key, tensor in raw.items() if "zero_k_bias" not in key}
    if change == "old_buffers":
        raw["lvl_1L"] = raw["attn_bias_for_masking"] = torch.zeros(1, 9)
    if change == "bfloat16":
        raw = {key: tensor.bfloat16() for key, tensor in raw.items()}
    checkpoint = prepare(raw, None, change)
    assert checkpoint.config == reference.config
    for name, tensor in state_dict(reference).items():
        assert torch.allclose(checkpoint.tensors[name].float(), tensor, atol=2e-3)


@pytest.mark.parametrize("rows", [3, 700])
def test_null_rows_are_what_the_file_has(rows):
    checkpoint = prepare(small_transformer(replace(SMALL, null_rows=rows)), None, "small")
    assert checkpoint.config.null_rows == rows
    assert build(checkpoint).null_text.shape == (rows, 48)


WRAPPED = {
    "state_dict": lambda raw: {"state_dict": raw, "global_step": 3},
    "module prefix": lambda raw: {f"module.{key}": tensor for key, tensor in raw.items()},
    "trainer fsdp": lambda raw: {"trainer": {"gpt_fsdp": raw, "gpt_ema_fsdp": raw}, "epoch": 1},
    "trainer": lambda raw: {"trainer": {"gpt_wo_ddp": raw, "vae_local": small_tokenizer()}, "arch": "2b"},
    "host took trainer off": lambda raw: {"gpt_fsdp": raw, "opt": {"state": {0: torch.zeros(2)}}},
    "twice": lambda raw: {"model": {"module": raw}},
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers(name):
    checkpoint = prepare(WRAPPED[name](dict(small_transformer())), None, name, kind="transformer")
    assert (checkpoint.kind, checkpoint.config.depth) == ("transformer", 4)


def test_kind_picks_from_a_training_file():
    content = WRAPPED["trainer"](dict(small_transformer()))
    assert prepare(content, None, "training").kind == "transformer"
    assert prepare(content, None, "training", kind="tokenizer").config.dim == 16


def test_own_files_without_their_metadata(tmp_path):
    checkpoint = prepare(small_transformer(), None, "small")
    assert prepare(checkpoint.tensors, None, "stripped").config == checkpoint.config


def test_round_trip_of_our_files(tmp_path):
    path = tmp_path / "own.safetensors"
    checkpoint = prepare(small_transformer(), None, "small")
    trained = infinity_aspect_table(8).restrict([1.0, 0.5], ["0.06M"])
    header = replace(
        checkpoint.header(),
        config={**checkpoint.config.to_dict(), "patch": 2},  # shapes cannot show it, metadata can
        trained=trained,
        defaults={"cfg": [2.0, 3.0, 3.0, 3.0, 3.0, 2.0, 1.0], "temperature": 0.7},
        title="Small",
    )
    assert save(path, checkpoint.tensors, header) == path.stat().st_size
    again = prepare(*read(path))
    assert again.config == replace(checkpoint.config, patch=2)
    assert (again.trained, again.defaults, again.title) == (trained, header.defaults, "Small")
    stored = load_file(path)  # the format's own reader agrees with our writer
    assert all(torch.equal(stored[name], tensor) for name, tensor in checkpoint.tensors.items())


def test_save_narrows_matrices_only_and_checks_the_range(tmp_path):
    checkpoint = prepare(small_transformer(), None, "small")
    save(tmp_path / "half.safetensors", checkpoint.tensors, checkpoint.header(), dtype=torch.float16)
    stored = load_file(tmp_path / "half.safetensors")
    assert (stored["head.weight"].dtype, stored["head.bias"].dtype) == (torch.float16, torch.float32)
    checkpoint.tensors["head.weight"][0, 0] = 1e6
    with pytest.raises(ValueError, match=r"head\.weight has values beyond the range of float16"):
        save(tmp_path / "over.safetensors", checkpoint.tensors, checkpoint.header(), dtype=torch.float16)
    assert [path.name for path in tmp_path.iterdir()] == ["half.safetensors"]


def test_loaders_give_running_modules(tmp_path):
    save_file({key: tensor.half() for key, tensor in small_transformer().items()}, tmp_path / "t.safetensors")
    torch.save({"vae": dict(small_tokenizer())}, tmp_path / "v.pth")
    transformer, tokenizer = load_transformer(tmp_path / "t.safetensors"), load_tokenizer(tmp_path / "v.pth")
    f_hat = latent(transformer.module)
    assert f_hat.shape == (1, 16, 2, 2)
    assert tokenizer.module.decode(f_hat).shape == (1, 3, 8, 8)
    assert not any(parameter.requires_grad for parameter in transformer.module.parameters())


def test_pairing():
    two, eight = (
        prepare(official.transformer(config, chunks=8), None, "transformer")
        for config in (INFINITY_2B, INFINITY_8B)
    )
    d32 = prepare(official.tokenizer(D32), None, "d32")
    d14 = prepare(official.tokenizer(D14), None, "d56_f8_14")
    check_pairing(two, d32)
    check_pairing(eight, d14)
    with pytest.raises(CheckpointError, match="14 channels per latent pixel, the transformer predicts 32"):
        check_pairing(two, d14)
    coarse = prepare(official.tokenizer(replace(D32, dim=14)), None, "d14 stride 16")
    with pytest.raises(CheckpointError, match="a token covers 32 pixels per side"):
        check_pairing(eight, coarse)


@pytest.mark.parametrize(
    ("key", "meaning"),
    [
        ("block_chunks.0.module.0.ca_gamma", "cross-attention"),
        ("block_chunks.0.module.0.ffn.fcg.weight", "SwiGLU"),
        ("norm0_ve.weight", "before the word embedding"),
        ("head.0.weight", "two-layer head"),
        ("block_chunks.0.module.0.ada_lin.1.weight", "in every block"),
    ],
)
def test_unreleased_options_are_refused_by_name(key, meaning):
    raw = small_transformer()
    raw[key] = torch.zeros(4)
    with pytest.raises(CheckpointError, match=f"{key} stands for .*{meaning}"):
        prepare(raw, None, "research.pth")


def test_incomplete_and_misshapen_files_list_what_is_wrong():
    raw = small_transformer()
    removed = [key for key in raw if ".ffn." in key and "chunks.1" in key] + ["word_embed.bias"]
    broken = {key: tensor for key, tensor in raw.items() if key not in removed}
    broken["surprise.weight"] = torch.zeros(3)
    expected = r"9 tensors are missing: .*ffn.* and 1 more; 1 tensors are left over: surprise\.weight"
    with pytest.raises(CheckpointError, match=expected):
        prepare(broken, None, "cut.pth")
    raw["word_embed.weight"] = torch.zeros(32, 17)
    with pytest.raises(CheckpointError, match=r"word_embed\.weight: found \[32, 17\], expected \[32, 16\]"):
        prepare(raw, None, "odd.pth")
    gap = {key: tensor for key, tensor in small_transformer().items() if "chunks.0.module.1" not in key}
    with pytest.raises(CheckpointError, match=r"missing block 0\.1"):
        prepare(gap, None, "gap.pth")
    half = small_transformer()
    del half["block_chunks.0.module.1.sa.q_bias"]
    with pytest.raises(CheckpointError, match=r"blocks\.1\.self_attn\.qkv\.bias is incomplete"):
        prepare(half, None, "half.pth")
    twice = small_tokenizer()
    twice["encoder.conv_in.weight"] = twice["encoder.conv_in.conv.weight"]
    with pytest.raises(CheckpointError, match="there twice"):
        prepare(twice, None, "twice.pth")


@pytest.mark.parametrize(
    ("keys", "guess"),
    [
        (["model.diffusion_model.out.weight", "first_stage_model.x"], "an all-in-one diffusion checkpoint"),
        (["double_blocks.0.img_attn.qkv.weight"], "a diffusion model"),
        (["blocks.0.attn.mat_qkv.weight", "class_emb.weight"], "a class-conditional VAR"),
        (["encoder.conv_in.weight", "quant_conv.weight"], "the VAE of a diffusion model"),
        (["lora_unet_x.lora_up.weight"], "a LoRA"),
        (["something.else"], "no known model; found 1 tensors such as something.else"),
    ],
)
def test_unknown_files_say_what_they_may_be(keys, guess):
    with pytest.raises(CheckpointError, match=guess) as caught:
        prepare(dict.fromkeys(keys, torch.zeros(2)), None, "mystery.safetensors")
    for part in ("mystery.safetensors", keys[0], "Expected one of: Infinity transformer", "README"):
        assert part in str(caught.value)


def test_wrong_kind_and_empty_files():
    with pytest.raises(CheckpointError, match="this is an Infinity transformer, expected an image tokenizer"):
        prepare(small_transformer(), None, "t.pth", kind="tokenizer")
    with pytest.raises(CheckpointError, match="found no tensors"):
        prepare({"epoch": 3}, None, "empty.pth")


BAD_METADATA = [
    ("{", "not valid JSON"),
    ("[1]", "a list, expected a JSON object"),
    ({"format": 2}, "format: found 2, expected 1.*Update ComfyUI-StageVAR"),
    ({"format": "1"}, "format: found '1'"),
    ({"kind": 5}, "kind: found 5"),
    ({"kind": "tokenizer"}, "says infinity tokenizer, its tensors are those of an Infinity transformer"),
    ({"family": "later"}, "does not know that family"),
    ({"config": {"depth": 4}}, "config entry .*width.*: found missing"),
    ({"config+": {"extra": 1}}, "config entry extra: found unknown"),
    ({"config+": {"depth": 0}}, "config entry depth: found 0"),
    ({"config+": {"depth": True}}, "config entry depth: found True"),
    ({"config+": {"depth": 10**9}}, "config entry depth: found 1000000000"),
    ({"config+": {"depth": 3}}, "says depth = 3, its tensors have 4"),
    ({"config+": {"patch": 3}}, "patch = 3, which does not divide 16 bits"),
    ({"trained": {"ratios": [1.0], "budgets": ["9M"], "pixels_per_token": 8}}, "unknown pixel budget '9M'"),
    ({"trained": {"ratios": [7.0], "budgets": ["1M"], "pixels_per_token": 8}}, "unknown aspect template 7.0"),
    ({"trained": {"ratios": [1.0], "budgets": ["1M"]}}, "pixels_per_token: found None"),
    ({"defaults": {"temperature": 0}}, r"defaults\.temperature: found 0"),
    ({"defaults": {"top_p": float("nan")}}, r"defaults\.top_p: found nan"),
    ({"defaults": {"cfg": [2.0, "3"]}}, r"defaults\.cfg: found \[2\.0, '3'\]"),
    ({"defaults": {"top_k": 1.5}}, r"defaults\.top_k: found 1\.5, expected a whole number"),
    ({"tokenizer": "{}"}, "tokenizer: found .*expected a vocabulary"),
]


@pytest.mark.parametrize(("change", "message"), BAD_METADATA, ids=[str(case[0]) for case in BAD_METADATA])
def test_bad_metadata_names_the_entry(change, message):
    checkpoint = prepare(small_transformer(), None, "small")
    metadata = dump(checkpoint.header())
    if isinstance(change, str):
        metadata["stagevar"] = change
    else:
        values = json.loads(metadata["stagevar"])
        values["config"] |= change.get("config+", {})
        values |= {name: value for name, value in change.items() if name != "config+"}
        metadata["stagevar"] = json.dumps(values)
    with pytest.raises(CheckpointError, match=message) as caught:
        prepare(checkpoint.tensors, metadata, "bad.safetensors")
    assert "bad.safetensors" in str(caught.value)


def test_normalisation_groups_come_from_metadata():
    checkpoint = prepare(small_tokenizer(), None, "small")
    header = replace(checkpoint.header(), config={**checkpoint.config.to_dict(), "groups": 8})
    again = prepare(checkpoint.tensors, dump(header), "narrow")
    assert again.config.groups == 8
    assert build(again).encoder.norm_out.num_groups == 8


@pytest.mark.parametrize("prefix", ["", "first_stage_model.", "vae."])
def test_builtin_tokenizer_is_known_without_its_header(prefix: str) -> None:
    tensors, metadata, _ = read(EMBEDDED["tokenizer"])
    expected = prepare(dict(tensors), metadata, "built in", kind="tokenizer")
    bare = {prefix + name: tensor for name, tensor in tensors.items()}
    found = prepare(bare, None, "saved by others", kind="tokenizer")
    assert (found.config, found.trained) == (expected.config, expected.trained)
    assert found.config.groups == 8 and found.trained.pixels_per_token == 8
