"""LoRA files: every style of keys is the same LoRA, merged as it was trained; others are refused by name."""

import json
import math
from dataclasses import replace
from pathlib import Path

import convert_checkpoint
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from stagevar_core.checkpoints import (
    Checkpoint,
    CheckpointError,
    build,
    merge,
    prepare,
    read,
    read_lora,
    save,
)
from stagevar_core.checkpoints.lora_layers import targets
from stagevar_core.models.infinity_config import INFINITY_2B, INFINITY_8B
from stagevar_core.pipeline import EMBEDDED
from tests.support.lora import OURS, STYLES, checkpoint_of, random_lora, red, styled
from tests.support.tiny import tiny_infinity
from tests.support.tiny_star import tiny_star
from tests.support.tiny_switti import tiny_switti
from tests.support.tiny_var import tiny_var

MODEL = tiny_infinity(depth=4)
FILE = random_lora(MODEL, layers=OURS)
KEY = "blocks.1.cross_attn.kv.weight"
LAYER = "blocks.1.ca.mat_kv"


def written(folder: Path, file: dict, name: str = "file.safetensors") -> Path:
    save_file(file, folder / name)
    return folder / name


def found(path: Path, model: nn.Module = MODEL):
    return read_lora(path, checkpoint_of(model), path.name)


def refusal(folder: Path, file: dict, model: nn.Module = MODEL, name: str = "file.safetensors") -> str:
    with pytest.raises(CheckpointError) as caught:
        found(written(folder, file, name), model)
    message = str(caught.value)
    assert message.startswith(f"{name}: ") and "\n" not in message and len(message) < 500
    return message


def weights(checkpoint: Checkpoint, *loras, dtype=None) -> dict:
    merge(checkpoint, loras, dtype)
    return checkpoint.tensors


@pytest.mark.parametrize("style", STYLES)
def test_every_style_of_keys_is_the_same_lora(style, tmp_path):
    lora = found(styled(FILE, style, tmp_path, chunk=2))
    assert lora.summary() == "28 layers of rank 2"
    assert set(lora.layers) == {f"blocks.{n}.{ours}.weight" for n in range(4) for ours in OURS.values()}
    base = checkpoint_of(MODEL).tensors[KEY]
    change = 2.0 * FILE[f"{LAYER}.lora_up.weight"] @ FILE[f"{LAYER}.lora_down.weight"]  # alpha 4, rank 2
    assert torch.allclose(weights(checkpoint_of(MODEL), (lora, 0.5))[KEY], base + 0.5 * change, atol=1e-6)


@pytest.mark.parametrize(
    "model",
    [MODEL, tiny_var(), tiny_var(shared=True), tiny_star(), tiny_switti()],
    ids=lambda model: model.family,
)
def test_every_linear_layer_of_a_family_has_its_official_name(model):
    known = {target.key: target.shape for target in targets(checkpoint_of(model), [], "x").values()}
    linears = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    assert known == {f"{name}.weight": tuple(layer.weight.shape) for name, layer in linears.items()}


@pytest.mark.parametrize(
    ("config", "block", "flat"),
    [
        (INFINITY_2B, "block_chunks.7.module.3", 31),
        (INFINITY_2B, "block_chunks.2.module.1", 9),
        (INFINITY_8B, "block_chunks.1.module.0", 5),
        (replace(INFINITY_2B, width=2080, heads=20), "block_chunks.1.module.2", 10),
    ],
)
def test_nested_block_numbers_are_those_of_the_published_models(config, block, flat):
    checkpoint = Checkpoint("transformer", "infinity", config, {}, "model")
    known = targets(checkpoint, [f"{block}.sa.proj.lora_A.weight"], "x")
    assert known[f"{block}.sa.proj".replace(".", "_")].key == f"blocks.{flat}.self_attn.proj.weight"


def test_block_numbers_that_no_published_model_has_are_refused(tmp_path):
    key = "block_chunks.3.module.9.sa.proj.lora_{}.weight"
    message = refusal(tmp_path, {key.format("A"): torch.ones(2, 32), key.format("B"): torch.ones(32, 2)})
    assert "its block 3.9 is none of the model's 4" in message


