"""Checks of the loaders inside ComfyUI's own process; `test_loaders.py` starts it.

python inside_loaders.py COMFYUI PACK MODELS      prints one line per check that passed
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pack_loader import load_pack

COMFYUI, PACK, MODELS = sys.argv[1:4]
sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, COMFYUI)
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
FIRST = Path(MODELS)  # the first root of every kind
SECOND = FIRST / "elsewhere"  # the second


def write(folder: Path, names: Iterable[str], index: str | None = None, shards: tuple[str, ...] = ()) -> Path:
    """Small files that nobody reads, and an index that names ``shards``, all of them unless told."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"tensors of " + str(folder / name).encode())
    if index:
        wanted = shards or tuple(names)
        table = {"weight_map": {f"tensor.{at}": name for at, name in enumerate(wanted)}}
        (folder / index).write_text(json.dumps(table), encoding="utf-8")
    return folder


def refused(action: Any, *words: str) -> str:
    """The message with which the action fails, which has these words."""
    try:
        action()
    except (ValueError, AttributeError) as error:
        assert isinstance(error, ValueError) and all(word in str(error) for word in words), error
        assert len(str(error).splitlines()) <= 10, error
        return str(error)
    raise AssertionError(f"nothing was refused, expected {words}")


def check_sets(files: Any) -> None:
    """Sets of shards are offered as folder and as first shard, whatever their index is called, or without."""
    models = FIRST / "text_encoders"
    indexes = {
        "plain": "model.safetensors.index.json",
        "fp16": "model.safetensors.index.fp16.json",
        "diffusers": "model.fp16.safetensors.index.json",
        "pipeline": "diffusion_pytorch_model.safetensors.index.json",
        "sub/folder": "model.safetensors.index.json",
    }
    for folder, index in indexes.items():
        write(models / folder, SHARDS, index)
    pickles = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
    write(models / "pickles", pickles, "pytorch_model.bin.index.json")
    write(models / "numbered", SHARDS)
    write(models / "partial", SHARDS[:1])
    write(models, ("root-00001-of-00001.safetensors",))
    offered = files.choices(files.TEXT_ENCODER)
    for folder in (*indexes, "numbered"):
        native = folder.replace("/", os.sep)
        assert native in offered and os.path.join(native, SHARDS[0]) in offered, (folder, offered)
        assert os.path.join(native, SHARDS[1]) not in offered
        for name in (folder, f"{folder}/{SHARDS[0]}", f"{folder}/{SHARDS[1]}"):
            assert files.resolve(files.TEXT_ENCODER, name) == models / name
        assert len(files.version(files.TEXT_ENCODER, folder)) == 32
        if folder in indexes:
            assert files.resolve(files.TEXT_ENCODER, f"{folder}/{indexes[folder]}").is_file()
    assert {"pickles", os.path.join("pickles", pickles[0])} <= set(offered)
    assert "root-00001-of-00001.safetensors" in offered
    assert not [name for name in offered if "partial" in name], "half of a set is no model"
    refused(lambda: files.resolve(files.TEXT_ENCODER, "partial"), "text_encoder_name", "00002-of-00002")
    assert "00002-of-00002" in files.missing(files.TEXT_ENCODER, f"partial/{SHARDS[0]}")


def check_variants(files: Any) -> None:
    """A folder with a set in full and one in half precision: each has its first shard and fingerprint."""
    half = tuple(name.replace("model-", "model.fp16-") for name in SHARDS)
    folder = write(FIRST / "vae/both", SHARDS, "model.safetensors.index.json")
    write(folder, half, "model.safetensors.index.fp16.json")
    offered = files.choices(files.TOKENIZER)
    assert {os.path.join("both", name) for name in (SHARDS[0], half[0])} | {"both"} <= set(offered)
    versions = {files.version(files.TOKENIZER, f"both/{name}") for name in (SHARDS[0], half[0])}
    assert len(versions) == 2 and files.version(files.TOKENIZER, "both") in versions


