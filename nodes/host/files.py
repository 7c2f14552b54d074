"""Model files: what the loaders list, where it is, and one clear message when it cannot be used."""

from dataclasses import dataclass
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ...stagevar_core.checkpoints.errors import CheckpointError
from ...stagevar_core.checkpoints.files import read
from ...stagevar_core.checkpoints.load import Checkpoint, prepare
from ...stagevar_core.checks import one_of, shown, some
from ...stagevar_core.embedded import ASSETS
from . import listing
from .fingerprint import fingerprint, known_parts
from .schema import describe

EMBEDDED = "embedded/StageVAR-scenes (built in)"
EDITOR = "embedded/StageVAR-scenes editor (built in)"  # with the tokenizer and text encoder of the other
ARTWORK = "embedded/StageVAR-artwork (built in)"  # draws classes, and has no text encoder
NONE = "none"  # of files that need not be


@dataclass(frozen=True)
class Part:
    """One of the kinds of model files."""

    kind: str  # as checkpoints name it
    field: str  # the loader's input
    folder: str
    assets: dict[str, str]  # those that come with this pack, by their names in the list
    title: str
    source: str


TRANSFORMER = Part(
    "transformer",
    "model_name",
    "diffusion_models",
    {
        EMBEDDED: "transformer.safetensors",
        EDITOR: "editor.safetensors",
        ARTWORK: "artwork_transformer.safetensors",
    },
    "an Infinity, VAR, STAR or Switti transformer",
    "https://huggingface.co/FoundationVision/Infinity (infinity_2b_reg.pth, infinity_8b_weights), "
    "https://huggingface.co/FoundationVision/var (var_d16.pth to var_d36.pth), "
    "https://huggingface.co/HiDream-ai/VAREdit (8B-1024.pth, 8B-512.pth, 2B-512.pth), "
    "https://huggingface.co/taocrayon/STAR or https://huggingface.co/yresearch (Switti, Switti-1024, "
    "and both with -AR)",
)
TOKENIZER = Part(
    "tokenizer",
    "vae_name",
    "vae",
    {EMBEDDED: "tokenizer.safetensors", ARTWORK: "artwork_tokenizer.safetensors"},
    "an Infinity, VAR or Switti image tokenizer",
    "https://huggingface.co/FoundationVision/Infinity (infinity_vae_d32reg.pth for the 2B, "
    "infinity_vae_d56_f8_14_patchify.pth for the 8B), https://huggingface.co/FoundationVision/var "
    "(vae_ch160v4096z32.pth for VAR and STAR) or https://huggingface.co/yresearch/VQVAE-Switti",
)
TEXT_ENCODER = Part(
    "text_encoder",
    "text_encoder_name",
    "text_encoders",
    {EMBEDDED: "text_encoder.safetensors"},
    "a T5 or CLIP text encoder",
    "https://huggingface.co/google/flan-t5-xl (all model-*.safetensors and model.safetensors.index.json in "
    "one folder) for Infinity, https://huggingface.co/taocrayon/STAR (folder CLIP) for STAR, "
    "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0 (text_encoder and text_encoder_2) for "
    "Switti",
)


def choices(part: Part) -> list[str]:
    """The built-in models, then the user's files and models in shards, as the host lists them."""
    return [*part.assets, *listing.listed(part.folder)]


def resolve(part: Part, name: object) -> Path:
    """The file, index or folder behind a loader's choice; raises ``ValueError`` when there is none."""
    if not isinstance(name, str):
        one_of(part.field, name, choices(part))
    text = str(name)
    if text in part.assets:
        path = ASSETS / part.assets[text]
        if path.is_file():
            return path
        raise ValueError(
            f"{part.field}: the built-in model's file {path} is missing; install this pack again (its "
            "stagevar_core/assets folder holds it)"
        )
    try:
        path = listing.find(part.folder, text)
    except CheckpointError as error:
        raise ValueError(f"{part.field}: {error}. It belongs to {part.title}, from {part.source}") from error
    if path is None:
        raise ValueError(_unknown(part, text))
    return path


def file_input(part: Part, what: str) -> io.Combo.Input:
    """The choice of a file of a kind; optional, as everything with a default is."""
    return describe(
        io.Combo.Input,
        part.field,
        options=choices(part),
        default=EMBEDDED,
        optional=True,
        tooltip=f"{what} from models/{part.folder}: a file, or the folder or the first file of a model in "
        "shards. What begins with embedded/ comes with this pack. Official files: "
        f"{part.source}.",
    )


def second_input(part: Part, field: str, tooltip: str) -> io.Combo.Input:
    """The choice of another file of a kind beside the first, or of none."""
    return describe(
        io.Combo.Input,
        field,
        options=[NONE, *listing.listed(part.folder)],
        default=NONE,
        optional=True,
        tooltip=tooltip,
    )


def missing(part: Part, name: object) -> str | bool:
    """For ``validate_inputs``: True, or why there is no such model."""
    if name is None:  # linked: known when it runs
        return True
    try:
        resolve(part, name)
    except ValueError as error:
        return str(error)
    return True


def version(part: Part, name: object) -> str:
    """Changes with what the model's files hold, so that a replaced one is loaded again; empty without one."""
    try:
        return fingerprint(known_parts(resolve(part, name)).files)
    except (ValueError, OSError):  # running it says why
        return ""


def load(part: Part, name: object) -> Checkpoint:
    """The checkpoint behind a loader's choice; raises ``ValueError`` for a file of another kind."""
    path = resolve(part, name)
    try:
        raw = read(path)
        return prepare(raw.tensors, raw.metadata, str(name), kind=part.kind)
    except CheckpointError as error:
        raise ValueError(
            f"{part.field}: {error}. This input takes {part.title}, from {part.source}"
        ) from error


def _unknown(part: Part, name: str) -> str:
    """Why a name stands for nothing, and what does."""
    known = choices(part)
    same = next((choice for choice in known if _bare(choice) == _bare(name)), None)
    choice = f"{same!r}, which has that name" if same else f"one of {some(known)}"
    folders, own = ", ".join(folder_paths.get_folder_paths(part.folder)), next(iter(part.assets))
    return (
        f"{part.field}: {shown(name)} is not in the {part.folder!r} folder ({folders}). Get {part.title} "
        f"from {part.source}, put it there and refresh; or choose {choice}. {own!r} needs no download"
    )


def _bare(name: str) -> str:
    """A name in small letters without its folders, of which files with names that all have keep the last."""
    parts = name.replace("\\", "/").lower().split("/")
    return "/".join(parts[-2:] if "model" in parts[-1] else parts[-1:])
