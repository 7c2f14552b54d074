"""Files of full size without contents: a table of tensors, and nothing on the disk behind it."""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from stagevar_core.autoencoders.bsq import BSQTokenizerConfig
from stagevar_core.autoencoders.vq import VQTokenizerConfig
from stagevar_core.models.infinity_config import INFINITY_2B
from stagevar_core.models.star_config import STARConfig
from stagevar_core.models.var import VARConfig
from stagevar_core.schedule import SIDES_256, SIDES_1024
from tests.support import official_files, official_star, official_var


def write_sparse(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file in bfloat16 whose values are the zeros of a hole."""
    table: dict[str, object] = {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + 2 * tensor.numel()
        table[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [start, end]}
    raw = json.dumps(table).encode()
    raw += b" " * (-len(raw) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)


def write_published(models: Path) -> None:
    """One model of each family with all that belongs to them, under names of the user's."""
    bits = {name: BSQTokenizerConfig(dim=dim) for name, dim in (("d16", 16), ("d32", 32))}
    bits["d56"] = BSQTokenizerConfig(dim=14, multipliers=(1, 2, 4, 4))
    files: dict[str, Mapping[str, Tensor]] = {
        "diffusion_models/two.safetensors": official_files.transformer(INFINITY_2B, chunks=8),
        "diffusion_models/star.safetensors": official_star.transformer(STARConfig.released(30, SIDES_1024)),
        "diffusion_models/var.safetensors": official_var.transformer(
            VARConfig(16, 1024, 16, 4096, SIDES_256)
        ),
        **{f"vae/bits {name}.safetensors": official_files.tokenizer(c) for name, c in bits.items()},
        "vae/vq.safetensors": official_var.tokenizer(VQTokenizerConfig()),
        "text_encoders/t5.safetensors": official_files.flan_t5_xl(decoder=False),
        "text_encoders/clip.safetensors": official_star.clip_text(),
    }
    for name, tensors in files.items():
        write_sparse(models / name, tensors)