def check_roots(files: Any) -> None:
    """Of folders and files of one name, the place that has the whole model; of whole ones the first."""
    first, second = FIRST / "vae", SECOND / "vae"
    write(first / "shared", ("notes.safetensors.txt",))
    write(second / "shared", SHARDS, "model.safetensors.index.json")
    assert "shared" in files.choices(files.TOKENIZER)
    assert files.resolve(files.TOKENIZER, "shared") == second / "shared"
    assert files.version(files.TOKENIZER, "shared")
    write(first / "shared", SHARDS[:1])  # a download that broke off
    for name in ("shared", f"shared/{SHARDS[0]}", "shared/model.safetensors.index.json"):
        assert files.resolve(files.TOKENIZER, name) == second / name
    write(first / "shared", SHARDS, "model.safetensors.index.json")
    assert files.resolve(files.TOKENIZER, "shared") == first / "shared"
    for root in (first, second):
        write(root, ("same.safetensors",))
    assert files.resolve(files.TOKENIZER, "same.safetensors") == first / "same.safetensors"
    write(second / "alone", SHARDS[:1], "model.safetensors.index.json", SHARDS)
    (first / "alone").mkdir()
    write(first / "nested" / "deep", SHARDS)
    write(first / "nested", (), "model.safetensors.index.json", tuple(f"deep/{name}" for name in SHARDS))
    refused(lambda: files.resolve(files.TOKENIZER, "nested"), "vae_name", "not a shard index")
    refused(lambda: files.resolve(files.TOKENIZER, "alone"), "vae_name", "1 of 2 shards", SHARDS[1])


def check_company(files: Any) -> None:
    """What else lies beside the shards does not count, dangling links least of all."""
    folder = write(FIRST / "vae/company", SHARDS, "model.safetensors.index.json")
    before = files.version(files.TOKENIZER, "company")
    (folder / "dangling.safetensors").symlink_to("nowhere")
    (folder / "README.md").write_text("notes", encoding="utf-8")
    (folder / "more").mkdir()
    assert before and files.version(files.TOKENIZER, "company") == before
    assert files.resolve(files.TOKENIZER, "company") == folder
    (folder / SHARDS[1]).write_bytes(b"others")
    assert files.version(files.TOKENIZER, "company") not in ("", before)


def check_names(files: Any) -> None:
    """Names of other systems are understood, and none leads out of the folders."""
    write(FIRST / "vae/win/deep", ("file.safetensors",))
    write(FIRST / "vae/win/sharded", SHARDS, "model.safetensors.index.json")
    for name in (r"win\deep\file.safetensors", r"win/deep\file.safetensors", "win/deep/file.safetensors"):
        assert files.resolve(files.TOKENIZER, name).name == "file.safetensors"
    assert files.resolve(files.TOKENIZER, r"win\sharded") == FIRST / "vae/win/sharded"
    assert files.resolve(files.TOKENIZER, rf"win\sharded\{SHARDS[0]}").is_file()
    (FIRST / "secret.safetensors").write_bytes(b"-")
    for name in ("../secret.safetensors", r"..\secret.safetensors", "", ".", "..", "/", "x" * 5000, "a\0b"):
        refused(lambda name=name: files.resolve(files.TOKENIZER, name), "vae_name")
        assert files.version(files.TOKENIZER, name) == ""
    refused(lambda: files.resolve(files.TOKENIZER, "FILE.safetensors"), "or choose 'win")
    refused(lambda: files.resolve(files.TOKENIZER, "else/file.SAFETENSORS"), "or choose 'win", "https://")
    message = refused(lambda: files.resolve(files.TOKENIZER, f"else/{SHARDS[0]}"), "or choose one of")
    assert "which has that name" not in message, "all shards are called like that"
    refused(lambda: files.resolve(files.TOKENIZER, f"WIN/Sharded/{SHARDS[0]}"), "or choose 'win")