def test_peft_says_alpha_by_layer_and_by_the_root_of_the_rank(tmp_path):
    file = {key: value for key, value in FILE.items() if not key.endswith(".alpha")}
    file[f"{LAYER}.lora_down.weight"] = torch.randn(6, 32)  # as rank_pattern has it
    file[f"{LAYER}.lora_up.weight"] = torch.randn(64, 6)
    path = styled(file | {"blocks.0.sa.proj.alpha": torch.tensor(8.0)}, "peft", tmp_path)

    def scales(**entries) -> tuple[float, float, float]:
        config = {"peft_type": "LORA", "lora_alpha": 8, "r": 2, **entries}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        layers = found(path).layers
        return tuple(
            layers[key].scale for key in (KEY, "blocks.0.self_attn.proj.weight", "blocks.3.ffn.fc1.weight")
        )

    assert scales() == pytest.approx((8 / 6, 4.0, 4.0))
    assert scales(use_rslora=True) == pytest.approx((8 / math.sqrt(6), *[8 / math.sqrt(2)] * 2))
    assert scales(alpha_pattern={"ca.mat_kv": 3, "^blocks.0.sa.proj": 1}) == pytest.approx((0.5, 0.5, 4.0))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"default": {"lora_alpha": 2}}))
    assert found(path).layers[KEY].scale == pytest.approx(1 / 3)
    assert found(path).summary() == "28 layers of rank 2 and 6"


def test_a_folder_of_peft_is_read_as_its_file_and_without_configuration_it_says_what_it_took(tmp_path):
    path = styled(FILE, "peft", tmp_path)
    assert found(tmp_path).layers[KEY].scale == found(path).layers[KEY].scale == 2.0
    alone = path.rename(tmp_path / "renamed.safetensors")
    assert found(alone).layers[KEY].scale == 1.0
    assert "28 layers of rank 2; alpha is taken for the rank" in found(alone).summary()
    with pytest.raises(CheckpointError, match=r"has no adapter_model\.safetensors"):
        found(tmp_path)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"lora_alpha": 8, "peft_type": "ADALORA"}, "says peft_type 'ADALORA'; expected 'LORA'"),
        ({"lora_alpha": 8, "fan_in_fan_out": True}, "says fan_in_fan_out True"),
        ({"lora_alpha": 8, "use_rslora": "yes"}, "says use_rslora 'yes'; expected true or false"),
        ({"lora_alpha": "8"}, "lora_alpha, which is '8'; expected a number"),
        ({"lora_alpha": float("nan")}, "lora_alpha, which is nan; expected a number"),
        ({"r": 8}, "lora_alpha, which is None; expected a number"),
        ({"lora_alpha": 8, "alpha_pattern": {"q_proj": 2}}, "alpha_pattern for q_proj, which is none"),
        ({"lora_alpha": 8, "alpha_pattern": [2]}, r"alpha_pattern, which is \[2\]; expected an object"),
        ([8], "is no JSON object"),
        ("{", "cannot be read"),
    ],
)
def test_a_configuration_that_cannot_be_followed_is_refused(config, expected, tmp_path):
    path = styled(FILE, "peft", tmp_path)
    (tmp_path / "adapter_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(CheckpointError, match=f"adapter_config.json beside it .*{expected}"):
        found(path)


def test_dora_gives_the_rows_of_the_changed_weight_their_lengths(tmp_path):
    lengths = torch.rand(64) + 0.5
    kohya = {key: value for key, value in FILE.items() if key.startswith(LAYER)}
    file = kohya | {f"{LAYER}.dora_scale": lengths[:, None]}
    peft = {
        key.replace("lora_down", "lora_A").replace("lora_up", "lora_B"): value for key, value in kohya.items()
    }
    again = peft | {f"{LAYER}.lora_magnitude_vector.default.weight": lengths}
    base = checkpoint_of(MODEL).tensors[KEY]
    full = base + 2.0 * FILE[f"{LAYER}.lora_up.weight"] @ FILE[f"{LAYER}.lora_down.weight"]
    expected = lengths[:, None] * full / full.norm(dim=1, keepdim=True)
    for index, keys in enumerate((file, again)):
        lora = found(written(tmp_path, keys, f"{index}.safetensors"))
        assert torch.allclose(weights(checkpoint_of(MODEL), (lora, 1.0))[KEY], expected, atol=1e-6)
        half = weights(checkpoint_of(MODEL), (lora, 0.5))[KEY]
        assert torch.allclose(half, base + 0.5 * (expected - base), atol=1e-6)
    file[f"{LAYER}.dora_scale"] = torch.ones(1, 32)
    assert "DoRA magnitudes of the shape [1, 32]; expected one for each of the 64" in refusal(tmp_path, file)


def test_several_add_up_and_strength_zero_changes_no_bit(tmp_path):
    lora, other = found(styled(FILE, "kohya", tmp_path)), found(written(tmp_path, random_lora(MODEL, seed=1)))
    base = checkpoint_of(MODEL).tensors
    untouched = weights(checkpoint_of(MODEL), (lora, 0.0), (other, 0))
    assert all(torch.equal(tensor, base[key]) for key, tensor in untouched.items())
    both, first, second = (
        weights(checkpoint_of(MODEL), *loras)[KEY] - base[KEY]
        for loras in (((lora, 1.0), (other, -0.5)), [(lora, 1.0)], [(other, -0.5)])
    )
    assert torch.allclose(both, first + second, atol=1e-6) and first.abs().max() > 0.01
    with pytest.raises(ValueError, match=r"strength of kohya\.safetensors is nan; expected a number"):
        merge(checkpoint_of(MODEL), [(lora, float("nan"))])


def test_sums_are_made_in_float32_and_kept_as_wide_as_they_are_wanted(tmp_path):
    lora = found(styled(FILE, "kohya", tmp_path))
    for stored, wanted, kept in (
        (torch.bfloat16, None, torch.bfloat16),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.float8_e4m3fn, torch.bfloat16, torch.bfloat16),
        (torch.float8_e4m3fn, None, torch.float8_e4m3fn),
    ):
        checkpoint = checkpoint_of(MODEL)
        checkpoint.tensors[KEY] = checkpoint.tensors[KEY].to(stored)
        sums = checkpoint_of(MODEL)
        sums.tensors[KEY] = checkpoint.tensors[KEY].float()
        result = weights(checkpoint, (lora, 1.0), dtype=wanted)[KEY]
        assert result.dtype == kept
        assert torch.equal(result, weights(sums, (lora, 1.0))[KEY].to(kept))


