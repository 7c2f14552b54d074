"""Hashes that tell models apart, whatever holds their weights."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from stagevar_core.evaluation import fingerprint
from stagevar_core.network import packing


def model(seed: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Two layers of random weights."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(40, 24), nn.LayerNorm(24), nn.Linear(24, 8)).to(dtype)


def test_equal_models_have_one_identity_and_others_have_others() -> None:
    assert fingerprint.weights(model(0)) == fingerprint.weights(model(0))
    found = [model(0), model(1), model(0, torch.bfloat16), nn.Sequential(*model(0), nn.Identity())]
    assert len({fingerprint.weights(each) for each in found[:3]}) == 3
    assert fingerprint.weights(found[0]) == fingerprint.weights(found[3]), (
        "what has no weights counts nothing"
    )
    assert fingerprint.weights(model(0), model(1)) != fingerprint.weights(model(1), model(0))


def test_buffers_count() -> None:
    first, second = model(0), model(0)
    first.register_buffer("codes", torch.zeros(3), persistent=False)
    second.register_buffer("codes", torch.ones(3), persistent=False)
    assert fingerprint.weights(first) != fingerprint.weights(second)


@pytest.mark.skipif(not packing.available(), reason="this CPU packs nothing")
def test_packed_models_are_told_apart() -> None:
    packed = [packing.pack(model(seed, torch.bfloat16)) for seed in (0, 0, 1)]
    assert not any("0.weight" in each.state_dict() for each in packed), "nothing was packed"
    names = [fingerprint.weights(each) for each in packed]
    assert names[0] == names[1] != names[2]
    assert names[0] == fingerprint.weights(model(0, torch.bfloat16))


def test_the_code_is_that_of_the_whole_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fingerprint.code() == fingerprint.code() and len(fingerprint.code()) == 16
    shutil.copytree(
        Path(fingerprint.__file__).parents[1],
        tmp_path / "core",
        ignore=shutil.ignore_patterns("assets", "__pycache__"),
    )
    before = fingerprint.code()
    monkeypatch.setattr(fingerprint, "__file__", str(tmp_path / "core" / "evaluation" / "fingerprint.py"))
    assert fingerprint.code() == before
    files = [path for kind in ("*.py", "*.json") for path in (tmp_path / "core").rglob(kind)]
    assert len(files) > 80 and any(path.suffix == ".json" for path in files)
    for path in files:
        data = path.read_bytes()
        path.write_bytes(data + b"\n")
        assert fingerprint.code() != before, path
        path.write_bytes(data)
    files[0].rename(files[0].with_name("another.py"))
    assert fingerprint.code() != before
