#!/usr/bin/env bash
# "Bicubic" and "area" are other filters in torch, in torch with antialias, in Pillow and in OpenCV.
#
# One would guess: antialias=True does nothing when a map is made larger, as with bilinear. "Area" is the mean over
# the area that an output pixel covers, in every library, and keeps the mean of the map.
# What happens: bicubic with antialias=True has another kernel (a = -0.5, that of Pillow) than without (a = -0.75,
# that of OpenCV), so enlarging changes by up to 0.07 of the range of values. torch's area takes whole pixels: where
# the sizes do not divide, windows overlap. From 16 to 13 one column counts 0.41 and others 1.03 and 1.23, and the
# mean moves. OpenCV's takes fractions of pixels; Pillow's BOX takes whole ones, but others than torch.
# Why it matters: the quantizer of VAR and STAR goes up with bicubic and down with area at every scale; at 256 px
# over grids of 1 2 3 4 5 6 8 10 13 16, five of which do not divide 16. A port that takes its resize from another
# library, or an "area" that is exact, feeds the transformer other numbers, most of all at 13. For 1, 2, 4 and 8 all
# three areas agree, and a test on such sizes finds nothing.
#
# torch 2.13.0, Pillow 13.0.0, opencv-python-headless 5.0.0.93, CPU, float32. Seen on 2026-11-30.
set -euo pipefail

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv venv
venv/bin/python -m pip install -qq --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6 pillow==13.0.0 opencv-python-headless==5.0.0.93

venv/bin/python -I - <<'PY'
import sys
from collections.abc import Callable

import cv2
import numpy as np
import PIL
import torch
from PIL import Image
from torch.nn import functional as F

GRIDS, LATENT = (1, 2, 3, 4, 5, 6, 8, 10, 13), 16
CLOSE = 1e-6
Resize = Callable[[np.ndarray, int], np.ndarray]


def check(holds: bool, what: str) -> None:
    if not holds:
        sys.exit(f"CHANGED: {what}")


def with_torch(mode: str, antialias: bool = False) -> Resize:
    def resize(x: np.ndarray, side: int) -> np.ndarray:
        maps = torch.from_numpy(x)[None, None]
        return F.interpolate(maps, (side, side), mode=mode, antialias=antialias)[0, 0].numpy()

    return resize


def with_pillow(filter: Image.Resampling) -> Resize:
    return lambda x, side: np.asarray(Image.fromarray(x).resize((side, side), filter))


def with_opencv(interpolation: int) -> Resize:
    return lambda x, side: cv2.resize(x, (side, side), interpolation=interpolation)


def apart(x: np.ndarray, side: int, one: Resize, other: Resize) -> float:
    return float(np.abs(one(x, side) - other(x, side)).max())


torch.set_num_threads(1)
cv2.setNumThreads(1)
random = np.random.default_rng(0)
print(f"torch {torch.__version__}, Pillow {PIL.__version__}, OpenCV {cv2.__version__}")

plain, smooth = with_torch("bicubic"), with_torch("bicubic", antialias=True)
peak = np.tile(np.eye(8, dtype=np.float32)[3], (8, 1))  # one bright column of eight, doubled to sixteen
taps = {"antialias=False": plain(peak, 16)[0], "antialias=True": smooth(peak, 16)[0]}
taps = {name: (row * 256).round(3) for name, row in taps.items()}
for name, row in taps.items():
    print(f"bicubic of one column, 8 to 16, {name:15}, in 256ths:", *(f"{tap:g}" for tap in row[3:11]))
check(taps["antialias=False"][3:11].tolist() == [-9, -27, 67, 225, 225, 67, -27, -9], "the plain bicubic kernel")
check(taps["antialias=True"][3:11].tolist() == [-6, -18, 58, 222, 222, 58, -18, -6], "the antialias bicubic kernel")

print(f"up to {LATENT}, values 0..1: largest difference that antialias=True makes")
for grid in GRIDS:
    x = random.random((grid, grid), dtype=np.float32)
    cubic = apart(x, LATENT, plain, smooth)
    linear = apart(x, LATENT, with_torch("bilinear"), with_torch("bilinear", antialias=True))
    print(f"  from {grid:2}: bicubic {cubic:.1e}, bilinear {linear:.1e}")
    check(linear < CLOSE, f"antialias=True changes a bilinear enlargement from {grid}")
    check((5e-3 < cubic < 0.2) if grid > 1 else cubic < CLOSE, f"bicubic from {grid}: {cubic:.1e}")
    check(apart(x, LATENT, plain, with_opencv(cv2.INTER_CUBIC)) < CLOSE, "plain bicubic is no longer OpenCV's")
    check(apart(x, LATENT, smooth, with_pillow(Image.Resampling.BICUBIC)) < CLOSE, "antialias is no longer Pillow's")

areas = {
    "torch area": with_torch("area"),
    "OpenCV INTER_AREA": with_opencv(cv2.INTER_AREA),
    "Pillow BOX": with_pillow(Image.Resampling.BOX),
}
x = random.random((LATENT, LATENT), dtype=np.float32)
print(f"area down from {LATENT}: largest difference between torch and OpenCV, torch and Pillow, OpenCV and Pillow")
for grid in GRIDS:
    torchs, opencvs, pillows = areas.values()
    apartness = [apart(x, grid, *pair) for pair in ((torchs, opencvs), (torchs, pillows), (opencvs, pillows))]
    print(f"  to {grid:2}:", *(f"{a:.1e}" for a in apartness))
    divides = LATENT % grid == 0
    check(all(a < CLOSE if divides else a > 5e-3 for a in apartness), f"area to {grid}: {apartness}")

print("how much each of 16 columns counts in the mean of the 13 x 13 result")
columns = [np.tile(row, (LATENT, 1)) for row in np.eye(LATENT, dtype=np.float32)]
expected = {  # the left half, in 39ths; the right half mirrors it
    "torch area": [24, 48, 48, 48, 40, 16, 40, 48],
    "OpenCV INTER_AREA": [39, 39, 39, 39, 39, 39, 39, 39],
    "Pillow BOX": [48, 48, 24, 24, 48, 48, 48, 24],
}
for name, resize in areas.items():
    counts = np.array([resize(column, 13).mean(dtype=np.float64) * LATENT for column in columns])
    print(f"  {name:17}", *(f"{count:.2f}" for count in counts))
    wanted = np.array(expected[name] + expected[name][::-1]) / 39
    check(np.abs(counts - wanted).max() < 1e-5, f"{name}: {counts.round(4).tolist()}")
print("still so: the same names, other numbers")
PY
