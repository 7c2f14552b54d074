"""Gets a PyTorch, torchvision and torchaudio that fit the machine into the environment.

STAGEVAR_TORCH names what to install instead, e.g. "torch==2.9.1 torchvision==0.24.1" (pip arguments allowed).
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import urllib.request
from pathlib import Path

from .environment import SetupError, log, pip, python_says, run_quiet

TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
VISION_VERSION = "import importlib.metadata as m; print(m.version('torchvision'))"
NMS_STUB = """
# Added by the StageVAR bootstrap: without the compiled operators the kernels below need their schemas.
if not torchvision.extension._has_ops():
    _stagevar_library = torch.library.Library("torchvision", "FRAGMENT")
    for _name in ("nms", "qnms"):
        _stagevar_library.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

"""


def has_nvidia() -> bool:
    """Whether an NVIDIA driver answers on this machine."""
    tool = shutil.which("nvidia-smi")
    return bool(tool) and run_quiet([tool, "-L"]).returncode == 0


def reachable(url: str) -> bool:
    """Whether a web address answers within a few seconds."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def torch_arguments(python: Path) -> list[str]:
    """What to hand to pip to get a PyTorch that fits this machine."""
    if wanted := os.environ.get("STAGEVAR_TORCH"):
        return wanted.split()
    plain = ["torch", "torchvision"]
    if has_nvidia() or not sys.platform.startswith("linux"):
        return plain
    # Without an NVIDIA GPU the default Linux build would bring some 6 GB of CUDA libraries for nothing.
    listing = run_quiet([python, "-m", "pip", "index", "versions", "torch"]).stdout
    if cpu_build := re.search(r"\b2\.(\d+)\.(\d+)\+cpu", listing):
        minor, patch = int(cpu_build[1]), int(cpu_build[2])
        return [f"torch==2.{minor}.{patch}", f"torchvision==0.{minor + 15}.{patch}"]
    if reachable(f"{TORCH_CPU_INDEX}/torch/"):
        return [*plain, "--index-url", TORCH_CPU_INDEX]
    return plain


def install_torch(python: Path) -> str:
    """Makes torch and torchvision importable; returns the pip constraints that keep them as they are."""
    if python_says(python, "import torch") is None:
        arguments = torch_arguments(python)
        log(f"PyTorch: pip install {' '.join(arguments)}")
        pip(python, "install", *arguments)
    version = python_says(python, "import torch; print(torch.__version__)")
    if version is None:
        raise SetupError(
            "PyTorch cannot be imported after its installation; set STAGEVAR_TORCH to another version."
        )
    constraint = f"torch=={version.split('+')[0]}"
    if python_says(python, VISION_VERSION) is None:
        pip(python, "install", constraint, "torchvision")
    repair_torchvision(python)
    return f"{constraint}\ntorchvision=={python_says(python, VISION_VERSION).split('+')[0]}\n"


def site_packages(python: Path) -> Path:
    """The folder of the environment's own packages."""
    return Path(python_says(python, "import sysconfig; print(sysconfig.get_paths()['purelib'])"))


def repair_torchvision(python: Path) -> None:
    """Lets a torchvision built for CUDA import beside a CPU PyTorch; only ever edits our own environment."""
    if python_says(python, "import torchvision") is not None:
        return
    registrations = site_packages(python) / "torchvision" / "_meta_registrations.py"
    if not registrations.is_file():
        raise SetupError("torchvision cannot be imported; set STAGEVAR_TORCH to matching versions of both.")
    text = registrations.read_text(encoding="utf-8")
    if "Added by the StageVAR bootstrap" not in text:
        line = '@torch.library.register_fake("torchvision::nms")\n'
        registrations.write_text(text.replace(line, NMS_STUB + line, 1), encoding="utf-8")
    result = run_quiet([python, "-c", "import torchvision"])
    if result.returncode:
        raise SetupError(f"torchvision cannot be imported: {result.stderr.strip().splitlines()[-1]}")


def install_torchaudio(python: Path) -> None:
    """Adds torchaudio where it works; its compiled part is dropped when it does not fit the PyTorch build.

    ComfyUI up to 0.33 imports it for its audio nodes; we need none of those, so failing is no error.
    """
    if python_says(python, "import torchaudio") is not None:
        return
    try:
        pip(python, "install", "--no-deps", "torchaudio", tries=2)
    except SetupError as error:
        log(f"continuing without torchaudio ({error})")
        return
    if python_says(python, "import torchaudio") is None:
        for library in (site_packages(python) / "torchaudio" / "lib").glob("*.so"):
            library.unlink()
