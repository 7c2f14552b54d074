"""What the machine is, and which errors say that its memory ran out."""

import json

import pytest
import torch

from stagevar_core.devices import hardware, is_out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        RuntimeError("MPS backend out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: not enough memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    ],
)
def test_errors_of_all_devices_that_say_memory_ran_out(error: BaseException) -> None:
    assert is_out_of_memory(error)


def test_other_errors_are_faults() -> None:
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_the_hardware_is_plain_values() -> None:
    found = hardware(torch.device("cpu"))
    assert json.loads(json.dumps(found)) == found
    assert found["processor"] and found["threads"] >= 1 and "gpu" not in found
