#!/usr/bin/env bash
# On a CPU, adding a bfloat16 tensor to a float32 one in place first makes a float32 copy of all of it.
#
# A residual stream in float32 takes the bfloat16 output of every branch: `x.add_(y)`, `torch.addcmul(x, y, gate,
# out=x)`. On a GPU the operand is converted as it is read. On a CPU the whole of it is converted first, so an
# operation that is in place needs as much memory again as its result has, mapped anew each time where it is large,
# which takes longer than the sum. Slices of a few megabytes, one after the other, need next to nothing and give the
# same bits. Operands of one dtype need no copy.
#
# Seen with torch 2.13.0 (Linux, whose /proc tells the peak). Exits with 1 and CHANGED if that is no longer so.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet "torch==2.13.0"

"$folder/env/bin/python" -W ignore - <<'PY'
import sys

import torch

MIB = 2**20
torch.set_num_threads(1)
x = torch.zeros(64 * MIB)  # 256 MiB
y, gate = torch.ones(len(x), dtype=torch.bfloat16), torch.ones(1)


def status(name: str) -> int:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) // 1024


def beyond(operation) -> int:
    """MiB that the process holds at most while the operation runs, beyond what it held before."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forget the peak so far
    before = status("VmRSS")
    operation()
    return status("VmHWM") - before


def sliced() -> None:
    for part, added in zip(x.split(MIB), y.split(MIB)):
        part.add_(added)


x.add_(1.0), sliced()  # whatever the first call loads
expected = {
    "x.add_(y), y in bfloat16": (lambda: x.add_(y), True),
    "torch.addcmul(x, y, gate, out=x), y in bfloat16": (lambda: torch.addcmul(x, y, gate, out=x), True),
    "x.add_(x), both in float32": (lambda: x.add_(x), False),
    "x.add_(y) in slices of 4 MiB, y in bfloat16": (sliced, False),
}
print(f"torch {torch.__version__}, x has {x.nbytes // MIB} MiB")
changed = False
for name, (operation, copies) in expected.items():
    more = beyond(operation)
    print(f"{name}: {more} MiB more")
    if (more > 200) is not copies:
        print(f"CHANGED: expected {'a copy' if copies else 'no copy'}", file=sys.stderr)
        changed = True
before = x.clone()
whole = before.clone().add_(y)
sliced()
if not torch.equal(whole, x):
    print("CHANGED: slices give other bits", file=sys.stderr)
    changed = True
sys.exit(changed)
PY
