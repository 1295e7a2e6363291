"""Amounts of memory as people write them."""

from __future__ import annotations

import pytest

from v32.model_runtime.sizes import parse_bytes


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (4096, 4096),
        ("4096", 4096),
        ("8GiB", 8 << 30),
        ("512 MiB", 512 << 20),
        ("1.5KiB", 1536),
        ("24GB", 24_000_000_000),
        ("3kB", 3000),
        ("3KB", 3000),
        ("10B", 10),
    ],
)
def test_bytes_are_read_with_their_units(size: int | str, expected: int) -> None:
    assert parse_bytes(size) == expected


@pytest.mark.parametrize("size", ["", "GiB", "8 gigs", "-1GiB", "8G", "8iB", "1e9"])
def test_anything_else_is_refused_by_name(size: str) -> None:
    with pytest.raises(ValueError, match="is no amount of memory; write 8GiB"):
        parse_bytes(size)
