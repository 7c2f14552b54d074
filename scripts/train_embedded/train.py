"""Trains the embedded model: text encoder, image tokenizer, transformer, export; the one that edits; a LoRA.

    python scripts/train_embedded/train.py --out DIR [--phase text|tokenizer|transformer|export|all]
    python scripts/train_embedded/train.py --out DIR --phase editing [--score N | --export]
    python scripts/train_embedded/train.py --out DIR --phase lora

Every phase resumes from its checkpoint in DIR. Editing starts from the models of DIR, or from those that
ship; ``--score`` and ``--export`` take its last checkpoint, also while it trains. The LoRA takes minutes and
begins anew; it is for the transformer that ships, is shipped as lora_red.safetensors, and follows it.
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
    elif phase == "editing":
        from editing import train_editing

        train_editing(out)
    elif phase == "lora":
        from colour_lora import train_lora

        train_lora(out)
    else:
        from export import export

        export(out)


def look_at_editing(out: Path, count: int | None) -> None:
    """Score the last editing checkpoint on ``count`` unseen edits, or write it as the file that ships."""
    from common import Log

    if count is None:
        from export import export_editor

        export_editor(out)
        return
    from editing import score_edits, starting_models, trained_model

    Log(out / "editing_scores.jsonl")(**score_edits(trained_model(out), starting_models(out), count))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="working folder for checkpoints and logs")
    parser.add_argument("--phase", choices=(*PHASES, "editing", "lora", "all"), default="all")
    parser.add_argument("--score", type=int, metavar="N", help="of --phase editing: score N unseen edits")
    parser.add_argument("--export", action="store_true", help="of --phase editing: write the file that ships")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.phase == "editing" and (arguments.score or arguments.export):
        look_at_editing(arguments.out, arguments.score)
        return
    for phase in PHASES if arguments.phase == "all" else (arguments.phase,):
        run_phase(phase, arguments.out)


if __name__ == "__main__":
    main()
