"""Which Landlock this kernel offers. The rules themselves are made inside the sandbox, see guest/confine.py."""

from __future__ import annotations

import ctypes

CREATE_RULESET, ASK_VERSION = 444, 1


def abi() -> int:
    """The ABI version; 0 where there is no Landlock."""
    answer = ctypes.CDLL(None, use_errno=True).syscall(
        CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(ASK_VERSION)
    )
    return max(0, int(answer))
