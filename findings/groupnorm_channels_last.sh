#!/usr/bin/env bash
# Group norm in float32 loses most of its digits in channels-last layout.
#
# One would guess: channels_last is an order in memory. It makes convolutions faster and changes the last bit.
# What happens: on a CPU the norm of a contiguous map is right to 1e-5 even where the mean is a hundred times the
# deviation. In channels-last layout the variance is the mean of squares minus the square of the mean, summed in
# float32: of a 256 x 256 map with mean 10 the result is off by 3e-3, with mean 100 by 0.4, and with mean 1000 the
# variance is gone and values of about 1 come out in the thousands. Nobody has to ask for it at the norm: a
# convolution whose weights are channels-last hands such maps on, for contiguous input, too.
# Why it matters: the decoders of Infinity, VAR and STAR are convolutions and group norms of 32 groups on maps of
# up to 1024 x 1024. Who turns on channels-last for speed loses parity in the third or fourth digit where a map's mean
# is a few deviations, and blames the convolutions. Layer norm over the same numbers is right.
#
# torch 2.13.0 on a CPU (AVX2 and AVX-512 alike); GPUs were not tried. Seen on 2026-11-30.
set -euo pipefail

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv venv
venv/bin/python -m pip install -qq --disable-pip-version-check torch==2.13.0 numpy==2.4.6

venv/bin/python -I - <<'PY'
import sys

import torch
from torch import nn
from torch.nn import functional as F

GROUPS, EPS = 32, 1e-6


def check(holds: bool, what: str) -> None:
    if not holds:
        sys.exit(f"CHANGED: {what}")


def error(x: torch.Tensor) -> float:
    """The largest distance of the norm from the same norm in float64."""
    return (F.group_norm(x, GROUPS, eps=EPS) - F.group_norm(x.double(), GROUPS, eps=EPS)).abs().max().item()


torch.set_num_threads(1)
torch.manual_seed(0)
noise = torch.randn(1, 32, 256, 256)
print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, largest error of values of about 1")
print("mean / deviation   contiguous   channels last   layer norm")
seen = {}
for mean in (0, 10, 100, 1000):
    x = noise + mean
    last = x.contiguous(memory_format=torch.channels_last)
    check(torch.equal(x, last), "the layout changed the numbers")
    rows = x.reshape(GROUPS, -1)  # one channel per group, so layer norm over a row is the same norm
    layer = F.layer_norm(rows, rows.shape[1:], eps=EPS) - F.layer_norm(rows.double(), rows.shape[1:], eps=EPS)
    seen[mean] = error(x), error(last), layer.abs().max().item()
    print(f"{mean:16}   {seen[mean][0]:10.1e}   {seen[mean][1]:13.1e}   {seen[mean][2]:10.1e}")

for mean, (contiguous, _, layer) in seen.items():
    check(max(contiguous, layer) < 5e-4, f"mean {mean}: contiguous {contiguous:.1e}, layer norm {layer:.1e}")
for mean, (least, most) in {10: (1e-3, 5e-2), 100: (5e-2, 5.0), 1000: (1e2, 1e5)}.items():
    check(least < seen[mean][1] < most, f"mean {mean}: channels last is off by {seen[mean][1]:.1e}")

conv = nn.Conv2d(3, 32, 3, padding=1)
nn.init.normal_(conv.weight, std=0.2)
nn.init.constant_(conv.bias, 100.0)
picture = torch.randn(1, 3, 256, 256)
with torch.inference_mode():
    plain = conv(picture)
    turned = conv.to(memory_format=torch.channels_last)(picture)
check(plain.is_contiguous() and not turned.is_contiguous(), "the weights' layout is no longer handed on")
check(torch.allclose(plain, turned, rtol=1e-6, atol=1e-4), "the convolutions differ themselves")
before, after = error(plain), error(turned)
print(f"after a convolution with plain weights {before:.1e}, with channels-last weights {after:.1e}")
check(before < 5e-4 and after > 5e-2, f"after a convolution: {before:.1e} and {after:.1e}")
print("still so: group norm in channels-last layout loses the variance where the mean is large")
PY
