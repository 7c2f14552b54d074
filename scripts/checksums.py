"""Write the checksums of the shipped models, which loading them compares; after training or converting one.

python scripts/checksums.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stagevar_core.checkpoints.shipped import ASSETS, SUMS, sha256  # noqa: E402


def main() -> int:
    """The command."""
    sums = {path.name: sha256(path) for path in sorted(ASSETS.glob("*.safetensors"))}
    SUMS.write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")
    print(f"{SUMS}: {len(sums)} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
