"""Amounts of memory as people write them: "8GiB", "512 MiB", "24GB", or a number of bytes."""

from __future__ import annotations

import re

_UNITS = {"": 1, "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def parse_bytes(size: int | str) -> int:
    """The number of bytes; raises `ValueError` naming what is wrong."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(size))
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"{size!r} is no amount of memory; write 8GiB, 512MiB, 24GB or a number of bytes")
    return int(float(match[1]) * _UNITS[match[2]])
