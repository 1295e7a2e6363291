"""Output keeps its head, its tail and the truth about the rest, in bounded memory."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from v32.sandboxes.output import Output

PIECES = st.lists(st.text(max_size=40).map(str.encode), max_size=20)


@given(PIECES, st.integers(0, 50), st.integers(1, 50))
def test_what_fits_comes_out_whole_and_what_does_not_is_counted(pieces: list[bytes], head: int, tail: int) -> None:
    output, everything = Output(head, tail), b"".join(pieces)
    for piece in pieces:
        output.add(piece)
    text = output.text()
    if len(everything) <= head + tail:
        assert text == everything
        assert not output.left_out
        return
    marker = re.search(rb"\n\[\.\.\. ([\d,]+) bytes left out \.\.\.\]\n", text)
    assert marker
    kept = len(text) - len(marker.group())
    assert int(marker[1].replace(b",", b"")) == len(everything) - kept
    assert everything.startswith(text[: marker.start()])
    assert everything.endswith(text[marker.end() :])


@given(PIECES, st.integers(0, 50), st.integers(1, 50))
def test_no_character_is_cut_in_two(pieces: list[bytes], head: int, tail: int) -> None:
    output = Output(head, tail)
    for piece in pieces:
        output.add(piece)
    output.text().decode("utf-8")


def test_a_flood_is_not_kept() -> None:
    output = Output(16, 48)
    for _ in range(1000):
        output.add(b"x" * 65536)
    assert output.received == 65_536_000
    assert len(output.text()) < 200
    assert len(output._tail) <= 65536 + 96
