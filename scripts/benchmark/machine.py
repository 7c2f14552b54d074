"""What a machine can do: peak memory, matrix-product and copy ceilings; and the code that runs on it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from stagevar_core.devices import synchronise


def give_back() -> None:
    """Return freed memory to the system where the C library can, so that no run pays for the one before."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


class Resident:
    """Memory of the process in the machine's RAM, its peak since :meth:`reset`."""

    kind = "resident"

    def reset(self) -> None:
        """Forget the peak so far, where the system can."""
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            pass  # elsewhere the peak is that of the whole process, which is never too low

    def peak(self) -> int | None:
        """Bytes, None where nothing tells."""
        found = _status("VmHWM")
        if found is not None:
            return found
        try:
            import resource
        except ImportError:  # Windows
            return None
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    def now(self) -> int | None:
        """Bytes at this moment, None where nothing tells."""
        return _status("VmRSS")


class Allocated:
    """Memory that PyTorch has handed out on a GPU, its peak since :meth:`reset`."""

    kind = "allocated"

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def reset(self) -> None:
        """Forget the peak so far."""
        torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> int:
        """Bytes."""
        return torch.cuda.max_memory_allocated(self.device)

    def now(self) -> int:
        """Bytes at this moment."""
        return torch.cuda.memory_allocated(self.device)


def memory_of(device: torch.device) -> Resident | Allocated:
    """What counts on a device: allocated bytes on a GPU, resident ones on the CPU."""
    return Allocated(device) if device.type == "cuda" else Resident()


def _status(name: str) -> int | None:
    """Bytes of an entry of /proc/self/status, None where there is none."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return int(lines[name].split()[0]) * 1024 if name in lines else None


def best_of(function: Callable[[], object], device: torch.device, repeat: int = 5) -> float:
    """Shortest time of several runs, the first one not counted."""
    times = []
    for _ in range(repeat + 1):
        synchronise(device)
        start = time.perf_counter()
        function()
        synchronise(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def ceilings(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """What this machine reaches now: FLOP/s of a large matrix product in ``dtype``, bytes/s of a copy."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size).to(device=device, dtype=dtype) for _ in range(2))
    matmul = 2.0 * size**3 / best_of(lambda: a @ b, device)
    source = torch.zeros(2**28 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    copy = 2.0 * source.numel() * 4 / best_of(lambda: target.copy_(source), device)
    return {"matmul_flops_per_s": matmul, "copy_bytes_per_s": copy}


def higher(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    """The ceilings of a machine that was measured twice: a run that others disturbed is no ceiling."""
    return {name: max(value, second[name]) for name, value in first.items()}


def code_version(root: Path) -> str | None:
    """The commit of a checkout, with '-dirty' where files differ from it; None outside of one."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
