"""Compares this project with outputs of the original implementations: ``python -m tests.parity PATH...``.

Each PATH is one fixture folder: config.json, weights, inputs and stored outputs. What a folder holds is read
from its config.json and files, never from its name. Exits non-zero when a quantity misses its tolerance or a
folder cannot be read.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from . import accelerated as parity_accelerated
from . import hart as parity_hart
from . import infinity as parity_infinity
from . import infinity_edit as parity_edit
from . import restorer as parity_restorer
from . import star as parity_star
from . import switti as parity_switti
from . import var as parity_var
from .report import Report, UnreadableFolder, UnreleasedOption

# One module per family, special ones first: claims(folder, config) -> bool, compare(folder, config, report).
FAMILIES: tuple[ModuleType, ...] = (
    parity_accelerated,
    parity_restorer,
    parity_edit,
    parity_infinity,
    parity_var,
    parity_star,
    parity_hart,
    parity_switti,
)


def read_config(folder: Path) -> dict:
    """The folder's config.json; raises :class:`UnreadableFolder` with the reason."""
    path = folder / "config.json"
    if not folder.exists():
        raise UnreadableFolder("no such folder")
    if not path.is_file():
        raise UnreadableFolder("no config.json in it; pass the fixture folders themselves")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnreadableFolder(f"config.json is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise UnreadableFolder(f"config.json holds a {type(config).__name__}, expected an object")
    return config


def compare_folder(folder: Path, report: Report, *, skip_unsupported: bool = False) -> None:
    """Compare one folder; every outcome is a printed line and a count in ``report``."""
    report.folder = folder.name or str(folder)
    before = report.compared + report.missed
    try:
        config = read_config(folder)
        family = next((module for module in FAMILIES if module.claims(folder, config)), None)
        if family is None:
            report.skipped += skip_unsupported
            report.unreadable += not skip_unsupported
            report.write(f"{report.folder}: not supported: no runner for this family ({_describe(config)})")
            return
        family.compare(folder, config, report)
    except UnreleasedOption as option:
        report.skipped += 1
        report.write(f"{report.folder}: skipped, options no release uses: {option}")
    except UnreadableFolder as reason:
        report.unreadable += 1
        report.write(f"{report.folder}: cannot be read: {reason}")
    except Exception as error:  # one broken folder must not hide the result of the others
        report.unreadable += 1
        report.write(f"{report.folder}: cannot be read: {type(error).__name__}: {error}")
    else:
        if report.compared + report.missed == before:
            report.unreadable += 1
            report.write(f"{report.folder}: cannot be read: nothing in it can be compared")


def _describe(config: dict) -> str:
    return f"model {config['model']!r}" if "model" in config else f"config keys {sorted(config)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__.split("\n\n")[0])
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a fixture folder")
    parser.add_argument(
        "--skip-unsupported", action="store_true", help="folders of families without a runner are no failure"
    )
    options = parser.parse_args(arguments)
    report = Report()
    for path in options.paths:
        if path.is_file():
            print(f"{path.name}: ignored, a plain file; fixtures are folders")
            continue
        compare_folder(path, report, skip_unsupported=options.skip_unsupported)
    print(report.summary())
    return int(report.failed)


if __name__ == "__main__":
    sys.exit(main())
