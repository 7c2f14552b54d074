"""Trains the embedded model: text encoder, image tokenizer, transformer, export.

    python scripts/train_embedded/train.py --out DIR [--phase text|tokenizer|transformer|export|all]

Every phase resumes from its checkpoint in DIR.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

PHASES = ("text", "tokenizer", "transformer", "export")


def run_phase(phase: str, out: Path) -> None:
    """Run one phase; imports are late so that each needs only its own dependencies."""
    if phase == "text":
        from text import train_text

        train_text(out)
    elif phase == "tokenizer":
        from tokenizer import train_tokenizer

        train_tokenizer(out)
    elif phase == "transformer":
        from transformer import train_transformer

        train_transformer(out)
    else:
        from export import export

        export(out)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="working folder for checkpoints and logs")
    parser.add_argument("--phase", choices=(*PHASES, "all"), default="all")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for phase in PHASES if arguments.phase == "all" else (arguments.phase,):
        run_phase(phase, arguments.out)


if __name__ == "__main__":
    main()
