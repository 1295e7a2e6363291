"""Frames survive any split, and nothing that is no frame gets through."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from v32.sandboxes.guest.wire import FrameError, Frames, pack, unpack

FIELDS = st.lists(st.binary(max_size=60), max_size=4)


@settings(max_examples=40)
@given(st.lists(FIELDS, max_size=4), st.data())
def test_frames_come_out_as_they_went_in_at_every_split(frames: list[list[bytes]], data: st.DataObject) -> None:
    stream = b"".join(pack(*fields) for fields in frames)
    reader, received = Frames(1 << 20), []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        received += reader.feed(stream[:cut])
        stream = stream[cut:]
    assert received == frames


@given(st.binary(max_size=300))
def test_any_bytes_give_fields_or_a_frame_error(body: bytes) -> None:
    try:
        fields = unpack(body)
    except FrameError:
        return
    assert pack(*fields)[4:] == body


@given(st.binary(max_size=300))
def test_a_stream_of_any_bytes_never_raises_anything_else(stream: bytes) -> None:
    reader = Frames(64)
    try:
        reader.feed(stream)
    except FrameError:
        return


def test_a_frame_over_the_limit_is_refused_before_it_has_arrived() -> None:
    with pytest.raises(FrameError, match="limit"):
        Frames(100).feed((101).to_bytes(4, "big"))
