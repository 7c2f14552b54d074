"""Comparisons against stored tensors: how close they must be, and the line that is printed for each."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Pair = tuple[str, Tensor, Tensor]  # where it was taken, measured, expected


class UnreadableFolder(Exception):
    """The folder cannot be compared as it is; the message says why."""


class UnreleasedOption(Exception):
    """The folder was made with an option that no released model uses; the message names it."""


class Report:
    """Prints one line per compared quantity and counts the misses."""

    def __init__(self, write: Callable[[str], None] = print) -> None:
        self.write = write
        self.folder = ""
        self.compared = self.missed = self.skipped = self.unreadable = self.left_out = 0

    @property
    def failed(self) -> bool:
        """Whether anything missed or could not be read; comparing nothing at all is no success either."""
        return bool(self.missed or self.unreadable) or not self.compared

    def compare(self, run: str, quantity: str, pairs: Iterable[Pair], tolerance: float) -> None:
        """One line for a quantity, over all the places where it is stored; tolerance 0 means identical."""
        pairs = list(pairs)
        worst, worst_at, mismatched, total = -1.0, "", 0, 0
        problem = ""
        for place, measured, expected in pairs:
            if measured.shape != expected.shape:
                problem = f"{place}: shape {tuple(measured.shape)}, expected {tuple(expected.shape)}"
                continue
            difference = (measured.double() - expected.double()).abs()
            largest = difference.max().item() if difference.numel() else 0.0
            # NaN compares as neither larger nor smaller, so it has to win here by name.
            if largest > worst or largest != largest:
                worst, worst_at = largest, place
            mismatched += int((difference != 0).sum())
            total += difference.numel()
        ok = not problem and worst <= tolerance
        self.compared += 1
        self.missed += not ok
        counts = f"{mismatched}/{total}" if not tolerance else "-"
        places = f"{quantity} x{len(pairs)}" if len(pairs) > 1 else quantity
        where = problem or (f"worst at {worst_at}" if not ok and len(pairs) > 1 else "")
        self.write(
            f"{'ok  ' if ok else 'MISS'} {self.folder:26} {run:28} {places:28} largest {worst:9.2e}  "
            f"tolerance {tolerance:7.0e}  mismatched bits {counts:9} {where}".rstrip()
        )

    def missing(self, run: str, quantity: str, reason: str) -> None:
        """A miss for something that cannot be compared although the folder asks for it."""
        self.missed += 1
        self.write(f"MISS {self.folder:26} {run:28} {quantity:28} {reason}")

    def not_compared(self, run: str, names: Iterable[str]) -> None:
        """Names stored tensors that nothing here knows how to compare."""
        names = sorted(names)
        self.left_out += len(names)
        if names:
            self.write(f"note {self.folder:26} {run:28} stored but not compared: {', '.join(names)}")

    def summary(self) -> str:
        parts = [f"{self.compared} quantities compared", f"{self.missed} missed"]
        for count, what in (
            (self.skipped, "folders skipped"),
            (self.unreadable, "folders not read"),
            (self.left_out, "stored tensors not compared"),
        ):
            if count:
                parts.append(f"{count} {what}")
        return f"{'FAILED' if self.failed else 'passed'}: {', '.join(parts)}"


def split_place(name: str) -> tuple[str, str]:
    """A stored name as (place, quantity): 'scale03.bits' is ('scale03', 'bits')."""
    place, dot, quantity = name.partition(".")
    return (place, quantity) if dot and place.startswith("scale") else ("", name)


def compare_all(
    report: Report,
    run: str,
    measured: dict[str, Tensor],
    expected: dict[str, Tensor],
    tolerance_of: Callable[[str], float],
) -> None:
    """Compare everything stored with what was measured under the same name, grouped over the scales."""
    groups: dict[str, list[Pair]] = {}
    for name in sorted(expected.keys() & measured.keys()):
        place, quantity = split_place(name)
        groups.setdefault(quantity, []).append((place, measured[name].cpu(), expected[name]))
    for quantity, pairs in groups.items():
        report.compare(run, quantity, pairs, tolerance_of(quantity))
    unused = {name for name in expected.keys() - measured.keys() if not name.endswith(".exp_noise")}
    report.not_compared(run, unused)


def image_bytes_bgr(image: Tensor) -> Tensor:
    """An image (B, 3, H, W) in [-1, 1] as the official code writes it: truncated uint8 (B, H, W, 3), BGR."""
    scaled = (image.float() + 1.0) / 2.0
    return (scaled.permute(0, 2, 3, 1) * 255.0).to(torch.uint8).flip(-1)