def check_refusals(files: Any) -> None:
    """Whatever stands in the place of a choice is refused with its value and what there is."""
    from pack.nodes.loaders import LoadModel, LoadTextEncoder, LoadTokenizer

    write(FIRST / "diffusion_models/many", (f"{at}.safetensors" for at in range(400)))
    for value in (None, [], ["a", "b"], {"a": 1}, 5, 0.5, True, float("nan")):
        words = ("expected one of ['embedded/StageVAR-scenes", "more")
        refused(lambda value=value: LoadModel.execute(value), f"model_name is {value!r}", *words)
        refused(lambda value=value: LoadTokenizer.execute(value), f"vae_name is {value!r}")
        refused(lambda value=value: LoadTextEncoder.execute(value), f"text_encoder_name is {value!r}")
        if value is not None:
            assert "model_name is" in LoadModel.validate_inputs(value)
        assert LoadModel.fingerprint_inputs(value) == ""
    message = LoadModel.validate_inputs("no_such_file")
    assert "'no_such_file' is not in the 'diffusion_models' folder" in message and len(message) < 2500
    for value in ("fp16", "float16", "fp8_e5m2", None, 3, [], ""):
        words = (f"weight_dtype is {value!r}", "'default'", "'fp8_e4m3fn'")
        refused(lambda value=value: LoadModel.execute(weight_dtype=value), *words)
        refused(lambda value=value: LoadTextEncoder.execute(weight_dtype=value), *words)


def check_fingerprints(files: Any) -> None:
    """They tell contents apart, and nothing else; large files are not read to the end."""
    from pack.nodes.host import fingerprint

    folder = FIRST / "vae"
    small, large = folder / "small.safetensors", folder / "large.safetensors"
    small.write_bytes(b"a" * 1000)
    large.write_bytes(os.urandom(1 << 20) * 8)
    before = {path: files.version(files.TOKENIZER, path.name) for path in (small, large)}
    for path in before:
        shutil.copyfile(path, folder / f"copy of {path.name}")
        assert files.version(files.TOKENIZER, f"copy of {path.name}") == before[path]
    os.utime(small, (1, 1))
    assert files.version(files.TOKENIZER, small.name) == before[small], "the time is no content"
    small.write_bytes(b"a" * 999 + b"b")
    assert files.version(files.TOKENIZER, small.name) != before[small]
    with large.open("r+b") as file:
        file.seek(3_000_001)
        file.write(bytes(1 << 16))
    assert files.version(files.TOKENIZER, large.name) != before[large]
    changed = files.version(files.TOKENIZER, large.name)
    with large.open("r+b") as file:  # a byte between the pieces that are read
        file.seek((512 << 10) + 4096 + 10)
        file.write(b"?")
    assert files.version(files.TOKENIZER, large.name) not in (before[large], changed)

    digest = fingerprint._digest
    fingerprint._digest = lambda *_: refused(lambda: None)
    try:
        assert files.version(files.TOKENIZER, large.name), "it is remembered"
    finally:
        fingerprint._digest = digest


def check_vanished(files: Any) -> None:
    """A folder that goes away between the list and the run is said to be missing; roots, too."""
    import folder_paths

    folder = write(FIRST / "vae/gone", SHARDS, "model.safetensors.index.json")
    assert "gone" in files.choices(files.TOKENIZER) and files.version(files.TOKENIZER, "gone")
    shutil.rmtree(folder)
    assert "'gone' is not in" in files.missing(files.TOKENIZER, "gone")
    assert files.version(files.TOKENIZER, "gone") == "" and "gone" not in files.choices(files.TOKENIZER)
    root = write(FIRST / "unmounted", ("one.safetensors",))
    folder_paths.add_model_folder_path("vae", str(root))
    assert "one.safetensors" in files.choices(files.TOKENIZER)
    shutil.rmtree(root)
    assert files.choices(files.TOKENIZER)[0] == files.EMBEDDED
    assert "not in" in files.missing(files.TOKENIZER, "one.safetensors")
    root.mkdir()
    assert "same.safetensors" in files.choices(files.TOKENIZER)


def check_loops(files: Any) -> None:
    """A link that leads back into its own folder multiplies no model in shards."""
    folder = write(FIRST / "vae/circle/inner", SHARDS, "model.safetensors.index.json")
    (folder / "back").symlink_to("..")
    (FIRST / "vae/alias").symlink_to(folder)
    offered = [name for name in files.choices(files.TOKENIZER) if name.endswith(("inner", SHARDS[0]))]
    inside = os.path.join("circle", "inner")
    assert [name for name in offered if "circle" in name] == [inside, os.path.join(inside, SHARDS[0])]
    assert "alias" in files.choices(files.TOKENIZER), "another name of a folder is none"
    (folder / "back").unlink()
    locked = write(FIRST / "vae/locked", SHARDS, "model.safetensors.index.json")
    locked.chmod(0)
    try:
        files.choices(files.TOKENIZER)
        if os.geteuid():  # root may read everything
            refused(lambda: files.resolve(files.TOKENIZER, "locked"), "vae_name", "permissions")
    finally:
        locked.chmod(0o755)


