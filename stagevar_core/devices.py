"""Where to run and in which dtype, when the caller does not say."""

import torch

SMALL = 50_000_000  # parameters up to which float32 costs nothing worth saving


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


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished, so that a clock read next is right."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
