"""Files that no one trained: odd prefixes, tensors that are no weights, odd numbers, endless nesting."""

import json
import time
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from stagevar_core.checkpoints import CheckpointError, build, load_text_encoder, prepare, read, save
from stagevar_core.checkpoints.families_clip import clip_shapes
from stagevar_core.checkpoints.families_infinity import t5_shapes
from stagevar_core.checkpoints.header import KEY, dump, record
from stagevar_core.pipeline import Pipeline
from tests.support import official_var
from tests.support.official_files import small_tokenizer, small_transformer
from tests.support.small_files import CLIP, CODES, FILES, T5, VAR, zeros
from tests.support.tiny_files import vocabulary

PREFIXES = (
    *("t5.transformer.", "t5xxl.transformer.", "text_encoders.t5xxl.transformer.", "transformer."),
    *("text_encoder.", "tokenizer.", "diffusion_model.", "model.diffusion_model.", "var.", "vae."),
    *("first_stage_model.", "module.", "_orig_mod.module.", "state_dict.model.", "clip_h.transformer."),
)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", FILES)
def test_known_prefixes(name: str, prefix: str) -> None:
    raw, kind = FILES[name](), name.split()[1]
    plain = prepare(raw, None, name, kind=kind)
    file = {f"{prefix}{key}": tensor for key, tensor in raw.items()}
    file[f"{prefix.partition('.')[0]}.logit_scale"] = torch.zeros(())
    checkpoint = prepare(file, None, name, kind=kind)
    assert checkpoint.config == plain.config and not set(checkpoint.notes) - set(plain.notes)
    assert all(torch.equal(checkpoint.tensors[key], tensor) for key, tensor in plain.tensors.items())


@pytest.mark.parametrize("prefix", ["", "model.", "module.model."])
@pytest.mark.parametrize("name", FILES)
def test_a_lightning_checkpoint_with_its_loss(name: str, prefix: str) -> None:
    raw, kind = FILES[name](), name.split()[1]
    weights = {f"{prefix}{key}": tensor for key, tensor in raw.items()}
    losses = {"loss.discriminator.main.0.weight": torch.zeros(3), "loss.logvar": torch.zeros(())}
    file = {"state_dict": weights | losses, "pytorch-lightning_version": "2.1", "callbacks": {}, "epoch": 3}
    checkpoint = prepare(file, None, name, kind=kind)
    assert checkpoint.config == prepare(raw, None, name).config
    assert any("loss" in note and "(2 tensors)" in note for note in checkpoint.notes)


def test_an_averaged_copy_is_the_second_choice() -> None:
    raw = dict(small_transformer())
    ema = {f"model_ema.{key}": torch.zeros_like(tensor) for key, tensor in raw.items()}
    checkpoint = prepare(ema | {f"model.{key}": tensor for key, tensor in raw.items()}, None, "both")
    assert torch.equal(checkpoint.tensors["head.weight"], raw["head.weight"])
    assert checkpoint.notes == (f"model_ema ({len(raw)} tensors)",)


def test_one_file_with_all_parts() -> None:
    file = {f"model.diffusion_model.{key}": tensor for key, tensor in small_transformer().items()}
    file |= {f"first_stage_model.tokenizer.{key}": tensor for key, tensor in small_tokenizer().items()}
    file |= {f"cond_stage_model.t5.transformer.{key}": tensor for key, tensor in zeros(t5_shapes(T5)).items()}
    for kind in ("transformer", "tokenizer", "text_encoder"):
        assert prepare(file, None, "all", kind=kind).kind == kind


@pytest.mark.parametrize("name", FILES)
def test_unknown_prefixes_are_named(name: str) -> None:
    title = {"infinity text_encoder": "T5 text encoder", "star text_encoder": "CLIP text encoder"}.get(name)
    file = {f"foo.bar.{key}": tensor for key, tensor in FILES[name]().items()}
    with pytest.raises(CheckpointError, match=r"All keys begin with `foo\.bar\.`") as caught:
        prepare(file, None, name)
    assert (title or name.split()[1]).lower() in str(caught.value).lower()
    with pytest.raises(CheckpointError, match=r"of \d+ keys begin with `foo\.bar\.`"):
        prepare(file | {"other.weight": torch.zeros(2)}, None, name)
    with pytest.raises(CheckpointError, match=r"All keys begin with `a\.b\.`"):
        prepare({"a.b.c": torch.zeros(1), "a.b.d": torch.zeros(1)}, None, name)