def check_walks(files: Any) -> None:
    """The folders are walked by the host, when it walks them for itself, and not once more."""
    import folder_paths
    from pack.nodes.load import Load
    from pack.nodes.loaders import LoadModel, LoadTextEncoder, LoadTokenizer

    nodes = (Load, LoadModel, LoadTokenizer, LoadTextEncoder)
    kinds = {files.TRANSFORMER.folder, files.TOKENIZER.folder, files.TEXT_ENCODER.folder}

    def use() -> None:
        for node in nodes:
            node.define_schema()
            for name in (files.EMBEDDED, "plain", None):
                node.validate_inputs(name)
                node.fingerprint_inputs(name)

    walks, walk = [], os.walk

    def counted(top: Any, *args: Any, **options: Any) -> Any:
        walks.append(top)
        return walk(top, *args, **options)

    os.walk = counted
    try:
        folder_paths.filename_list_cache.clear()
        use()
        roots = [
            root for kind in kinds for root in folder_paths.get_folder_paths(kind) if os.path.isdir(root)
        ]
        assert sorted(walks) == sorted(roots), walks
        use()
        assert len(walks) == len(roots), "the second time nothing has changed"
    finally:
        os.walk = walk


def check_labels() -> None:
    """Choices and texts of classes, and what is neither."""
    from pack.nodes.labels import CLASS_LABEL, ClassLabel, choices

    def number(*values: Any) -> int:
        return ClassLabel.execute(*values).args[0][0][1][CLASS_LABEL]

    assert number() == number("207: golden retriever") == number("207") == number("Golden Retriever") == 207
    assert number("no class") == -1 and number("0: tench", "3") == number("no class", 3) == 3
    assert number("no class", " ") == -1 and number("no class", "-1") == -1
    for value in (None, [], 5.5, True, "", "9999", "no such animal", "207: tench", {"a": 1}):
        words = ("expected one of ['0: ", f"and {len(choices()) - 20} more")
        refused(lambda value=value: number(value), f"class_name is {value!r}", *words)
        refused(lambda value=value: number(value, "3"), "class_name")
    for value in (None, [], 2.5, True, {}):
        refused(lambda value=value: number("no class", value), f"label is {value!r}", "expected")
    refused(lambda: number("no class", "no such animal"), "label", "no such animal")
    assert len(refused(lambda: number("no class", "9" * 5000), "label", "0 to 999")) < 200


def check_optional() -> None:
    """Every input with a default may be left out."""
    from pack.nodes.labels import ClassLabel
    from pack.nodes.load import Load
    from pack.nodes.loaders import LoadModel, LoadTextEncoder, LoadTokenizer

    for node in (Load, LoadModel, LoadTokenizer, LoadTextEncoder, ClassLabel):
        assert not node.INPUT_TYPES().get("required"), node.__name__
        assert node.validate_inputs() is True
    assert LoadModel.fingerprint_inputs() == LoadModel.fingerprint_inputs(
        "embedded/StageVAR-scenes (built in)"
    )
    assert len(Load.fingerprint_inputs().split()) == 3


def main() -> None:
    load_pack(PACK, MODELS)
    import folder_paths
    from pack.nodes.host import files

    for kind in ("diffusion_models", "vae", "text_encoders"):
        (FIRST / kind).mkdir(parents=True, exist_ok=True)
        folder_paths.add_model_folder_path(kind, str(write(SECOND / kind, ())))
    checks = (check_sets, check_variants, check_roots, check_company, check_names, check_refusals)
    for check in (*checks, check_fingerprints, check_vanished, check_loops, check_walks):
        check(files)
        print(f"ok: {check.__name__.removeprefix('check_')}")
    for check in (check_labels, check_optional):
        check()
        print(f"ok: {check.__name__.removeprefix('check_')}")


main()
