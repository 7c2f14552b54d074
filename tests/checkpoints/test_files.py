"""Reading checkpoint files, good and bad, and the conversion script."""

import argparse
import json
import os
import struct
from pathlib import Path

import convert_checkpoint
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from stagevar_core.checkpoints import (
    CheckpointError,
    load_text_encoder,
    load_tokenizer,
    load_transformer,
    prepare,
    read,
)
from stagevar_core.checkpoints.families_infinity import t5_shapes
from stagevar_core.checkpoints.header import KEY
from stagevar_core.conditioning.t5 import T5EncoderConfig
from tests.support.official_files import SMALL, SMALL_TOKENIZER, latent, small_tokenizer, small_transformer

FIXTURES = Path(__file__).parents[1] / "fixtures"
FIXTURE = FIXTURES / "infinity" / "ar_sampling_options" / "transformer.safetensors"


class Payload:
    """Unpickling it would create a file."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def shards(folder: Path, tensors: dict, suffix: str = "safetensors") -> list[Path]:
    """Write ``tensors`` as a sharded directory of three files and return them."""
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    names, weight_map = [f"{stem}-{n:05d}-of-00003.{suffix}" for n in (1, 2, 3)], {}
    for place, name in enumerate(names):
        part = dict(list(tensors.items())[place::3])
        save_file(part, folder / name) if suffix == "safetensors" else torch.save(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return [folder / name for name in names]


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_sharded_directory(tmp_path, suffix):
    files = shards(tmp_path, small_transformer(), suffix)
    for path in (tmp_path, files[1], *tmp_path.glob("*.json")):  # the folder, any shard, the index
        assert load_transformer(path).checkpoint.config == SMALL
    files[2].unlink()
    with pytest.raises(
        CheckpointError, match=f"1 of 3 shards are missing .{files[2].name}.*Download"
    ) as caught:
        read(tmp_path)
    assert tmp_path.name in str(caught.value)


def test_shard_indexes_that_do_not_fit(tmp_path):
    files = shards(tmp_path, small_transformer())
    index = tmp_path / "model.safetensors.index.json"
    names = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": {**names, "lost.weight": files[0].name}}))
    with pytest.raises(CheckpointError, match=r"1 tensors of .* are in no shard \(lost\.weight\)"):
        read(tmp_path)
    for bad in ("{}", "<html>", json.dumps({"weight_map": {"a": "../../secret.safetensors"}})):
        index.write_text(bad)
        with pytest.raises(CheckpointError, match="not a shard index"):
            read(tmp_path)
    index.unlink()
    assert prepare(*read(tmp_path)).config == SMALL  # the names of a whole set say as much
    files[1].unlink()
    with pytest.raises(CheckpointError, match=f"1 of 3 shards are missing .{files[1].name}"):
        read(tmp_path)


def test_directory_with_one_file(tmp_path):
    save_file(small_transformer(), tmp_path / "weights.safetensors")
    assert prepare(*read(tmp_path)).config == SMALL
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match="found no model files"):
        read(tmp_path)


@pytest.mark.parametrize("archive", [True, False])
def test_pytorch_files_new_and_old(tmp_path, archive):
    path = tmp_path / "model.pth"
    torch.save(dict(small_transformer()), path, _use_new_zipfile_serialization=archive)
    assert prepare(*read(path)).config == SMALL


def header(table: dict | bytes) -> bytes:
    raw = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(raw)) + raw


BAD_FILES = {
    "empty.safetensors": (b"", "the file is empty"),
    "empty.pth": (b"", "the file is empty"),
    "page.safetensors": (b"<!DOCTYPE html><html><body>403</body></html>", "this is a web page"),
    "page.pth": (b"\n<html></html>", "this is a web page"),
    "pointer.safetensors": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "a Git LFS pointer"),
    "gguf.safetensors": (b"GGUF\x03\x00\x00\x00" + bytes(64), "a GGUF file"),
    "noise.safetensors": (b"\x17" * 100, "its content is unknown; expected safetensors"),
    "noise.pth": (b"\x17" * 100, "not a PyTorch file"),
    "named.pth": (header({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}), r"Rename it to \."),
    "named.safetensors": (b"PK\x03\x04" + bytes(64), "content is a PyTorch file.*Rename it to .pth"),
    "cut.safetensors": (
        header({"w": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}) + bytes(8),
        "the file is cut off, .* bytes are there; download it again",
    ),
    "header_cut.safetensors": (struct.pack("<Q", 5000) + b'{"w": {', "the file is cut off"),
    "header_json.safetensors": (header(b'{"w": nonsense}'), "damaged safetensors header"),
    "header_type.safetensors": (header({"w": [1, 2]}), "damaged safetensors header"),
    "dtype.safetensors": (
        header({"w": {"dtype": "Q9", "shape": [1], "data_offsets": [0, 4]}}) + bytes(4),
        "damaged safetensors file",
    ),
    "cut.pth": (b"PK\x03\x04" + bytes(500), "the file is cut off"),
    "old_cut.pt": (b"\x80\x02" + bytes(5), "damaged PyTorch file|without running code"),
    "model.gguf": (b"anything", "cannot read .gguf; expected .safetensors"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_give_one_clear_message(tmp_path, name):
    content, message = BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read(path)
    assert name in str(caught.value)


def test_files_cut_at_any_place(tmp_path):
    save_file(small_transformer(), tmp_path / "whole.safetensors")
    torch.save(dict(small_transformer()), tmp_path / "whole.pth")
    for name in ("whole.safetensors", "whole.pth"):
        content = (tmp_path / name).read_bytes()
        for share in (0.001, 0.3, 0.999):
            path = tmp_path / f"cut_{name}"
            path.write_bytes(content[: int(len(content) * share)])
            with pytest.raises(CheckpointError, match=f"cut_{name}: .*(cut off|damaged)"):
                read(path)


def test_missing_file_and_wrong_content(tmp_path):
    with pytest.raises(CheckpointError, match=r"gone\.safetensors: no such file"):
        read(tmp_path / "gone.safetensors")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds a list; expected a dict of tensors"):
        read(tmp_path / "list.pth")


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("function", [os.mkdir, exec, "namespace"])
def test_code_in_checkpoints_never_runs(tmp_path, capsys, archive, function):
    marker, path = tmp_path / "ran", tmp_path / "model.pth"
    if function == "namespace":  # what honest training checkpoints hold
        extra = argparse.Namespace(lr=1e-4)
    else:
        argument = str(marker) if function is os.mkdir else f"import os; os.mkdir({str(marker)!r})"
        extra = Payload(function, argument)
    content = {"trainer": {"gpt_fsdp": dict(small_transformer())}, "args": extra}
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    with pytest.raises(
        CheckpointError, match=r"code in checkpoints is never run.*convert_checkpoint\.py model\.pth"
    ):
        read(path)
    status = convert_checkpoint.main([str(path)])
    assert not marker.exists()
    output = capsys.readouterr()
    if (
        archive and function is not os.mkdir
    ):  # modules that reach the system stay blocked even as placeholders
        assert status == 0 and "not loaded: Python objects" in output.out
        assert prepare(*read(tmp_path / "model.safetensors")).config == SMALL
    else:
        assert status == 1 and "without running its code" in output.err


def test_convert_script(tmp_path, capsys):
    source, out = tmp_path / "source.safetensors", tmp_path / "out.safetensors"
    official = load_file(FIXTURE) if FIXTURE.is_file() else dict(small_transformer())
    save_file(official, source)
    arguments = [str(source), "--out", str(out), "--title", "Mine"]
    assert convert_checkpoint.main(arguments) == 0
    printed = capsys.readouterr().out
    for part in ("transformer", "infinity", "InfinityConfig(depth=4", "MB"):
        assert part in printed
    before, after = load_transformer(source), load_transformer(out)
    assert after.checkpoint.title == "Mine"
    assert after.checkpoint.config == before.checkpoint.config
    assert torch.equal(latent(before.module), latent(after.module))
    assert convert_checkpoint.main([*arguments, "--dtype", "bfloat16"]) == 0
    assert load_file(out)["head.weight"].dtype == torch.bfloat16


def test_convert_script_on_shards_and_tokenizers(tmp_path, capsys):
    folder = tmp_path / "sharded"
    folder.mkdir()
    shards(folder, small_transformer())
    assert convert_checkpoint.main([str(folder)]) == 0
    assert load_transformer(tmp_path / "sharded.safetensors").checkpoint.config == SMALL
    torch.save({"vae": dict(small_tokenizer()), "disc": {"w": torch.zeros(2)}}, tmp_path / "vae.pth")
    assert convert_checkpoint.main([str(tmp_path / "vae.pth"), "--dtype", "float16"]) == 0
    assert "not loaded: disc (1 tensors)" in capsys.readouterr().out
    assert load_tokenizer(tmp_path / "vae.safetensors").checkpoint.config == SMALL_TOKENIZER


def test_convert_script_refuses_with_a_message(tmp_path, capsys):
    path = tmp_path / "page.safetensors"
    path.write_bytes(b"<html>")
    assert convert_checkpoint.main([str(path), "--out", str(tmp_path / "out.safetensors")]) == 1
    assert "this is a web page" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        convert_checkpoint.main([str(path)])  # would overwrite its own source
    assert "is the checkpoint itself" in capsys.readouterr().err


def test_metadata_is_one_json_object(tmp_path):
    save_file(small_transformer(), tmp_path / "source.safetensors")
    convert_checkpoint.main(
        [str(tmp_path / "source.safetensors"), "--out", str(tmp_path / "out.safetensors")]
    )
    values = json.loads(read(tmp_path / "out.safetensors").metadata[KEY])
    assert values["format"] == 1 and values["kind"] == "transformer"
    assert "trained" not in values  # the configuration implies the sizes


def test_text_encoder_takes_its_vocabulary_along(tmp_path):
    folder = tmp_path / "t5"
    folder.mkdir()
    vocabulary = Tokenizer(WordLevel({"</s>": 0, "<unk>": 1, "red": 2, "ball": 3}, unk_token="<unk>"))
    vocabulary.pre_tokenizer = Whitespace()
    config = T5EncoderConfig(
        vocab_size=8, d_model=16, d_ff=24, d_kv=4, num_heads=2, num_layers=2, feed_forward_proj="relu"
    )
    torch.manual_seed(0)
    save_file(
        {name: torch.randn(shape) for name, shape in t5_shapes(config).items()}, folder / "model.safetensors"
    )
    with pytest.raises(ValueError, match="has no vocabulary"):
        load_text_encoder(folder)
    vocabulary.save(str(folder / "tokenizer.json"))
    out = tmp_path / "encoder.safetensors"
    assert convert_checkpoint.main([str(folder), "--out", str(out)]) == 0
    before, after = load_text_encoder(folder), load_text_encoder(out)
    assert before.config == after.config == config
    (expected,), (given,) = before.encode(["red ball"]), after.encode(["red ball"])
    assert expected.shape == (3, 16) and torch.equal(expected, given)
