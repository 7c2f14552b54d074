"""A transformer's companions among the installed files, found by what the files hold."""

import zipfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import folder_paths

from ...stagevar_core.checkpoints.errors import CheckpointError
from ...stagevar_core.checkpoints.files import read
from ...stagevar_core.checkpoints.load import Checkpoint, check_pairing, prepare
from ...stagevar_core.checkpoints.shards import Parts
from . import official
from .files import ARTWORK, EDITOR, EMBEDDED, TEXT_ENCODER, TOKENIZER, TRANSFORMER, Part, choices, resolve
from .fingerprint import Stamp, known_parts, stamp
from .official import Published

# Of the files of a model of some kind: when they were last written, and what they hold without the tensors,
# or why they are none. Errors themselves would keep the frames with the tensors.
_LOOKS: dict[tuple[str, tuple[Path, ...]], tuple[list[Stamp], Checkpoint | str]] = {}


class Names(NamedTuple):
    """Files that belong together, as the loaders call them; ``text_encoder`` None for models of classes.

    ``second_text_encoder``: the other one of models that read two.
    """

    model: str
    vae: str
    text_encoder: str | None
    second_text_encoder: str | None = None


def matching(name: object) -> Names:
    """The set of files to which a transformer's file belongs.

    Raises ``ValueError`` where the file is none, and naming the published file where a companion is missing.
    """
    if name in (EMBEDDED, EDITOR):
        return Names(str(name), EMBEDDED, EMBEDDED)
    if name == ARTWORK:
        return Names(ARTWORK, ARTWORK, None)
    path = resolve(TRANSFORMER, name)
    try:
        transformer = look(path, str(name), TRANSFORMER.kind)
    except CheckpointError as error:
        expected = f"{TRANSFORMER.title}, from {TRANSFORMER.source}"
        raise ValueError(f"{TRANSFORMER.field}: {error}. This input takes {expected}") from error
    vae = _first(TOKENIZER, transformer, _pairs, official.tokenizer_of(transformer))
    found = [
        _first(TEXT_ENCODER, transformer, partial(official.reads, text), official.text_encoder_of(text))
        for text in official.texts(transformer)
    ]
    return Names(str(name), vae, *(found or [None]))


def look(path: Path, name: str, kind: str) -> Checkpoint:
    """What a model's files hold, without the tensors; remembered until they are written again.

    Raises ``CheckpointError`` for files of another kind, and for those that cannot be mapped into memory,
    where looking would be loading.
    """
    parts = known_parts(path)
    try:
        stamps = [stamp(file) for file in parts.files]
    except OSError as error:
        raise CheckpointError(f"{name}: cannot be read ({error.strerror}); check its permissions") from error
    seen = _LOOKS.get((kind, parts.files))
    if seen is None or seen[0] != stamps:
        seen = (stamps, _looked(path, name, kind, parts))
        _LOOKS[kind, parts.files] = seen
    if isinstance(seen[1], str):
        raise CheckpointError(seen[1])
    return seen[1]


def _looked(path: Path, name: str, kind: str, parts: Parts) -> Checkpoint | str:
    try:
        if not all(map(_is_mapped, parts.shards)):
            return (
                f"{name}: an old or packed PyTorch file, which has to be read as a whole to see what it is; "
                "expected one that is stored plainly. Use the three loaders, or convert it with "
                "scripts/convert_checkpoint.py"
            )
        raw = read(path)
        checkpoint = prepare(raw.tensors, raw.metadata, name, kind=kind)
    except Exception as error:  # most files of these folders belong to others, who may store anything
        return str(error) or type(error).__name__
    checkpoint.tensors.clear()
    return checkpoint


def _is_mapped(file: Path) -> bool:
    """Whether reading a file maps its tensors, so that looking at their shapes reads none of them."""
    try:
        with file.open("rb") as opened:
            start = opened.read(9)
        if not start.startswith(b"PK"):
            pickled = start.startswith(b"\x80") and start[8:9] != b"{"  # a safetensors table begins there
            return not pickled
        with zipfile.ZipFile(file) as archive:
            return all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return True  # the reader refuses it, and says why


def _pairs(transformer: Checkpoint, tokenizer: Checkpoint) -> bool:
    try:
        check_pairing(transformer, tokenizer)
    except CheckpointError:
        return False
    return True


def _first(
    part: Part,
    transformer: Checkpoint,
    fits: Callable[[Checkpoint, Checkpoint], bool],
    published: Published | None,
) -> str:
    """The first file of a kind that fits: of the published name, by the alphabet, then the built-in one."""
    for name in _ordered(choices(part), published):
        try:
            if fits(transformer, look(resolve(part, name), name, part.kind)):
                return name
        except ValueError:  # no such model; most files of these folders are other models'
            continue
    folder = f"the {part.folder!r} folder ({folder_paths.get_folder_paths(part.folder)[0]})"
    belongs = f"{TRANSFORMER.field}: {transformer.source} needs"
    if published is None:
        raise ValueError(
            f"{belongs} {part.title} of its own sizes, and none in {folder} fits. Put the one there that it "
            "was trained with, and refresh"
        )
    contents = f" ({published.contents}, in a folder {published.name})" if published.contents else ""
    raise ValueError(
        f"{belongs} {published.name}{contents}, and nothing in {folder} fits. Get it from {published.link}, "
        "put it there and refresh"
    )


def _ordered(names: Iterable[str], published: Published | None) -> list[str]:
    """Those that may fit: of the published file's or folder's name first, the built-in one last."""
    stem = published.name.removesuffix(".pth").lower() if published else ""
    if published:
        names = (name for name in names if not published.is_other(name))
    return sorted(names, key=lambda name: (name == EMBEDDED, stem not in name.lower(), name.lower()))
