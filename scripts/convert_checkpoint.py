"""Convert a checkpoint to one safetensors file with its configuration inside.

Takes what the loaders take (safetensors, .pth, a directory of shards) and also PyTorch files that hold
other Python objects beside their tensors, as training checkpoints do: those objects become empty placeholders
and no code of the file is run. Weights pass through one tensor at a time.

    python scripts/convert_checkpoint.py infinity_2b_reg.pth --dtype bfloat16 --out infinity_2b.safetensors
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stagevar_core.checkpoints import (  # noqa: E402
    Checkpoint,
    CheckpointError,
    RawCheckpoint,
    merge,
    prepare,
    read,
    read_lora,
    save,
)
from stagevar_core.checkpoints.errors import NeedsCodeError  # noqa: E402
from stagevar_core.checkpoints.load import read_vocabulary  # noqa: E402
from stagevar_core.checkpoints.quantized import WRITTEN  # noqa: E402
from stagevar_core.checkpoints.shards import parts_of  # noqa: E402
from stagevar_core.checkpoints.tasks import AUTO, TASKS, with_task  # noqa: E402
from stagevar_core.commands.options import add_lora_option  # noqa: E402
from stagevar_core.devices import DTYPES  # noqa: E402

KINDS = ("transformer", "tokenizer", "text_encoder")


class Placeholder(dict):
    """Stands for any object of a pickle: takes whatever it is built from and does nothing with it."""

    def __new__(cls, *args: object, **kwargs: object) -> Placeholder:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        pass

    def append(self, value: object) -> None:
        """Takes an element, as ``extend`` takes several, and forgets it."""

    extend = append


def read_tensors(path: Path) -> RawCheckpoint:
    """Read ``path``; where it needs code, read it again with placeholders for everything but tensors."""
    try:
        return read(path)
    except NeedsCodeError:
        names = {name for shard in parts_of(path).shards for name in unsafe_names(shard)}
    # One class per name, since torch compares them; modules that reach the system stay blocked.
    stand_ins = [(type("Placeholder", (Placeholder,), {}), name) for name in names]
    try:
        with torch.serialization.safe_globals(stand_ins):
            content = read(path)
    except (NeedsCodeError, AttributeError, TypeError) as error:  # the last two: torch before 2.7
        raise CheckpointError(
            f"{path}: its tensors cannot be taken out without running its code; expected an archive of "
            f"torch.save (and torch 2.7 or newer, this is {torch.__version__}). Use a .safetensors version"
        ) from error
    print(f"not loaded: Python objects {', '.join(sorted(names))}")
    return content


def unsafe_names(path: Path) -> list[str]:
    """Names in a pickle that torch does not trust; empty where that cannot be told."""
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except (AttributeError, ValueError, RuntimeError, OSError):  # an old torch, or no archive
        return []


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("checkpoint", type=Path, help="file, or directory of shards")
    parser.add_argument(
        "--out", type=Path, help="default: the checkpoint's name with .safetensors, beside it"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="of matrices and kernels; default: as they are")
    parser.add_argument(
        "--quantize",
        choices=WRITTEN,
        help="store the matrices of a transformer's blocks in 8 bits with scales, as ComfyUI does",
    )
    parser.add_argument("--title", help="name to show for the model")
    parser.add_argument("--kind", choices=KINDS, help="which model to take from a file that holds several")
    parser.add_argument(
        "--task",
        choices=TASKS,
        default=AUTO,
        help="what an Infinity transformer is for, which no tensor tells",
    )
    add_lora_option(parser)
    options = parser.parse_args(arguments)
    source: Path = options.checkpoint
    out = options.out or _beside(source)
    if out.suffix != ".safetensors":
        parser.error(f"--out is {out}; expected a name that ends in .safetensors")
    if out.exists() and out.samefile(source):
        parser.error(f"{out} is the checkpoint itself; choose another name with --out")
    try:
        checkpoint = with_task(prepare(*read_tensors(source), kind=options.kind), options.task)
        _add_loras(checkpoint, options.lora, DTYPES.get(options.dtype))
        header = replace(checkpoint.header(), title=options.title or checkpoint.title)
        if checkpoint.kind == "text_encoder" and header.tokenizer_json is None:
            header = replace(header, tokenizer_json=_vocabulary(checkpoint.family, source))
        if options.quantize and checkpoint.kind != "transformer":
            raise ValueError(f"{source} is a {checkpoint.kind}; --quantize is for transformers, leave it out")
        quantize = WRITTEN.get(options.quantize)
        size = save(out, checkpoint.tensors, header, dtype=DTYPES.get(options.dtype), quantize=quantize)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for note in checkpoint.notes:
        print(f"not loaded: {note}")
    print(f"kind:    {checkpoint.kind}\nfamily:  {checkpoint.family}\nconfig:  {checkpoint.config}")
    print(f"size:    {size / 1e6:,.1f} MB, {checkpoint.parameters / 1e6:,.1f} M parameters\nwritten: {out}")
    return 0


def _add_loras(checkpoint: Checkpoint, files: list[tuple[Path, float]], dtype: torch.dtype | None) -> None:
    """Merge LoRAs into a model, with a line about each; the sums are held in memory."""
    loras = [(read_lora(file, checkpoint), strength) for file, strength in files]
    for lora, strength in loras:
        print(f"merged:  {lora.source} at {strength:g}: {lora.summary()}")
    merge(checkpoint, loras, dtype)


def _beside(source: Path) -> Path:
    """Where the result goes: beside the file or folder of shards; a set is named like its folder."""
    try:
        alone = source.is_file() and len(parts_of(source).shards) == 1
    except CheckpointError:  # said when it is read
        alone = True
    if alone:
        return source.with_suffix(".safetensors")
    folder = (source.parent if source.is_file() else source).resolve()
    return (folder if source.is_file() else folder.parent) / f"{folder.name}.safetensors"


def _vocabulary(family: str, source: Path) -> str | None:
    """The vocabulary beside a text encoder, to travel inside the file; without it the loader asks for one."""
    try:
        return read_vocabulary(family, source)
    except ValueError as error:
        print(f"without vocabulary: {error}")
        return None


if __name__ == "__main__":
    sys.exit(main())
