"""Writes locales/en/nodeDefs.json from the nodes as a real ComfyUI describes them.

    python3 scripts/locales.py

Names and texts are kept in the nodes alone. Other languages are kept by hand; a test says what they miss.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from testbed.bootstrap import bootstrap
from testbed.comfy_server import PACK_NAME, ComfyServer, Json, ServerError
from testbed.environment import ROOT, SetupError

PLACE = ROOT / "locales" / "en" / "nodeDefs.json"


def definitions(info: Json) -> Json:
    """Names and texts of this pack's nodes, as the page looks them up; ``info``: answer of /object_info."""
    ours = {name: node for name, node in info.items() if PACK_NAME in str(node["python_module"])}
    return {name: _texts(node) for name, node in ours.items()}


def _texts(node: Json) -> Json:
    sections = [node["input"].get(section, {}) for section in ("required", "optional")]
    inputs = {name: spec[1] for section in sections for name, spec in section.items()}
    outputs = zip(node["output_name"], node["output_tooltips"], strict=True)
    return {
        "display_name": node["display_name"],
        "description": node["description"],
        "inputs": {name: {"name": name, "tooltip": options["tooltip"]} for name, options in inputs.items()},
        "outputs": {str(at): {"name": name, "tooltip": says} for at, (name, says) in enumerate(outputs)},
    }


def text(content: Any) -> str:
    """The text of a file of a locale."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    """Writes the file; returns the exit code."""
    try:
        setup = bootstrap()
        with ComfyServer(setup.python, setup.comfy_path) as server:
            made = definitions(server.object_info())
    except (SetupError, ServerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    PLACE.write_text(text(made), encoding="utf-8")
    print(PLACE.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
