"""Tiny random restoring files with the names of published ones, for ComfyUI's model folders."""

from pathlib import Path

from safetensors.torch import save_file

from stagevar_core.autoencoders.bsq import BSQTokenizer
from stagevar_core.checkpoints import prepare, save
from stagevar_core.schedule import infinity_aspect_table
from tests.support.official_restorer import TINY, TINY_CODES, merged, restorer
from tests.support.tiny import randomize

RESTORER_FILE, MERGED_FILE = "tiny_varestorer.safetensors", "tiny_varestorer_merged.safetensors"
CODES_FILE = "tiny_restorer_codes.safetensors"


def write_restorers(models: Path) -> None:
    """The published form and the merged one, which nothing marks, with their tokenizer: tiles of 512 px."""
    codes = BSQTokenizer(TINY_CODES)
    randomize(codes, 2)
    raw = dict(restorer(TINY, rank=4, chunks=2, device="cpu"))
    for folder, name, tensors in (
        ("diffusion_models", RESTORER_FILE, raw),
        ("diffusion_models", MERGED_FILE, merged(raw)),
        ("vae", CODES_FILE, codes.state_dict()),
    ):
        (models / folder).mkdir(parents=True, exist_ok=True)
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, models / folder / name)


def write_small_restorer(folder: Path) -> dict[str, Path]:
    """Files of ours for tiles of 128 px: transformer and tokenizer."""
    raw = prepare(dict(restorer(TINY, rank=4, chunks=2, device="cpu")), None, "tiny")
    raw.trained = infinity_aspect_table(8).restrict([1.0], ["0.06M"])
    codes = BSQTokenizer(SMALL_CODES)
    randomize(codes, 2)
    paths = {kind: folder / f"restoring_{kind}.safetensors" for kind in ("transformer", "tokenizer")}
    save(paths["transformer"], raw.tensors, raw.header())
    plain = prepare(codes.state_dict(), None, "codes")
    plain.trained = raw.trained
    save(paths["tokenizer"], plain.tensors, plain.header())
    return paths


SMALL_CODES = type(TINY_CODES)(dim=16, width=32, multipliers=(1, 1, 1, 1), blocks=1)
