"""`python -m v32` is the command `v32`; `torchrun --nproc-per-node N -m v32 …` is the same on N processes."""

from __future__ import annotations

import sys

from v32.agent.cli import main

if __name__ == "__main__":
    sys.exit(main())
