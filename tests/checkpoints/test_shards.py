"""Models in several files: an index, a folder, one shard or a numbered set stands for all of them."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stagevar_core.checkpoints import CheckpointError, read
from stagevar_core.checkpoints.shards import is_index, is_shard, parts_of

CONTENT = {name: torch.full((2,), float(place)) for place, name in enumerate("abcdef")}
# Names of the shards and of their index, as published files have them.
LAYOUTS = {
    "safetensors": ("model-{:05d}-of-00003.safetensors", "model.safetensors.index.json"),
    "fp16": ("model.fp16-{:05d}-of-00003.safetensors", "model.safetensors.index.fp16.json"),
    "old fp16": ("model-{:05d}-of-00003.fp16.safetensors", "model.fp16.safetensors.index.json"),
    "bin": ("pytorch_model-{:05d}-of-00003.bin", "pytorch_model.bin.index.json"),
    "bin fp16": ("pytorch_model.fp16-{:05d}-of-00003.bin", "pytorch_model.bin.index.fp16.json"),
}


def write(folder: Path, layout: str, content: dict = CONTENT) -> tuple[list[Path], Path]:
    """A model in three shards with an index."""
    shard, index = LAYOUTS[layout]
    paths, names = [folder / shard.format(place) for place in (1, 2, 3)], {}
    for place, path in enumerate(paths):
        part = dict(list(content.items())[place::3])
        torch.save(part, path) if path.suffix == ".bin" else save_file(part, path)
        names |= dict.fromkeys(part, path.name)
    (folder / index).write_text(json.dumps({"weight_map": names}), encoding="utf-8")
    return paths, folder / index


def same(path: Path, content: dict = CONTENT) -> bool:
    """Whether all of ``content`` is read from ``path``."""
    found = read(path).tensors
    return found.keys() == content.keys() and all(torch.equal(found[name], content[name]) for name in found)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_an_index_and_every_shard_stand_for_the_model(layout: str, tmp_path: Path) -> None:
    paths, index = write(tmp_path, layout)
    assert all(same(path) for path in (tmp_path, index, *paths))
    assert parts_of(paths[1]).files == (index, *paths)
    assert is_index(index.name) and all(is_shard(path.name) for path in paths)
    index.unlink()
    assert all(same(path) for path in (tmp_path, *paths))
    assert parts_of(tmp_path).files == tuple(paths)


def test_other_files_of_the_folder_do_not_matter(tmp_path: Path) -> None:
    paths, index = write(tmp_path, "safetensors")
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "gone.safetensors")
    (tmp_path / "damaged-00001-of-00002.safetensors").write_bytes(b"<html>")
    (tmp_path / "zz.safetensors.index.json").write_text("{")
    (tmp_path / "a.bin.index.json").mkdir()
    (tmp_path / "training_args.bin").write_bytes(b"")
    assert all(same(path) for path in (tmp_path, index, *paths))
    assert parts_of(tmp_path).files == (index, *paths)
    index.unlink()
    assert all(same(path) for path in paths)


def test_the_complete_one_of_two_layouts_is_read(tmp_path: Path) -> None:
    paths, _ = write(tmp_path, "safetensors")
    write(tmp_path, "bin")
    assert parts_of(tmp_path).shards == tuple(paths)
    for path in paths:
        path.unlink()
    assert same(tmp_path)


def test_a_dangling_link_in_place_of_a_shard_is_missing(tmp_path: Path) -> None:
    paths, index = write(tmp_path, "safetensors")
    paths[1].unlink()
    paths[1].symlink_to(tmp_path / "gone")
    for path in (tmp_path, index, paths[0]):
        with pytest.raises(CheckpointError, match=f"1 of 3 shards are missing .{paths[1].name}"):
            read(path)


def test_shards_of_any_name_that_an_index_lists(tmp_path: Path) -> None:
    for name, part in (("one.safetensors", "abc"), ("two.safetensors", "def")):
        save_file({key: CONTENT[key] for key in part}, tmp_path / name)
    names = {key: "one.safetensors" if key in "abc" else "two.safetensors" for key in CONTENT}
    (tmp_path / "x.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert same(tmp_path) and same(tmp_path / "two.safetensors")


def test_the_index_says_which_shard_has_a_tensor(tmp_path: Path) -> None:
    for name, value in (("m-00001-of-00002.safetensors", 1.0), ("m-00002-of-00002.safetensors", 2.0)):
        save_file({"w": torch.full((1,), value)}, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"1 tensors are in several shards \(w\)"):
        read(tmp_path)
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "m-00001-of-00002.safetensors"}}))
    assert read(tmp_path).tensors["w"].item() == 1.0


def test_a_file_with_other_numbers_in_its_name_is_alone(tmp_path: Path) -> None:
    save_file(CONTENT, tmp_path / "run-3-of-5.safetensors")
    assert same(tmp_path / "run-3-of-5.safetensors") and same(tmp_path)


BAD_NAMES = [
    "../up.safetensors",
    "..",
    ".",
    "",
    "a/b.safetensors",
    "a\\b.safetensors",
    "/etc/passwd",
    3,
    None,
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_shards_lie_beside_their_index(name: object, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(CheckpointError, match="not a shard index"):
        read(tmp_path)


@pytest.mark.parametrize(
    "name", ["x" * 300 + ".safetensors", "x" * 5000, "a\0b.safetensors", "\ud800.safetensors"]
)
def test_names_that_no_file_has_are_missing(name: str, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(CheckpointError, match="1 of 1 shards are missing") as caught:
        read(tmp_path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600
    with pytest.raises(CheckpointError, match="no such file"):
        read(tmp_path / name)


BAD_INDEXES = [
    "",
    "[]",
    "{}",
    '{"weight_map": []}',
    '{"weight_map": {}}',
    '{"weight_map": ' + "9" * 5000 + "}",
]


@pytest.mark.parametrize("text", BAD_INDEXES, ids=lambda text: ascii(text[:20]))
def test_damaged_indexes_are_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors.index.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    for place in (path, tmp_path):
        with pytest.raises(CheckpointError, match=r"m\.safetensors\.index\.json: not a shard index"):
            read(place)


def test_an_index_takes_linear_time(tmp_path: Path) -> None:
    names = {f"w{place}": f"m{place}.safetensors" for place in range(50_000)}
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(CheckpointError, match="50000 of 50000 shards are missing"):
        read(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to the administrator")
def test_a_closed_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0)
    try:
        with pytest.raises(CheckpointError, match="cannot be opened"):
            read(tmp_path)
    finally:
        tmp_path.chmod(0o700)
