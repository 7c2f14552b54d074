"""What the checks inside ComfyUI's own process share."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any


def refused(action: Callable[[], Any], *words: str) -> str:
    """The one sentence that the action fails with; it has these words."""
    try:
        action()
    except ValueError as error:
        assert all(word in str(error) for word in words) and "\n" not in str(error), error
        return str(error)
    raise AssertionError(f"nothing was refused, expected {words}")


def run_checks(members: Mapping[str, Any], *arguments: Any) -> None:
    """Call every function of a script whose name begins with ``check_``, and print one line for each.

    The variable STAGEVAR_CHECK of the environment chooses those with that part in their name.
    """
    chosen = os.environ.get("STAGEVAR_CHECK", "")
    for name, check in list(members.items()):
        if name.startswith("check_") and chosen in name:
            check(*arguments)
            print(f"ok: {name.removeprefix('check_')}", flush=True)
