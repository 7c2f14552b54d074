"""Hashes that tell models apart, whatever holds their weights."""

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


def test_the_code_is_that_of_the_whole_package() -> None:
    assert fingerprint.code() == fingerprint.code() and len(fingerprint.code()) == 16
