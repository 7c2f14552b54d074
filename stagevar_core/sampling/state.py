"""What runs have added so far, image by image: kept, picked from, written as bytes, and gone on from."""

import json
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..models.contract import Quantizer
from ..schedule import ScaleSchedule
from .editing import KnownCodes, check_codes
from .result import Generation, ScaleCodes
from .settings import SamplingSettings

MAGIC, VERSION = b"StageVAR", 1
_HEAD = struct.Struct("<8sHII")  # magic, version, length of the body, its CRC-32
_MOST = 2**28  # bytes of one image's codes; a megapixel of the largest model has 0.2 MB
DAMAGED = (
    "the state of the run is damaged; take the file as it was saved, or the latent as the sampler gave it, "
    "not scaled or mixed with another one"
)
_KINDS = {torch.uint8: "bits", torch.int64: "ids"}


@dataclass(frozen=True)
class RunState:
    """The first scales of some images: a :class:`~.editing.Given` that a run goes on from.

    ``images``: what each scale added to each image, all of as many scales. ``seeds``: of the images.
    ``settings``: of the run that drew them, where several did of that of the first. ``model``, ``tokenizer``:
    names of the files, for messages and to tell others apart. ``differing``: names of the settings in which
    the runs of these images differ.
    """

    schedule: ScaleSchedule
    images: tuple[tuple[ScaleCodes, ...], ...]
    seeds: tuple[int, ...]
    settings: SamplingSettings
    model: str = ""
    tokenizer: str = ""
    differing: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        generation: Generation,
        seeds: Sequence[int],
        settings: SamplingSettings,
        *,
        model: str = "",
        tokenizer: str = "",
    ) -> "RunState":
        """What a call of ``generate`` added, on the CPU."""
        images = tuple(
            tuple(scale.to(torch.device("cpu")) for scale in generation.image(index))
            for index in range(len(generation.f_hat))
        )
        return cls(generation.schedule, images, tuple(seeds), settings, model, tokenizer)

    @property
    def scales(self) -> int:
        """How many scales the runs went over."""
        return len(self.images[0])

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.scales == len(self.schedule)

    @property
    def uniform(self) -> bool:
        """Whether the same scales were skipped in all images."""
        return len({tuple(scale.drawn is None for scale in scales) for scales in self.images}) == 1

    def lead(self, index: int) -> tuple[ScaleCodes, ...]:
        """All scales of one image."""
        return self.images[index]

    def image(self, index: int) -> "RunState":
        """That of one image."""
        return self.pick([index])

    def pick(self, images: Sequence[int]) -> "RunState":
        """That of these images, in this order; one may be wanted several times."""
        return replace(
            self,
            images=tuple(self.images[index] for index in images),
            seeds=tuple(self.seeds[index] for index in images),
        )

    def first(self, scales: int) -> "RunState":
        """The first scales alone; ``ValueError`` where there are not so many."""
        if not 0 <= scales <= self.scales:
            raise ValueError(
                f"{scales} scales are to be kept of a run that went over {self.scales} of "
                f"{len(self.schedule)}; choose at most {self.scales}"
            )
        return replace(self, images=tuple(image[:scales] for image in self.images))

    def joined(self) -> tuple[ScaleCodes, ...]:
        """The scales of all images as one batch, where they are :attr:`uniform`."""
        batches = []
        for parts in zip(*self.images, strict=True):
            columns = ([part for part in column if part is not None] for column in zip(*parts, strict=True))
            batches.append(ScaleCodes(*(torch.cat(found) if found else None for found in columns)))
        return tuple(batches)

    def start(self, quantizer: Quantizer, device: torch.device) -> KnownCodes:
        """The codes for one run."""
        return KnownCodes(self.joined(), replayed=True)

    def latents(self, quantizer: Quantizer, *, each: bool = False) -> list[Tensor]:
        """The latents (B, C, H, W) after the last scale, or after ``each`` that added something."""
        f_hat, found = quantizer.empty(len(self.images), self.schedule, torch.device("cpu")), []
        for scale, parts in zip(self.schedule, zip(*self.images, strict=True), strict=False):
            rows = zip(f_hat.split(1), parts, strict=True)
            f_hat = torch.cat([part.add(row, quantizer, self.schedule, scale) for row, part in rows])
            if any(part.drawn is not None for part in parts):
                found.append(f_hat)
        return found if each else found[-1:]

    def check(self, schedule: ScaleSchedule, quantizer: Quantizer, batch: int) -> None:
        """Raise ``ValueError`` for another schedule or number of images, or codes of another tokenizer."""
        if len(self.images) != batch:
            raise ValueError(
                f"runs of {len(self.images)} images are to go on with {batch} prompts; give as many"
            )
        if self.schedule != schedule:
            here, there = (
                f"{len(each)} scales up to {each.final.width}x{each.final.height}"
                for each in (schedule, self.schedule)
            )
            raise ValueError(
                f"the run that it goes on from has {there} tokens, this model has {here}; use the model, and "
                "the size, that it was begun with"
            )
        for image in self.images:
            for scale, added in zip(schedule, image, strict=False):
                if added.drawn is not None:
                    shape = ((1, quantizer.dim) if quantizer.signs else (1,)) + quantizer.latent_grid(scale)
                    check_codes(added.drawn, shape, scale, quantizer)

    def to_bytes(self, index: int) -> bytes:
        """One image; the same image gives the same bytes."""
        parts: list[bytes] = []
        header: dict[str, Any] = {
            "grids": self.schedule.grids,
            "reference": self.schedule.reference,
            "seed": self.seeds[index],
            "settings": asdict(self.settings),
            "model": self.model,
            "tokenizer": self.tokenizer,
            "scales": [_described(scale, parts) for scale in self.images[index]],
        }
        text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
        body = zlib.compress(struct.pack("<I", len(text)) + text + b"".join(parts), 6)
        return _HEAD.pack(MAGIC, VERSION, len(body), zlib.crc32(body)) + body

    @classmethod
    def from_bytes(cls, images: Sequence[bytes]) -> "RunState | None":
        """Images as :meth:`to_bytes` wrote them, with anything behind; None for other bytes.

        ``ValueError`` for a newer version, damaged bytes and images that do not belong together.
        """
        found = [_read(each) for each in images]
        if any(each is None for each in found):
            return None
        states = [cls._of_header(*each) for each in found if each is not None]
        first = states[0]
        for state in states:
            if (state.schedule, state.scales, state.model) != (first.schedule, first.scales, first.model):
                raise ValueError(
                    f"the images of this batch come from runs of {first.model or 'one model'} after "
                    f"{first.scales} scales and of {state.model or 'another model'} after {state.scales}; "
                    "go on from images of one model, size and scale"
                )
        return replace(
            first,
            images=tuple(state.images[0] for state in states),
            seeds=tuple(state.seeds[0] for state in states),
            differing=tuple(
                each.name
                for each in fields(SamplingSettings)
                if any(
                    getattr(state.settings, each.name) != getattr(first.settings, each.name)
                    for state in states
                )
            ),
        )

    def save(self, path: Path) -> None:
        """Write all images to a file, one after the other."""
        path.write_bytes(b"".join(self.to_bytes(index) for index in range(len(self.images))))

    @classmethod
    def load(cls, path: Path) -> "RunState":
        """Those of a file that :meth:`save` wrote; ``ValueError`` naming it where it is none, or damaged."""
        images = []
        try:
            with path.open("rb") as file:
                while head := file.read(_HEAD.size):
                    if len(head) < _HEAD.size or not head.startswith(MAGIC):
                        raise ValueError("it holds no runs that stopped; pass what --save-state wrote")
                    images.append(head + file.read(min(_HEAD.unpack(head)[2], _MOST)))
            found = cls.from_bytes(images) if images else None
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror or error})") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if found is None:
            raise ValueError(f"{path}: it is empty; pass what --save-state wrote")
        return found

    @classmethod
    def _of_header(cls, header: dict[str, Any], body: bytes) -> "RunState":
        """One image from its header and the bytes of its codes."""
        try:
            settings = {key: _tupled(value) for key, value in header["settings"].items()}
            schedule = ScaleSchedule.of(header["grids"], header["reference"])
            scales, rest = [], memoryview(body)
            for described in header["scales"]:
                scale, rest = _codes(described, rest)
                scales.append(scale)
            if not 0 < len(scales) <= len(schedule):
                raise ValueError(f"{len(scales)} scales of {len(schedule)}")
            named = (str(header["model"]), str(header["tokenizer"]))
            return cls(
                schedule, (tuple(scales),), (int(header["seed"]),), SamplingSettings(**settings), *named
            )
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
            raise ValueError(f"{DAMAGED} ({type(error).__name__}: {error})") from error