def test_layers_that_were_not_trained_are_counted(tmp_path):
    file = dict(FILE)
    for index in range(4):  # what PEFT leaves of layers whose weight the official code takes itself
        file[f"blocks.{index}.sa.mat_qkv.lora_up.weight"] = torch.zeros(96, 2)
    assert found(written(tmp_path, file)).notes == (
        "4 of them change nothing: they were not trained, a half is zero",
    )


SDXL = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
FLUX = "transformer.single_transformer_blocks.3.attn.to_q"


def pair(layer: str, out: int = 32, into: int = 32, rank: int = 2) -> dict:
    return {
        f"{layer}.lora_up.weight": torch.ones(out, rank),
        f"{layer}.lora_down.weight": torch.ones(rank, into),
    }


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (pair(SDXL), "none of its 1 LoRA layers belongs to this model (lora_unet_down_blocks_1"),
        (pair(SDXL), "as of Stable Diffusion); expected a LoRA for an Infinity transformer"),
        (pair(FLUX), "as of Flux)"),
        (pair("lora_te_text_model_encoder_layers_0_mlp_fc1"), "as of a text encoder)"),
        (pair("blocks.0.attn.mat_qkv", 96), "as of VAR or STAR)"),
        (pair("blocks.0.attn.to_qkv", 96), "as of Switti)"),
        (
            pair("blocks.9.sa.proj"),
            "none of its 1 LoRA layers belongs to this model (blocks.9.sa.proj); expected",
        ),
        (
            FILE | pair("blocks.4.sa.proj"),
            "1 of its 29 LoRA layers do not belong to this model (blocks.4.sa.proj)",
        ),
        (
            pair("blocks.0.sa.proj", 64, 64),
            "blocks.0.sa.proj takes 64 channels to 64, the layer of the model 32 to 32",
        ),
        (
            FILE | {"head.weight": torch.ones(8, 32)},
            "1 of its keys belong to no LoRA layer (head.weight): what was",
        ),
        (
            FILE | {"blocks.0.sa.proj.base_layer.weight": torch.ones(2)},
            "it holds the model as well; save the LoRA",
        ),
        (
            FILE | {"blocks.0.sa.proj.bias": torch.ones(32)},
            "(blocks.0.sa.proj.bias): what was trained beside",
        ),
        (FILE | {"head.alpha": torch.tensor(1.0)}, "(head.alpha)"),
        (FILE | pair("lora_unet_blocks_0_sa_proj"), "two of its LoRA layers are for the same weight"),
        (FILE | {"blocks.0.sa.proj.lora_A.weight": torch.ones(2, 32)}, "more than one down half"),
        ({"blocks.0.sa.proj.lora_A.weight": torch.ones(2, 32)}, "blocks.0.sa.proj lacks its up half"),
        (
            {
                "blocks.0.sa.proj.lora_up.weight": torch.ones(32, 4),
                "blocks.0.sa.proj.lora_down.weight": torch.ones(2, 32),
            },
            "has halves of the ranks 4 and 2; expected the same",
        ),
        (
            {"head.lora_up.weight": torch.ones(8, 4, 1, 1), "head.lora_down.weight": torch.ones(4, 32, 3, 3)},
            "halves of 4 and 4 dimensions, as of a convolution",
        ),
        (
            {"head.lora_up.weight": torch.full((8, 2), math.nan), "head.lora_down.weight": torch.ones(2, 32)},
            "head holds NaN or infinity",
        ),
        (pair("head", 8) | {"head.alpha": torch.tensor(math.inf)}, "head.alpha is inf; expected a number"),
        (pair("head", 8) | {"head.alpha": torch.ones(2)}, "head.alpha has the shape [2]; expected a number"),
        ({"head.lora_up.weight": torch.ones(8, 2).int()}, "has the dtype int32; expected floating-point"),
        ({"head.hada_w1_a": torch.ones(2, 2)}, "head.hada_w1_a stands for LoHa, which is not read here"),
        ({"head.lokr_w1": torch.ones(2, 2)}, "LoKr"),
        ({"head.oft_blocks": torch.ones(2, 2)}, "OFT"),
        (pair("head", 8) | {"head.lora_mid.weight": torch.ones(2, 2)}, "convolutions in Tucker form"),
        (pair("head", 8) | {"head.lora_B.bias": torch.ones(8)}, "head.lora_B.bias stands for biases"),
        ({"lvl_embed.lora_embedding_A": torch.ones(2, 8)}, "embeddings"),
        ({"head.diff": torch.ones(8, 32)}, "whole weights"),
        (
            {"some.weight": torch.ones(2)},
            "it has keys such as some.weight and no LoRA; expected a LoRA for an Inf",
        ),
    ],
)
def test_what_cannot_be_used_as_a_whole_is_refused(file, expected, tmp_path):
    assert expected in refusal(tmp_path, {key: value.contiguous() for key, value in file.items()})


