"""`python -m v32.agent` is `v32`."""

from __future__ import annotations

import sys

from v32.agent.cli import main

if __name__ == "__main__":
    sys.exit(main())