def length_of(data: bytes) -> int:
    """How many bytes of an image, as :meth:`RunState.to_bytes` wrote it, ``data`` begins with."""
    return _HEAD.size + _HEAD.unpack_from(data)[2]


def _described(scale: ScaleCodes, parts: list[bytes]) -> dict[str, Any]:
    """What the header says of a scale; its bytes go to ``parts``."""
    if scale.drawn is None:
        return {}
    drawn = scale.drawn.cpu().contiguous()
    kind = _KINDS[drawn.dtype]
    values = drawn.numpy()
    parts.append(np.packbits(values).tobytes() if kind == "bits" else values.astype("<u4").tobytes())
    described: dict[str, Any] = {"kind": kind, "shape": list(drawn.shape)}
    for name in ("mixed", "weights"):
        part = getattr(scale, name)
        if part is not None:
            described[name] = list(part.shape)
            parts.append(part.cpu().float().contiguous().numpy().astype("<f4").tobytes())
    return described


def _codes(described: dict[str, Any], rest: memoryview) -> tuple[ScaleCodes, memoryview]:
    """The scale that :func:`_described` wrote, and the bytes behind it."""
    if not described:
        return ScaleCodes(None), rest
    shape = [int(side) for side in described["shape"]]
    count = math.prod(shape)
    if described["kind"] == "bits":
        taken = -(-count // 8)
        values = np.unpackbits(np.frombuffer(rest[:taken], np.uint8), count=count)
    else:
        taken = 4 * count
        values = np.frombuffer(rest[:taken], "<u4").astype(np.int64)
    parts: list[Tensor | None] = [torch.from_numpy(values.reshape(shape))]
    rest = rest[taken:]
    for name in ("mixed", "weights"):
        if name not in described:
            parts.append(None)
            continue
        floats = [int(side) for side in described[name]]
        taken = 4 * math.prod(floats)
        parts.append(torch.from_numpy(np.frombuffer(rest[:taken], "<f4").astype(np.float32).reshape(floats)))
        rest = rest[taken:]
    return ScaleCodes(*parts), rest


def _read(data: bytes) -> tuple[dict[str, Any], bytes] | None:
    """Header and codes of an image; None where the bytes were never ours."""
    if len(data) < _HEAD.size or not data.startswith(MAGIC):
        return None
    _, version, length, crc = _HEAD.unpack_from(data)
    if version > VERSION:
        raise ValueError(
            f"the state of the run has version {version}, this version of the pack reads up to {VERSION}; "
            "update ComfyUI-StageVAR"
        )
    body = data[_HEAD.size : _HEAD.size + length]
    if len(body) < length or zlib.crc32(body) != crc:
        raise ValueError(DAMAGED)
    unpacked = zlib.decompressobj()
    try:
        whole = unpacked.decompress(body, _MOST)
        size = struct.unpack_from("<I", whole)[0]
        header = json.loads(whole[4 : 4 + size])
    except (zlib.error, struct.error, ValueError) as error:
        raise ValueError(DAMAGED) from error
    if unpacked.unconsumed_tail or not isinstance(header, dict):
        raise ValueError(DAMAGED)
    return header, whole[4 + size :]


def _tupled(value: Any) -> Any:
    """Lists of JSON as the settings have them."""
    return tuple(value) if isinstance(value, list) else value
