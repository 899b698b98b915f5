"""``python -m fastpool``: the same as the command ``fastpool``."""

from __future__ import annotations

import sys

from .ops.cli import main

if __name__ == "__main__":
    sys.exit(main())
