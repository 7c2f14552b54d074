"""Finds or installs what only the tests need from the system: a Chromium for the browser tests."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from .environment import log, run_quiet

BROWSER_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MAC_BROWSERS = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
APT_INSTALL = [
    "apt-get",
    "install",
    "-y",
    "-o",
    "Acquire::Retries=3",
    "--no-install-recommends",
    "chromium",
    "fonts-dejavu-core",
]


def find_chromium() -> str | None:
    """The path of an installed Chromium or Chrome; the environment variable CHROMIUM comes first."""
    if given := os.environ.get("CHROMIUM"):
        return given if Path(given).is_file() else None
    found = next((path for name in BROWSER_NAMES if (path := shutil.which(name))), None)
    return found or next((path for path in MAC_BROWSERS if Path(path).is_file()), None)


def can_install() -> bool:
    """Whether we are root on a system with Debian's chromium package."""
    return sys.platform.startswith("linux") and os.geteuid() == 0 and bool(shutil.which("apt-get"))


def ensure_chromium() -> tuple[str | None, str]:
    """A Chromium, installed when that is possible; without one, the reason."""
    if path := find_chromium():
        return path, ""
    if os.environ.get("CHROMIUM"):
        return None, f"CHROMIUM={os.environ['CHROMIUM']} does not exist"
    if not can_install():
        return None, "no Chromium found: install one or point CHROMIUM at it"
    log("installing Chromium")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update"], APT_INSTALL):
        result = run_quiet(command, env=environment)
        if result.returncode:
            reason = (result.stderr.strip().splitlines() or ["?"])[-1]
            return None, f"{' '.join(command[:2])} failed: {reason}"
    path = find_chromium()
    return path, "" if path else "the chromium package brought no program called chromium"