def test_the_header_travels_as_a_tensor() -> None:
    checkpoint = prepare(small_tokenizer(), None, "small")
    header = replace(checkpoint.header(), config={**checkpoint.config.to_dict(), "groups": 8})
    file = {f"tokenizer.{key}": tensor for key, tensor in checkpoint.tensors.items()}
    assert prepare(file | {KEY: record(header)}, None, "saved").config.groups == 8
    for bad in (
        torch.zeros(3),
        torch.zeros((), dtype=torch.uint8),
        torch.zeros(1, dtype=torch.uint8).expand(9),
    ):
        with pytest.raises(CheckpointError, match="saved: its StageVAR metadata has a bad"):
            prepare(file | {KEY: bad}, None, "saved")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        prepare(file | {KEY: torch.full((4,), 255, dtype=torch.uint8)}, None, "saved")


# ---------------------------------------------------------------------------------------- what is stored


def odd(tensor: Tensor) -> dict[str, Tensor]:
    """What may lie where a weight belongs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "int8": tensor.to(torch.int8),
            "int64": tensor.to(torch.int64),
            "uint16": torch.zeros(tensor.shape, dtype=torch.uint16),
            "bool": tensor > 0,
            "complex64": tensor.to(torch.complex64),
            "float8_e8m0fnu": tensor.to(torch.float8_e8m0fnu),
            "sparse_coo": tensor.to_sparse(),
            "sparse_csr": tensor.to_sparse_csr(),
            "nested": torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
            "qint8": torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
            "meta device": tensor.to("meta"),
            "repeats its elements": torch.zeros(1, 1).expand(tensor.shape),
        }


@pytest.mark.parametrize("what", odd(torch.zeros(2, 2)))
def test_tensors_that_are_no_weights(what: str, tmp_path: Path) -> None:
    raw = dict(small_transformer())
    raw["head.weight"] = odd(raw["head.weight"])[what]
    # The old format has no names for some of them.
    for archive in (True,) if what in ("uint16", "float8_e8m0fnu", "nested") else (True, False):
        torch.save({"model": raw}, tmp_path / "odd.pth", _use_new_zipfile_serialization=archive)
        with pytest.raises(CheckpointError, match=what) as caught:
            prepare(*read(tmp_path / "odd.pth"))
        assert "odd.pth" in str(caught.value) and "head.weight" in str(caught.value)


def test_buffers_that_nothing_reads_may_be_anything() -> None:
    raw = dict(small_transformer())
    raw["lvl_1L"], raw["attn_bias_for_masking"] = torch.zeros(3, dtype=torch.bool), torch.eye(3).to_sparse()
    assert prepare(raw, None, "buffers").kind == "transformer"


def test_many_views_of_one_storage_are_refused() -> None:
    raw = dict(small_transformer())
    shared = torch.zeros(max(tensor.numel() for tensor in raw.values()))
    views = {key: shared[: tensor.numel()].view(tensor.shape) for key, tensor in raw.items()}
    with pytest.raises(CheckpointError, match="its tensors stand for"):
        prepare(views, None, "views")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_floats_of_every_width_load(dtype: torch.dtype, tmp_path: Path) -> None:
    save_file({key: tensor.to(dtype) for key, tensor in small_transformer().items()}, tmp_path / "m.sft")
    checkpoint = prepare(*read(tmp_path / "m.sft"))
    save(tmp_path / "again.safetensors", checkpoint.tensors, checkpoint.header())
    assert build(checkpoint).head.weight.dtype == torch.float32
    assert prepare(*read(tmp_path / "again.safetensors")).tensors["head.weight"].dtype == dtype


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_archives_that_were_packed_again(method: int, tmp_path: Path) -> None:
    raw = {key: tensor.contiguous() for key, tensor in small_transformer().items()}
    torch.save(raw, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as old,
        zipfile.ZipFile(tmp_path / "m.pth", "w", method) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    if method == zipfile.ZIP_BZIP2:  # a method that torch does not unpack
        with pytest.raises(CheckpointError, match=r"m\.pth"):
            read(tmp_path / "m.pth")
        return
    found = read(tmp_path / "m.pth").tensors
    assert found.keys() == raw.keys() and all(torch.equal(found[key], raw[key]) for key in raw)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_archives_whose_records_are_cut(method: int, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1000), "b": torch.ones(5000)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as old,
        zipfile.ZipFile(tmp_path / "m.pth", "w", method) as new,
    ):
        for entry in old.infolist():
            cut = 40 if entry.filename.endswith("data/0") else None
            new.writestr(entry.filename, old.read(entry)[:cut])
    with pytest.raises(CheckpointError, match=r"m\.pth: damaged PyTorch file"):
        read(tmp_path / "m.pth")


def test_an_archive_that_unpacks_without_bound_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.pth", "w", zipfile.ZIP_DEFLATED) as new:
        new.writestr("m/data.pkl", b"\0" * 120_000_000)
    with pytest.raises(CheckpointError, match="bytes that unpack to 120,000,000"):
        read(tmp_path / "m.pth")


# ------------------------------------------------------------------------------------------- odd numbers

HEADERS = {
    "infinite": '{"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1e999]}}',
    "nan": '{"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, NaN]}}',
    "digits": '{"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, ' + "9" * 5000 + "]}}",
    "negative": '{"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}',
    "deep": '{"w": ' + "[" * 50_000 + "]" * 50_000 + "}",
    "empty": "{}",
}


@pytest.mark.parametrize("name", HEADERS)
def test_safetensors_headers_with_odd_numbers(name: str, tmp_path: Path) -> None:
    raw = HEADERS[name].encode()
    (tmp_path / "m.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(8))
    with pytest.raises(
        CheckpointError, match=r"m\.safetensors: (damaged|the file is cut off|no known)"
    ) as caught:
        prepare(*read(tmp_path / "m.safetensors"))
    assert len(str(caught.value)) < 3000


def test_block_numbers_of_any_length() -> None:
    for number in ("9" * 5000, "9" * 20):
        raw = dict(small_transformer())
        raw[f"block_chunks.0.module.{number}.sa.q_bias"] = torch.zeros(32)
        with pytest.raises(CheckpointError, match="the block number 9") as caught:
            prepare(raw, None, "blocks.pth")
        assert "blocks.pth" in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("chunks", [1, 300])
def test_thousands_of_blocks_are_refused_at_once(chunks: int) -> None:
    raw = dict(small_transformer(chunks=None if chunks == 1 else 2))
    key = "blocks.{}.sa.q_bias" if chunks == 1 else "block_chunks.{}.module.{}.sa.q_bias"
    for place in range(2000):
        raw[key.format(*([place] if chunks == 1 else [place % chunks, place]))] = torch.zeros(32)
    started = time.perf_counter()
    with pytest.raises(CheckpointError, match="expected at most 1024"):
        prepare(raw, None, "many.pth")
    assert time.perf_counter() - started < 20


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("shape", [(), (1, 1, 1, 1, 1), (0,)])
def test_tensors_without_or_with_too_many_dimensions(name: str, shape: tuple[int, ...]) -> None:
    raw = FILES[name]()
    for key in list(raw)[:: max(1, len(raw) // 12)]:
        try:
            prepare({**raw, key: torch.ones(shape)}, None, "odd.pth")
        except CheckpointError as error:
            assert "odd.pth" in str(error)


ODD_LEVELS = {
    "bool": torch.zeros(1, 66, dtype=torch.bool),
    "complex": torch.zeros(1, 66, dtype=torch.complex64),
    "float8": torch.zeros(1, 66).to(torch.float8_e4m3fn),
    "sparse": torch.eye(66).to_sparse(),
    "scalar": torch.zeros((), dtype=torch.int64),
    "infinite": torch.full((1, 66), float("inf")),
    "huge": torch.full((1, 66), 2**62),
    "falling": torch.tensor([[0] * 36 + [1] * 16 + [2] * 9 + [3] * 4 + [4]]),
}


@pytest.mark.parametrize("what", ODD_LEVELS)
def test_levels_of_odd_dtypes(what: str) -> None:
    raw = FILES["var transformer"]()
    raw["lvl_1L"] = ODD_LEVELS[what]
    with pytest.raises(CheckpointError, match=r"odd\.pth: .*side lengths of its scales are not known"):
        prepare(raw, None, "odd.pth")
    raw["lvl_1L"] = torch.tensor([[i for i, side in enumerate(VAR.sides) for _ in range(side**2)]]).half()
    assert prepare(raw, None, "half.pth").config.sides == VAR.sides


BAD_DEFAULTS: list[dict[str, Any]] = [
    *({"max_tokens": value} for value in ("abc", 0, -3, 1.5, 10**400, [7], None, True)),
    *({"cfg": value} for value in ([], [1.0] * 3, [1.0] * 500, ["a"] * 13, {}, "3", 10**400, True)),
    *({"temperature": value} for value in ([], [1.0] * 2, [0.0] * 13)),
]


@pytest.mark.parametrize("defaults", BAD_DEFAULTS, ids=lambda value: repr(value)[:40])
def test_defaults_of_wrong_types_and_lengths(defaults: dict[str, Any]) -> None:
    checkpoint = prepare(small_transformer(), None, "small")
    header = replace(checkpoint.header(), defaults=defaults)
    with pytest.raises(CheckpointError, match=rf"bad\.safetensors: .*defaults\.{next(iter(defaults))}"):
        prepare(checkpoint.tensors, dump(header), "bad.safetensors")
    right = replace(checkpoint.header(), defaults={"cfg": [1.0] * 13, "max_tokens": 64.0})
    assert prepare(checkpoint.tensors, dump(right), "good").defaults["max_tokens"] == 64


SIDES = [
    [0, 1, 2, 3, 4],
    [2, 2, 3, 4, 6],
    [1, 2, 3, 4],
    [1, 2, 3, 6, 4],
    [1, 2, 3, 4, 10**6],
    [1] * 300,
    [True],
]


@pytest.mark.parametrize("sides", SIDES, ids=lambda sides: str(sides)[:30])
@pytest.mark.parametrize("family", ["var", "star"])
def test_sides_that_cannot_be_are_refused_at_loading(family: str, sides: list[int]) -> None:
    checkpoint = prepare(FILES[f"{family} transformer"](), None, family)
    config = {**checkpoint.config.to_dict(), "sides": sides if family == "var" else [*sides, 7]}
    header = replace(checkpoint.header(), config=config)
    with pytest.raises(CheckpointError, match=r"bad\.safetensors: "):
        prepare(checkpoint.tensors, dump(header), "bad.safetensors")


ODD_CONFIGS: list[tuple[str, str, Any]] = [
    ("infinity text_encoder", "feed_forward_proj", "gated-nonsense"),
    ("infinity text_encoder", "relative_attention_max_distance", 3),
    ("infinity text_encoder", "layer_norm_epsilon", 1e-300),
    ("star text_encoder", "hidden_act", "__class__"),
    ("star text_encoder", "num_attention_heads", 7),
    ("star transformer", "rope_norm", 5e-324),
    ("star transformer", "rope_base", 1e300),
    ("infinity tokenizer", "groups", 7),
    ("infinity transformer", "patch", 1 << 20),
]


@pytest.mark.parametrize(("name", "field", "value"), ODD_CONFIGS, ids=lambda value: str(value)[:24])
def test_metadata_that_no_model_computes(name: str, field: str, value: object) -> None:
    checkpoint = prepare(FILES[name](), None, name)
    header = replace(checkpoint.header(), config={**checkpoint.config.to_dict(), field: value})
    with pytest.raises(CheckpointError, match=r"bad\.safetensors: "):
        prepare(checkpoint.tensors, dump(header), "bad.safetensors")


def test_a_vocabulary_that_is_larger_than_the_table(tmp_path: Path) -> None:
    narrow = replace(T5, vocab_size=5)
    checkpoint = prepare(zeros(t5_shapes(narrow)), None, "t5")
    header = replace(checkpoint.header(), tokenizer_json=vocabulary())
    wanted = r"the vocabulary has 10 tokens, the text encoder 5"
    with pytest.raises(CheckpointError, match=rf"t5\.safetensors: {wanted}"):
        prepare(checkpoint.tensors, dump(header), "t5.safetensors")
    save_file(zeros(t5_shapes(narrow)), tmp_path / "t5.safetensors")
    (tmp_path / "tokenizer.json").write_text(vocabulary())
    with pytest.raises(CheckpointError, match=rf"t5\.safetensors: {wanted}"):
        load_text_encoder(tmp_path / "t5.safetensors")
    gaps = json.loads(vocabulary())
    gaps["model"]["vocab"]["far"] = 10**6
    header = replace(checkpoint.header(), tokenizer_json=json.dumps(gaps))
    with pytest.raises(CheckpointError, match="the vocabulary has 1000001 tokens"):
        prepare(checkpoint.tensors, dump(header), "t5.safetensors")


# --------------------------------------------------------------------------------------------- bounded time


def test_a_file_that_holds_itself() -> None:
    content: dict[str, Any] = {
        "model": {"x": torch.zeros(1)},
        **{f"w{i}": torch.zeros(1) for i in range(500)},
    }
    for name in ("state_dict", "module", "trainer", "ema", "optimizer", *(f"part{i}" for i in range(40))):
        content[name] = content if len(name) % 2 else content["model"]
        content["model"][name] = content
    started = time.perf_counter()
    with pytest.raises(CheckpointError, match="no known model"):
        prepare(content, None, "ring.pth")
    content["model"] = {**small_transformer(), "self": content}
    assert prepare(content, None, "ring.pth").kind == "transformer"
    assert time.perf_counter() - started < 10


def test_keys_with_endless_prefixes() -> None:
    started = time.perf_counter()
    chain = "module." * 150_000
    with pytest.raises(CheckpointError, match="no known model") as caught:
        prepare({f"{chain}w": torch.zeros(1), "a." * 150_000 + "w": torch.zeros(1)}, None, "long.pth")
    assert len(str(caught.value)) < 3000
    raw = {f"{chain}{key}": tensor for key, tensor in small_tokenizer().items()}
    assert prepare(raw, None, "long.pth").kind == "tokenizer"
    assert time.perf_counter() - started < 30


def test_the_message_for_an_unknown_file_is_short_and_readable() -> None:
    keys = ["nothing.known", "\n\x1b[31mred", "y" * 100_000, *(f"k{i}" for i in range(1000))]
    with pytest.raises(CheckpointError) as caught:
        prepare(dict.fromkeys(keys, torch.zeros(1)), None, "odd.pth")
    lines = str(caught.value).splitlines()
    assert len(lines) <= 4 and all(line.isprintable() and len(line) < 700 for line in lines)
    assert not set(r"\|?*[]^$") & set(str(caught.value).split("Expected")[1])


def test_a_star_file_with_another_number_of_scales_is_refused_by_the_pipeline(tmp_path: Path) -> None:
    torch.save(FILES["star transformer"](), tmp_path / "star.pth")
    vq = replace(CODES, multipliers=(1, 1, 1, 1, 1))
    torch.save(dict(official_var.tokenizer(vq, device="cpu")), tmp_path / "vae.pth")
    save_file(zeros(clip_shapes(CLIP)), tmp_path / "clip.safetensors")
    with pytest.raises(ValueError, match="does not say which sizes it was trained on"):
        Pipeline.load(
            tmp_path / "star.pth", tmp_path / "vae.pth", tmp_path / "clip.safetensors", device="cpu"
        )
