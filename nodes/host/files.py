"""Model files: what the loaders list, where it is, and one clear message when it cannot be used."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import folder_paths

from ... import stagevar_core
from ...stagevar_core.checkpoints.errors import CheckpointError
from ...stagevar_core.checkpoints.files import read
from ...stagevar_core.checkpoints.load import Checkpoint, prepare

EMBEDDED = "embedded/StageVAR-scenes (built in)"
_ASSETS = Path(stagevar_core.__file__).parent / "assets"
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.\w+$")
_INDEX = ".safetensors.index.json"


@dataclass(frozen=True)
class Part:
    """One of the three kinds of model files."""

    kind: str  # as checkpoints name it
    field: str  # the loader's input
    folder: str
    asset: str
    title: str
    source: str


TRANSFORMER = Part(
    "transformer",
    "model_name",
    "diffusion_models",
    "transformer.safetensors",
    "an Infinity, VAR or STAR transformer",
    "https://huggingface.co/FoundationVision/Infinity (infinity_2b_reg.pth, infinity_8b_weights), "
    "https://huggingface.co/FoundationVision/var (var_d16.pth to var_d36.pth) or "
    "https://huggingface.co/taocrayon/STAR",
)
TOKENIZER = Part(
    "tokenizer",
    "vae_name",
    "vae",
    "tokenizer.safetensors",
    "an Infinity or VAR image tokenizer",
    "https://huggingface.co/FoundationVision/Infinity (infinity_vae_d32reg.pth for the 2B, "
    "infinity_vae_d56_f8_14_patchify.pth for the 8B) or https://huggingface.co/FoundationVision/var "
    "(vae_ch160v4096z32.pth for VAR and STAR)",
)
TEXT_ENCODER = Part(
    "text_encoder",
    "text_encoder_name",
    "text_encoders",
    "text_encoder.safetensors",
    "a T5 or CLIP text encoder",
    "https://huggingface.co/google/flan-t5-xl (all model-*.safetensors and model.safetensors.index.json in "
    "one folder) for Infinity, https://huggingface.co/taocrayon/STAR (folder CLIP) for STAR",
)


def choices(part: Part) -> list[str]:
    """The built-in model, then the user's files and sharded folders; shards alone are of no use."""
    files = [name for name in folder_paths.get_filename_list(part.folder) if not _SHARD.search(name)]
    return [EMBEDDED, *sorted({*files, *_sharded_folders(part.folder)}, key=str.lower)]


def resolve(part: Part, name: str) -> Path:
    """The file or sharded folder behind a loader's choice; raises ``ValueError`` when there is none."""
    if name == EMBEDDED:
        path = _ASSETS / part.asset
        if path.is_file():
            return path
        raise ValueError(
            f"{part.field}: the built-in model's file {path} is missing; install this pack again (its "
            "stagevar_core/assets folder holds it)"
        )
    if file := folder_paths.get_full_path(part.folder, name):
        return Path(file)
    if name in _sharded_folders(part.folder):
        roots = folder_paths.get_folder_paths(part.folder)
        return next(Path(root, name) for root in roots if Path(root, name).is_dir())
    folders = ", ".join(folder_paths.get_folder_paths(part.folder))
    raise ValueError(
        f"{part.field}: {name!r} is not in the {part.folder!r} folder ({folders}). Get {part.title} from "
        f"{part.source}, put it there and refresh; or choose {EMBEDDED!r}, which needs no download"
    )


def missing(part: Part, name: str | None) -> str | bool:
    """For ``validate_inputs``: True, or why there is no such file."""
    if name is None:  # linked: known when it runs
        return True
    try:
        resolve(part, name)
    except ValueError as error:
        return str(error)
    return True


def version(part: Part, name: str | None) -> str:
    """Changes with the file, so that a replaced one is loaded again."""
    if missing(part, name) is not True or name is None:
        return ""
    path = resolve(part, name)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return ";".join(f"{file.name}:{file.stat().st_mtime_ns}:{file.stat().st_size}" for file in files)


def load(part: Part, name: str) -> Checkpoint:
    """The checkpoint behind a loader's choice; raises ``ValueError`` for a file of another kind."""
    path = resolve(part, name)
    try:
        raw = read(path)
        return prepare(raw.tensors, raw.metadata, name, kind=part.kind)
    except CheckpointError as error:
        raise ValueError(
            f"{part.field}: {error}. This input takes {part.title}, from {part.source}"
        ) from error


def _sharded_folders(folder: str) -> set[str]:
    found = set()
    for root in folder_paths.get_folder_paths(folder):
        for place, _, files in os.walk(root, followlinks=True):
            if place != root and any(file.endswith(_INDEX) for file in files):
                found.add(Path(place).relative_to(root).as_posix())
    return found
