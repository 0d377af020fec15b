"""``python3 -m pgnet`` is the command ``pgnet``."""

from __future__ import annotations

import sys

from pgnet.cli import main

if __name__ == "__main__":
    sys.exit(main())
