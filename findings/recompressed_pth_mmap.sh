#!/usr/bin/env bash
# A .pth that was zipped anew loads right without mmap and silently wrong with it.
#
# One would guess: a .pth is a zip archive, torch.load reads zip archives, and mmap=True only changes when the
# bytes are read. A checkpoint that some tool wrote again with compression then either loads in both ways or is
# refused.
# What happens: without mmap every tensor is right. With mmap=True torch takes the compressed bytes of an entry for
# the tensor: no tensor is right, none has a wrong shape or dtype, a strict load_state_dict takes them all, and
# nothing is raised or logged. (A file of very few tensors is too short for that and gives a RuntimeError.)
# Why it matters: Infinity, VAR and STAR publish .pth files of up to 33 GB, which one wants to map. The picture is
# noise then, and one looks for the mistake in the sampler. Map only what is stored plainly: every entry of
# zipfile.ZipFile(path).infolist() has compress_type ZIP_STORED.
#
# torch 2.13.0, CPU. Seen on 2026-11-30.
set -euo pipefail

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv venv
venv/bin/python -m pip install -qq --disable-pip-version-check torch==2.13.0 numpy==2.4.6

venv/bin/python -I - <<'PY'
import os
import sys
import zipfile

import torch
from torch import nn


def check(holds: bool, what: str) -> None:
    if not holds:
        sys.exit(f"CHANGED: {what}")


def network() -> nn.Module:
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 12, enable_nested_tensor=False).eval()


torch.set_num_threads(1)
torch.manual_seed(0)
model = network()
for parameter in model.parameters():
    nn.init.normal_(parameter, std=0.05)
weights = model.state_dict()

torch.save(weights, "saved.pth")
for name, method in (("stored", zipfile.ZIP_STORED), ("deflated", zipfile.ZIP_DEFLATED)):
    with zipfile.ZipFile("saved.pth") as source, zipfile.ZipFile(f"{name}.pth", "w", method) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry.filename))
    check(zipfile.ZipFile(f"{name}.pth").testzip() is None, f"{name}.pth is no sound archive")

print(f"torch {torch.__version__}, {len(weights)} tensors")
x = torch.randn(1, 16, 64)
right = {}
for name in ("saved", "stored", "deflated"):
    for mapped in (False, True):
        loaded = torch.load(f"{name}.pth", mmap=mapped, weights_only=True)
        same_form = all(loaded[k].shape == v.shape and loaded[k].dtype == v.dtype for k, v in weights.items())
        check(loaded.keys() == weights.keys() and same_form, f"{name}, mmap={mapped}: other names, shapes or dtypes")
        right[name, mapped] = sum(torch.equal(loaded[k], v) for k, v in weights.items())
        other = network()
        other.load_state_dict(loaded, strict=True)
        with torch.inference_mode():
            same = torch.equal(other(x), model(x))
        check(same == (right[name, mapped] == len(weights)), "the outputs do not tell what the weights tell")
        print(
            f"{name + '.pth':13} {os.path.getsize(name + '.pth'):8,} bytes, mmap={mapped!s:5}: "
            f"{right[name, mapped]:3} tensors right, strict load passes, output {'equal' if same else 'DIFFERENT'}"
        )

for case, count in right.items():
    expected = 0 if case == ("deflated", True) else len(weights)
    check(count == expected, f"{case}: {count} tensors are right, it was {expected}")
print("still so: mmap=True reads compressed entries as if they were stored")
PY
