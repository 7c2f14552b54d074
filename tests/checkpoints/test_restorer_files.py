"""VARestorer's files: published and merged, strict, and told apart from what generates."""

from dataclasses import replace

import pytest
import torch

from stagevar_core.checkpoints import (
    CheckpointError,
    as_restoring,
    build,
    check_restores,
    prepare,
    read,
    save,
)
from stagevar_core.models.infinity_config import INFINITY_2B
from stagevar_core.schedule import infinity_aspect_table
from tests.support import official_files as official
from tests.support.official_restorer import TINY, merged, restorer
from tests.support.sources import ROOT

SIZES = infinity_aspect_table().restrict([1.0], ["0.25M"])


def small(**options) -> dict:
    """A published file with real numbers."""
    return dict(restorer(TINY, rank=4, chunks=2, device="cpu", **options))


def refusal(tensors: dict) -> str:
    with pytest.raises(CheckpointError) as caught:
        prepare(tensors, None, "varestorer.pth")
    message = str(caught.value)
    assert message.startswith("varestorer.pth: ") and len(message.splitlines()) < 4
    return message


@pytest.mark.parametrize("chunks", [8, None])
def test_the_published_file_at_full_size(chunks):
    file = restorer(INFINITY_2B, chunks=chunks)
    lora = sum(tensor.numel() for key, tensor in file.items() if ".lora_" in key)
    assert lora == 32 * 851_968  # 27.3 M, as published
    checkpoint = prepare({"state_dict": {f"module.{key}": tensor for key, tensor in file.items()}}, None, "v")
    assert (checkpoint.family, checkpoint.config) == ("infinity", replace(INFINITY_2B, restores=True))
    assert checkpoint.trained == SIZES
    module = build(checkpoint, dtype=torch.bfloat16)
    assert module.blocks[31].cross_attn.kv.weight.dtype == torch.bfloat16


def test_the_published_file_becomes_what_is_merged():
    file = small()
    ours, theirs = prepare(file, None, "raw").tensors, prepare(merged(file), None, "merged").tensors
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.allclose(ours[name], tensor, atol=1e-6), name
    assert ours["blocks.1.cross_attn.kv.bias"].abs().max() == 0
    assert ours["text_pool.kv.bias"].abs().max() > 0 and ours["blocks.1.self_attn.qkv.bias"].abs().max() > 0
    assert ".linear." in str(list(file)) and len(file) == len(small()), "the file's own tensors stay"


def test_half_precision_files_are_added_up_in_float32():
    half = {key: tensor.half() for key, tensor in small().items()}
    expected = prepare(merged({key: tensor.float() for key, tensor in half.items()}), None, "merged").tensors
    found = prepare(half, None, "half").tensors["blocks.0.self_attn.qkv.weight"]
    assert torch.allclose(found, expected["blocks.0.self_attn.qkv.weight"], atol=1e-7)


def test_a_converted_file_says_what_it_is_for(tmp_path):
    checkpoint = prepare(small(), None, "raw")
    save(tmp_path / "restorer.safetensors", checkpoint.tensors, checkpoint.header())
    again = prepare(*read(tmp_path / "restorer.safetensors"))
    assert (again.trained, again.config) == (SIZES, checkpoint.config) and again.config.restores


def test_a_merged_file_has_to_be_told():
    checkpoint = prepare(merged(small()), None, "merged.pth")
    assert not checkpoint.config.restores
    with pytest.raises(CheckpointError, match="merged.pth.*not known to restore.*--task restore"):
        check_restores(checkpoint, True)
    told = as_restoring(checkpoint)
    assert told.config.restores and told.trained == SIZES
    check_restores(told, True)
    with pytest.raises(CheckpointError, match="restores pictures, which StageVAR Restore"):
        check_restores(told, False)
    with pytest.raises(CheckpointError, match="vae: .*infinity tokenizer restore no pictures"):
        as_restoring(prepare(official.tokenizer(official.SMALL_TOKENIZER), None, "vae"))


@pytest.mark.parametrize("part", ["linear", "lora_down", "lora_up"])
def test_a_missing_part_is_named(part):
    file = small()
    del file[f"block_chunks.1.module.0.ca.proj.{part}.weight"]
    assert f"block_chunks.1.module.0.ca.proj.{part}.weight" in refusal(file)


def test_blocks_without_lora_layers_are_refused():
    file = small()
    plain = merged(file)
    mixed = {key: tensor for key, tensor in file.items() if not key.startswith("block_chunks.1")}
    mixed |= {key: tensor for key, tensor in plain.items() if key.startswith("block_chunks.1")}
    assert "15 LoRA layers" in refusal(mixed) and "block_chunks.1" in refusal(mixed)


def test_a_missing_block_is_refused():
    file = {key: tensor for key, tensor in small().items() if not key.startswith("block_chunks.0.module.0")}
    refusal(file)


@pytest.mark.parametrize("layer", ["sa.mat_qkv", "ca.mat_kv"])
def test_another_rank_than_the_rest_is_refused(layer):
    file, place = small(), f"block_chunks.1.module.0.{layer}"
    other = restorer(TINY, rank=6, chunks=2, device="cpu")
    for part in ("lora_down", "lora_up"):
        file[f"{place}.{part}.weight"] = other[f"{place}.{part}.weight"]
    message = refusal(file)
    assert place in message and "rank 4" in message
    file[f"{place}.lora_up.weight"] = small()[f"{place}.lora_up.weight"]  # ranks of one layer differ
    assert place in refusal(file)
    file[f"{place}.lora_up.weight"] = file[f"{place}.lora_down.weight"] = torch.zeros(())
    assert place in refusal(file)


def test_a_lora_alone_is_no_model():
    assert "LoRA" in refusal({key: tensor for key, tensor in small().items() if ".lora_" in key})


def test_the_converter_merges_and_takes_the_task(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import convert_checkpoint

    save_file(small(), tmp_path / "raw.safetensors")
    save_file(merged(small()), tmp_path / "plain.safetensors")
    written = []
    for name, options in (("raw", []), ("plain", ["--task", "restore"])):
        out = tmp_path / f"{name}_out.safetensors"
        assert (
            convert_checkpoint.main([str(tmp_path / f"{name}.safetensors"), "--out", str(out), *options]) == 0
        )
        written.append(prepare(*read(out)))
    assert all(each.config.restores for each in written)
    assert written[0].trained == written[1].trained == SIZES
    for name, tensor in written[0].tensors.items():
        assert torch.allclose(written[1].tensors[name], tensor, atol=1e-6)
