"""What ``bench.py`` is made of: the models it measures, what it compares, and the machine it runs on."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # for stagevar_core, which need not be installed
