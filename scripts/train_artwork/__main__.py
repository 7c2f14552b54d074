"""Trains the artwork model: pictures, judge, tokenizer, tokens, transformer, then writes and scores it.

    python -m scripts.train_artwork --out DIR [--phase NAME]

Every phase resumes from what lies in DIR. The sets are fetched with npm as classes.json names them and drawn
with resvg-py (``pip install resvg-py``), both tools of training alone. ``--workers`` is the number of
processes, one per core. On their own: ``held-out`` trains judges that never see one of the
artists, ``sweep`` compares sampling settings, ``sheet`` draws the contact sheet.
"""

import argparse
from pathlib import Path

from .parallel import run

PHASES = ("data", "judge", "tokenizer", "tokens", "transformer", "export", "score")
PICTURES_MEASURED = 168
EXTRA = ("held-out", "sweep", "sheet")
PICTURES = 9_600  # that the transformer learns from, about 30 of every drawing


def run_phase(phase: str, out: Path, count: int) -> None:
    """Run one phase; imports are late so that each needs only its own dependencies."""
    if phase == "data":
        from .sources import gather

        gather(out)
    elif phase == "judge":
        from .judging import train_judge

        run(train_judge, out, count=count, out=out)
    elif phase == "held-out":
        from .judging import JudgeTraining, train_judge

        for left_out in ("noto", "twemoji"):
            run(train_judge, out, JudgeTraining(steps=600, without=left_out), count=count, out=out)
    elif phase == "tokenizer":
        from .tokenizer import train_tokenizer

        run(train_tokenizer, out, count=count, out=out)
    elif phase == "tokens":
        from .tokens import cache_tokens

        run(cache_tokens, out, PICTURES, count=count, out=out)
    elif phase == "transformer":
        from .transformer import train_transformer

        run(train_transformer, out, count=count, out=out)
    elif phase == "export":
        from .export import export

        export(out)
    elif phase == "sweep":
        from .sweep import sweep

        sweep(out)
    elif phase == "sheet":
        from .sweep import sheet

        sheet(out, out / "sheet.jpg")
    else:
        from .measure import measure, report

        measure(out, PICTURES_MEASURED)
        for row in report(out):
            print(row)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="working folder for checkpoints and logs")
    parser.add_argument("--phase", choices=(*PHASES, *EXTRA, "all"), default="all")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for phase in PHASES if arguments.phase == "all" else (arguments.phase,):
        run_phase(phase, arguments.out, arguments.workers)


if __name__ == "__main__":
    main()
