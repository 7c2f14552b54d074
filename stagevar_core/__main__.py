"""``python -m stagevar_core``."""

import sys

from .cli import main

sys.exit(main())
