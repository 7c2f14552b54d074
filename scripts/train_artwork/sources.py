"""Fetches the emoji sets with npm and draws every class of every set once, as ``artwork.npz``."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from ..train_embedded.common import Log

LISTED = Path(__file__).with_name("classes.json")
SIDE = 256  # pixels of a stored drawing, cut to what is not transparent


@dataclass(frozen=True)
class Artwork:
    """All drawings: (N, SIDE, SIDE, 4) uint8 with straight alpha, their classes and sets by number (N,)."""

    pictures: np.ndarray
    labels: np.ndarray
    sets: np.ndarray

    def only(self, chosen: np.ndarray) -> Artwork:
        """Those of a mask (N,)."""
        return Artwork(self.pictures[chosen], self.labels[chosen], self.sets[chosen])


@cache
def listed() -> dict:
    """``sets``: packages with their licences; ``classes``: our name to the name in the sets."""
    return json.loads(LISTED.read_text(encoding="utf-8"))


def class_names() -> tuple[str, ...]:
    """The names of the classes by number."""
    return tuple(listed()["classes"])


def licence_notes() -> str:
    """One sentence per set, for the metadata of the files."""
    return "; ".join(
        f"{s['artwork']} by {s['author']} ({s['licence']}, {s['home']})" for s in listed()["sets"]
    )


def fetched(out: Path, package: str, version: str) -> Path:
    """The package's archive, downloaded with ``npm pack`` unless it lies there."""
    folder = out / "npm"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{package.removeprefix('@').replace('/', '-')}-{version}.tgz"
    if not path.exists():
        subprocess.run(["npm", "pack", f"{package}@{version}"], cwd=folder, check=True, capture_output=True)
    return path


def cut(picture: Image.Image) -> np.ndarray:
    """A drawing cut to its own extent, centred on a square and resized to (SIDE, SIDE, 4)."""
    picture = picture.convert("RGBA")
    box = picture.getchannel("A").point(lambda alpha: 255 * (alpha > 12)).getbbox()
    if box is None:
        raise ValueError("the drawing is empty")
    picture = picture.crop(box)
    side = max(picture.size)
    square = Image.new("RGBA", (side, side))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    # Premultiplied while it is resized, or transparent black would darken its edges.
    return np.asarray(square.convert("RGBa").resize((SIDE, SIDE), Image.Resampling.LANCZOS).convert("RGBA"))


class VectorSet:
    """A set of SVG bodies under the names of the classes."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self.icons = _json(archive, "package/icons.json")

    def draw(self, name: str) -> np.ndarray:
        """The drawing under a name, through aliases."""
        import resvg_py  # a tool of training alone

        icons, aliases = self.icons["icons"], self.icons.get("aliases", {})
        while name not in icons:
            name = aliases[name]["parent"]
        icon, side = icons[name], 16
        width, height = (icon.get(key, self.icons.get(key, side)) for key in ("width", "height"))
        left, top = icon.get("left", 0), icon.get("top", 0)
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
        )
        png = resvg_py.svg_to_bytes(svg_string=svg, width=2 * SIDE, skip_system_fonts=True)
        return cut(Image.open(io.BytesIO(bytes(png))))


class PixelSet:
    """A set of pictures under the code points of the classes, which another set knows by name."""

    def __init__(self, archive: tarfile.TarFile, points: dict[str, str]) -> None:
        self.archive, self.points = archive, points

    def draw(self, name: str) -> np.ndarray:
        """The drawing under a name, with or without the mark for coloured presentation."""
        known = set(self.archive.getnames())
        for suffix in ("", "-fe0f"):
            member = f"package/assets/{self.points[name]}{suffix}.webp"
            if member in known:
                return cut(Image.open(self.archive.extractfile(member)))
        raise KeyError(f"no drawing of {name}")


def _json(archive: tarfile.TarFile, member: str) -> dict:
    return json.loads(archive.extractfile(member).read())


def gather(out: Path) -> Artwork:
    """All drawings, from ``artwork.npz`` or rendered anew."""
    path = out / "artwork.npz"
    if not path.exists():
        render(out, path)
    with np.load(path) as stored:
        return Artwork(stored["pictures"], stored["labels"], stored["sets"])


def render(out: Path, path: Path) -> None:
    """Draw every class of every set and write them."""
    log, known = Log(out / "data.jsonl"), listed()
    archives = [tarfile.open(fetched(out, s["package"], s["version"])) for s in known["sets"]]
    points = {name: point for point, name in _json(archives[0], "package/chars.json").items()}
    pictures, labels, sets = [], [], []
    for number, (about, archive) in enumerate(zip(known["sets"], archives, strict=True)):
        vector = about["package"].startswith("@iconify-json/")
        drawn = VectorSet(archive) if vector else PixelSet(archive, points)
        for label, name in enumerate(known["classes"].values()):
            pictures.append(drawn.draw(name))
            labels.append(label)
            sets.append(number)
        log(set=about["name"], drawings=len(pictures))
    partial = path.with_name("partial.npz")
    np.savez_compressed(partial, pictures=np.stack(pictures), labels=np.array(labels), sets=np.array(sets))
    partial.replace(path)
