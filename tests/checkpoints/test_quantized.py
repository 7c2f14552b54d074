"""Files with weights in 8 bits and scales: written, read as they come from elsewhere, refused by name."""

import json
from pathlib import Path

import convert_checkpoint
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from stagevar_core.checkpoints import CheckpointError, prepare, read
from stagevar_core.checkpoints.quantized import FORMATS, WRITTEN, layers_of, quantize, record
from stagevar_core.checkpoints.strict import FLOATS
from tests.support.tiny_files import write_models

LAYER = "blocks.1.ffn.fc1"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def stored(files) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a tiny transformer."""
    raw = read(files["transformer"])
    return dict(raw.tensors), dict(raw.metadata or {})


def quantized(tensors: dict[str, Tensor], name: str, prefix: str = "") -> dict[str, Tensor]:
    """The same tensors as ComfyUI saves them, under a prefix."""
    found = dict(tensors)
    for layer in layers_of(tensors):
        found[f"{layer}.weight"], found[f"{layer}.weight_scale"] = quantize(found[f"{layer}.weight"], name)
        found[f"{layer}.comfy_quant"] = record(name)
    return {prefix + key: tensor for key, tensor in found.items()}


def near(found: dict[str, Tensor], tensors: dict[str, Tensor], name: str) -> None:
    """Weights of blocks within half a step of the format, all others untouched."""
    assert found.keys() == tensors.keys()
    layers = {f"{layer}.weight" for layer in layers_of(tensors)}
    assert layers
    for key, tensor in found.items():
        if key not in layers:
            assert torch.equal(tensor, tensors[key])
            continue
        wide = tensors[key].float()
        if name == "int8_tensorwise":
            bound = wide.abs().amax(dim=1, keepdim=True) * (0.51 / 127 + 2**-8)
        else:
            mantissa = 3 if name == "float8_e4m3fn" else 2
            bound = wide.abs() * 2.0 ** -(mantissa + 1) + wide.abs().amax() / FORMATS[name].largest
        assert tensor.dtype == torch.bfloat16
        assert ((tensor.float() - wide).abs() <= bound * 1.01).all(), key


@pytest.mark.parametrize("asked", WRITTEN)
def test_the_converter_writes_what_it_reads(files, stored, asked: str, tmp_path: Path) -> None:
    """Half the bytes of bfloat16 for the matrices of the blocks; everything else is stored as it was."""
    out = tmp_path / "small.safetensors"
    options = ["--quantize", asked, "--out", str(out)]
    assert convert_checkpoint.main([str(files["transformer"]), *options]) == 0
    near(prepare(*read(out), kind="transformer").tensors, stored[0], WRITTEN[asked])
    with safe_open(str(out), "pt") as file:
        kinds = {key: file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118
    narrow = {f"{layer}.weight" for layer in layers_of(stored[0])}
    assert {key for key, kind in kinds.items() if kind == FORMATS[WRITTEN[asked]].dtype} == narrow
    assert {key for key, kind in kinds.items() if kind not in FLOATS} - narrow == {
        f"{layer}.comfy_quant" for layer in layers_of(stored[0])
    }


def test_only_transformers_are_quantized(files, tmp_path: Path, capsys) -> None:
    out = tmp_path / "x.safetensors"
    assert convert_checkpoint.main([str(files["tokenizer"]), "--quantize", "int8", "--out", str(out)]) == 1
    assert "--quantize is for transformers" in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("name", FORMATS)
def test_files_of_comfyui_load(stored, name: str, prefix: str, tmp_path: Path) -> None:
    tensors, metadata = stored
    path = tmp_path / "model.safetensors"
    save_file(quantized(tensors, name, prefix), path, metadata)
    near(prepare(*read(path)).tensors, tensors, name)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_formats_in_the_metadata_are_read(stored, prefix: str, tmp_path: Path) -> None:
    tensors, metadata = stored
    held = quantized(tensors, "float8_e4m3fn", prefix)
    records = {key: held.pop(key) for key in list(held) if key.endswith(".comfy_quant")}
    layers = {
        key.removesuffix(".comfy_quant"): json.loads(bytes(said.tolist())) for key, said in records.items()
    }
    said = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    save_file(held, tmp_path / "model.safetensors", {**metadata, **said})
    near(prepare(*read(tmp_path / "model.safetensors")).tensors, tensors, "float8_e4m3fn")


@pytest.mark.parametrize("mark", [torch.float8_e4m3fn, torch.float32], ids=str)
def test_scaled_fp8_of_the_community_loads(files, mark: torch.dtype, tmp_path: Path) -> None:
    """Text encoders are mostly found like this; scales of inputs say how to compute, not what weights are."""
    raw = read(files["text_encoder"])
    tensors, held = dict(raw.tensors), dict(raw.tensors)
    matrices = [key for key, tensor in tensors.items() if ".layer." in key and tensor.dim() == 2]
    for key in matrices:
        if "relative_attention_bias" in key:
            continue
        layer = key.removesuffix(".weight")
        held[key], held[f"{layer}.scale_weight"] = quantize(tensors[key], "float8_e4m3fn")
        held[f"{layer}.scale_input"] = torch.ones(())
    held["scaled_fp8"] = torch.zeros(2).to(mark)
    save_file(held, tmp_path / "t5.safetensors", raw.metadata)
    found = prepare(*read(tmp_path / "t5.safetensors"), kind="text_encoder").tensors
    expected = prepare(*read(files["text_encoder"])).tensors
    assert found.keys() == expected.keys()
    for key, tensor in found.items():
        assert torch.allclose(tensor.float(), expected[key].float(), rtol=0.07, atol=2e-3), key


def broken(held: dict[str, Tensor], fault: str) -> None:
    """Put one fault into a quantized file."""
    rows = len(held[f"{LAYER}.weight"])
    said = {
        "nvfp4": {"format": "nvfp4"},
        "rotated": {"format": "int8_tensorwise", "convrot": True},
        "no format": {"form": 1},
        "a list": [1],
    }
    if fault in said:
        held[f"{LAYER}.comfy_quant"] = torch.tensor(list(json.dumps(said[fault]).encode()), dtype=torch.uint8)
    elif fault == "no JSON":
        held[f"{LAYER}.comfy_quant"] = torch.tensor([255, 1], dtype=torch.uint8)
    elif fault == "a record of floats":
        held[f"{LAYER}.comfy_quant"] = torch.zeros(3)
    elif fault == "a long record":
        held[f"{LAYER}.comfy_quant"] = torch.zeros(5000, dtype=torch.uint8)
    elif fault == "no scale":
        del held[f"{LAYER}.weight_scale"]
    elif fault == "no weight":
        del held[f"{LAYER}.weight"]
    elif fault == "a scale of NaN":
        held[f"{LAYER}.weight_scale"] = torch.full((rows, 1), float("nan"))
    elif fault == "scales of other rows":
        held[f"{LAYER}.weight_scale"] = torch.ones(rows + 1, 1)
    elif fault == "a whole scale":
        held[f"{LAYER}.weight_scale"] = torch.ones((), dtype=torch.int64)
    else:
        held[f"{LAYER}.weight"] = held[f"{LAYER}.weight"].float()


FAULTS = {
    "nvfp4": "quantized as nvfp4; expected float8_e4m3fn, float8_e5m2, int8_tensorwise",
    "rotated": "rotated inputs (convrot)",
    "no format": "holds no format",
    "a list": "holds no format",
    "no JSON": "no JSON",
    "a record of floats": "[3] of float32",
    "a long record": "[5000] of uint8",
    "no scale": "without the scale of its weight",
    "no weight": "without its weight",
    "a scale of NaN": "NaN or infinity",
    "scales of other rows": "one for each of",
    "a whole scale": "of int64",
    "floats": "of float32; expected a matrix of int8",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_read_is_named(stored, fault: str) -> None:
    tensors, metadata = stored
    held = quantized(tensors, "int8_tensorwise")
    broken(held, fault)
    with pytest.raises(CheckpointError) as caught:
        prepare(held, metadata, "model.safetensors")
    message = str(caught.value)
    assert FAULTS[fault] in message and LAYER in message and message.startswith("model.safetensors: ")
    assert "Get the" in message


def test_a_few_bytes_do_not_stand_for_a_large_weight(stored) -> None:
    tensors, metadata = stored
    held = quantized(tensors, "int8_tensorwise")
    held[f"{LAYER}.weight"] = torch.zeros(1, dtype=torch.int8).expand(held[f"{LAYER}.weight"].shape)
    with pytest.raises(CheckpointError, match="repeats its elements"):
        prepare(held, metadata, "model.safetensors")


def test_integers_without_a_record_are_no_weights(stored) -> None:
    tensors, metadata = stored
    held = quantized(tensors, "int8_tensorwise")
    held = {
        key: tensor for key, tensor in held.items() if not key.endswith((".comfy_quant", ".weight_scale"))
    }
    with pytest.raises(CheckpointError, match="has the dtype int8"):
        prepare(held, metadata, "model.safetensors")


def test_a_weight_of_zeros_keeps_a_finite_scale() -> None:
    for name in FORMATS:
        stored, scale = quantize(torch.zeros(3, 4), name)
        assert not stored.float().any() and scale.isfinite().all()
