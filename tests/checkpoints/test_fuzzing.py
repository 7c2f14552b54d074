"""Files with faults of all kinds: each loads, or ends in one error of ours, soon and without much memory."""

import os
import resource
import tempfile
import time
import warnings
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, configuration, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from stagevar_core.checkpoints import CheckpointError, build, prepare, read
from tests.support.mutations import KINDS, Mutation, written
from tests.support.small_files import FILES
from tests.support.tiny_files import write_models

# What the library notes for itself does not belong into a checkout, nor into a package made of it.
configuration.set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "stagevar-hypothesis")
FILES_TRIED = int(os.environ.get("STAGEVAR_FUZZ_FILES", "300"))
SECONDS, MEGABYTES = 5.0, 400
MUTATIONS = st.lists(
    st.builds(
        Mutation,
        st.sampled_from(KINDS),
        st.floats(0, 1, exclude_max=True, allow_subnormal=False),
        st.integers(0, 2**16),
    ),
    min_size=1,
    max_size=3,
)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict:
    """Small complete files by name, as (tensors, metadata): of the official layouts, and of ours."""
    found = {name: (make(), None) for name, make in FILES.items()}
    for name, path in write_models(tmp_path_factory.mktemp("own")).items():
        raw = read(path)
        found[f"own {name}"] = (load_file(path), dict(raw.metadata or {}))
    return found


def test_faults_can_be_put_on_faults(tmp_path: Path) -> None:
    """Of headers, whose entries are then no longer what they were."""
    tensors, metadata = {"a": torch.zeros(2, 3), "b": torch.zeros(1)}, {"kind": "x1"}
    for first, second, where in product(range(22), range(22), (0.0, 0.5, 0.9)):
        faults = [Mutation("header", where, first), Mutation("header", where, second)]
        assert written(tensors, metadata, faults, tmp_path).is_file()


NAMES = (*FILES, "own transformer", "own tokenizer", "own text_encoder")


@settings(
    max_examples=FILES_TRIED,
    database=None,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(name=st.sampled_from(NAMES), mutations=MUTATIONS)
def test_a_file_loads_or_says_why_not(models: dict, name: str, mutations: list[Mutation]) -> None:
    tensors, metadata = models[name]
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = written(tensors, metadata, mutations, Path(folder))
        try:
            checkpoint = prepare(*read(path))
            if checkpoint.kind != "text_encoder":
                build(checkpoint, dtype=torch.float32)
        except CheckpointError as error:
            message = str(error)
            assert folder in message, "the message names the file"
            assert ";" in message or ". " in message, f"and what to do: {message}"
            assert message.isprintable() or "\n" in message, f"in plain characters: {message!r}"
            assert len(message) < 4000
        assert not (Path(folder) / "ran").exists(), "code of a file ran"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert time.monotonic() - started < SECONDS and grown < MEGABYTES
