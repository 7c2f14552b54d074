"""What the test bed consists of, and what happens to tests when a part of it is missing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest


def missing(what: str) -> NoReturn:
    """Skips a test for want of something, except in CI, where everything must run."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} (CI is set, so this is an error)")
    pytest.skip(what)


@dataclass(frozen=True)
class Bed:
    """Where the parts of the test bed are."""

    python: Path
    comfy_path: Path
    comfy_cli: Path
    chromium: str | None
    no_browser: str
