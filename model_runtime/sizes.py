"""Amounts of memory as people write them: "8GiB", "512 MiB", "24GB", or a number of bytes."""

from __future__ import annotations

import re

_UNITS = {
    "": 1,
    **{f"{p}B": 1000**n for n, p in enumerate(("", *"kMGT"))},
    **{f"{p}iB": 1024**n for n, p in enumerate(("", *"KMGT"))},
}


def parse_bytes(size: int | str) -> int:
    """The number of bytes; raises `ValueError` naming what is wrong."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKMGT]?i?B?)\s*", str(size))
    unit = match[2].replace("K", "k") if match and "i" not in match[2] else match[2] if match else ""
    if match is None or unit not in _UNITS:
        raise ValueError(f"{size!r} is no amount of memory; write 8GiB, 512MiB, 24GB or a number of bytes")
    return int(float(match[1]) * _UNITS[unit])
