#!/usr/bin/env bash
# torch.save writes float8 tensors in its old format without a word, and torch.load cannot read them back.
#
# One would guess: what torch.save takes, torch.load of the same version gives back, in either of its two formats.
# What happens: with _use_new_zipfile_serialization=False (the format of before 1.6, which many training scripts and
# converters still ask for, as other tools can read it) the dtypes that have no storage class of their own are written
# and lost: every float8, float4, uint16, uint32, uint64 and complex32 tensor. Loading raises an AttributeError about
# UntypedStorage, which names neither the tensor nor its dtype; the new format gives all of them back.
# Why it matters: fp8 is how large transformers are stored. Whoever halves an 8B model into the old format has written
# a file that nothing can open, and notices when the original is gone. Write safetensors, or the new format.
#
# torch 2.13.0. Seen on 2026-11-30.
set -euo pipefail

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv venv
venv/bin/python -m pip --disable-pip-version-check -qq install torch==2.13.0 numpy==2.4.6

venv/bin/python -I - <<'PY'
import io
import sys
import warnings

import torch

warnings.simplefilter("ignore")
print(f"torch {torch.__version__}")


def check(holds: bool, what: str) -> None:
    if not holds:
        sys.exit(f"CHANGED: {what}")


def roundtrip(tensor: torch.Tensor, new: bool) -> str:
    """'same', or the name of the error that reading back raised."""
    file = io.BytesIO()
    torch.save({"weight": tensor}, file, _use_new_zipfile_serialization=new)
    file.seek(0)
    try:
        read = torch.load(file, weights_only=True)["weight"]
    except AttributeError as error:
        return f"AttributeError: {error}"
    equal = read.dtype == tensor.dtype and torch.equal(read.view(torch.uint8), tensor.view(torch.uint8))
    return "same" if equal else "other values"


lost = "float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu float4_e2m1fn_x2 uint16 uint32 uint64 complex32"
kept = "float64 float32 float16 bfloat16 complex64 int64 int32 int16 int8 uint8"
for name in (lost + " " + kept).split():
    tensor = torch.arange(16, dtype=torch.uint8).view(getattr(torch, name))
    new, old = roundtrip(tensor, True), roundtrip(tensor, False)
    print(f"{name:18} new format: {new}; old format: {old}")
    check(new == "same", f"{name}: the new format gives {new}")
    if name in lost.split():
        check("UntypedStorage" in old, f"{name}: the old format gives {old}")
    else:
        check(old == "same", f"{name}: the old format gives {old}")
print("still so: the old format takes float8 and cannot give it back")
PY
