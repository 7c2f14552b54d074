"""Where to run and in which dtype when the caller does not say, and what the machine is."""

import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

SMALL = 50_000_000  # parameters up to which float32 costs nothing worth saving

# What users call the dtypes to compute in, and those that weights may have besides.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WEIGHT_DTYPES = {**DTYPES, "fp8_e4m3fn": torch.float8_e4m3fn, "int8": torch.int8}
COMPUTED = ("int8",)  # of them those that products are computed in as well, see network/eight_bit.py
_PRODUCTS = ("qlinear_prepack", "qlinear_pointwise")  # of oneDNN, as torch calls them

# The CPU's allocator and the backends beside CUDA raise a plain RuntimeError with one of these.
_OUT_OF_MEMORY = ("out of memory", "not enough memory", "allocate memory")


def default_device() -> torch.device:
    """The first CUDA device where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def default_dtype(device: torch.device | str, parameters: int = 0) -> torch.dtype:
    """bfloat16 on a GPU as the official code; on the CPU for large networks, where it is fast there."""
    if torch.device(device).type != "cpu":
        return torch.bfloat16
    return torch.bfloat16 if parameters > SMALL and fast_bfloat16() else torch.float32


def fast_bfloat16() -> bool:
    """Whether matrix products in bfloat16 are fast on this CPU; without AVX-512 they are emulated slowly."""
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"


def eight_bit_products(device: torch.device) -> str | None:
    """What multiplies whole numbers of 8 bits there: 'vnni' (CPUs), 'cuda' (since Turing), None nothing."""
    if device.type == "cuda" and torch.version.cuda:
        return "cuda" if torch.cuda.get_device_capability(device) >= (7, 5) else None
    return "vnni" if device.type == "cpu" and _vnni() else None


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished, so that a clock read next is right."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def hardware(device: torch.device) -> dict[str, Any]:
    """What measured times belong to, as plain values; ``gpu_bytes`` is the memory of the GPU."""
    found = {
        "device": str(device),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"gpu": properties.name, "gpu_bytes": properties.total_memory}
    return found


def _vnni() -> bool:
    """Whether the CPU multiplies bytes, and this torch has what its own compiler multiplies them with."""
    known = getattr(torch.cpu, "_is_vnni_supported", None)
    operations = all(hasattr(torch.ops.onednn, name) for name in _PRODUCTS)
    return fast_bfloat16() and known is not None and known() and operations


def _processor() -> str:
    """The CPU's own name where the system tells."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        found = re.search(r"model name\s*:\s*(.+)", info.read_text(encoding="utf-8", errors="replace"))
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()
