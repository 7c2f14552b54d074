"""Vectors of a file are finite: a run limits some of them, so that nothing would show in its logits."""

import math

import pytest
import torch

from stagevar_core.checkpoints.errors import CheckpointError
from stagevar_core.checkpoints.files import read
from stagevar_core.checkpoints.load import prepare
from stagevar_core.pipeline import EMBEDDED


@pytest.mark.parametrize("kind", EMBEDDED)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_vector_that_is_not_finite_is_named(kind: str, value: float) -> None:
    tensors, *said = read(EMBEDDED[kind])
    vectors = [name for name, tensor in tensors.items() if tensor.dim() == 1]
    for name in (vectors[0], *(name for name in vectors if "log_scale" in name)):
        spoiled = tensors[name].clone()
        spoiled[0] = value
        with pytest.raises(CheckpointError, match="holds NaN or infinity; expected finite weights"):
            prepare({**tensors, name: spoiled}, *said, kind=kind)
    assert prepare(dict(tensors), *said, kind=kind).kind == kind
    assert torch.equal(tensors[vectors[0]], read(EMBEDDED[kind])[0][vectors[0]])