def test_a_model_is_no_lora_and_what_is_no_transformer_has_none(tmp_path):
    whole = tmp_path / "whole.safetensors"
    save(whole, checkpoint_of(MODEL).tensors, checkpoint_of(MODEL).header())
    with pytest.raises(CheckpointError, match="it has the tensors of an Infinity transformer and no LoRA"):
        found(whole)
    tokenizer = Checkpoint("tokenizer", "infinity", None, {}, "vae")
    with pytest.raises(CheckpointError, match="a LoRA for an Infinity image tokenizer is not read here"):
        read_lora(written(tmp_path, FILE), tokenizer)


def test_training_files_of_torch_are_read_and_their_oddities_refused(tmp_path):
    path = tmp_path / "lora.pth"
    torch.save({"step": 3, "state_dict": FILE}, path)
    assert len(found(path).layers) == 28
    loop: dict = {}
    loop["state_dict"] = loop
    for content in (loop, {"step": 3}, {}):
        torch.save(content, path)
        with pytest.raises(
            CheckpointError, match=r"lora\.pth: it holds no tensors|not a checkpoint|no dictionary"
        ):
            found(path)
    torch.save({"head.lora_up.weight": torch.ones(1).expand(8, 2)}, path)
    with pytest.raises(CheckpointError, match="repeats its elements"):
        found(path)


def test_the_converter_merges_what_then_loads_strictly(tmp_path, capsys):
    model, out = tmp_path / "model.safetensors", tmp_path / "merged.safetensors"
    checkpoint = checkpoint_of(MODEL)
    save(model, checkpoint.tensors, checkpoint.header())
    first, second = (
        styled(FILE, "kohya", tmp_path),
        written(tmp_path, random_lora(MODEL, seed=1), "b.safetensors"),
    )
    options = ["--lora", str(first), "--lora", f"{second}:-0.5"]
    assert convert_checkpoint.main([str(model), "--out", str(out), *options]) == 0
    assert "kohya.safetensors at 1: 28 layers of rank 2" in capsys.readouterr().out
    again = prepare(*read(out))
    expected = weights(checkpoint_of(MODEL), (found(first), 1.0), (found(second), -0.5))
    assert again.config == MODEL.config and again.tensors.keys() == expected.keys()
    assert all(torch.equal(again.tensors[key], tensor) for key, tensor in expected.items())
    build(again)
    assert convert_checkpoint.main([str(model), "--out", str(out), "--lora", str(model)]) == 1
    assert "no LoRA" in capsys.readouterr().err


def test_the_shipped_lora_is_small_and_fits_the_embedded_model(tmp_path):
    file = red()
    assert sum(tensor.numel() * tensor.element_size() for tensor in file.values()) < 200_000
    checkpoint = prepare(*read(EMBEDDED["transformer"]))
    assert read_lora(written(tmp_path, file), checkpoint).summary() == "30 layers of rank 4"
