"""Frames between host and supervisor: lists of byte fields, no syntax that a forger could nest or overflow.

    frame   u32 length of what follows | field | field | …
    field   u32 length | bytes

The same file runs on both sides: the host imports it, the supervisor gets it as a file.
"""

from __future__ import annotations

MAX_TO_HOST = 1 << 20
MAX_TO_GUEST = 80 << 20


class FrameError(Exception):
    """Bytes that are no frame."""


def pack(*fields: bytes) -> bytes:
    """One frame of these fields."""
    body = b"".join(len(field).to_bytes(4, "big") + field for field in fields)
    return len(body).to_bytes(4, "big") + body


def unpack(body: bytes) -> list[bytes]:
    """The fields of a frame's body; `FrameError` if they do not fill it exactly."""
    fields, at = [], 0
    while at < len(body):
        end = at + 4 + int.from_bytes(body[at : at + 4], "big")
        if at + 4 > len(body) or end > len(body):
            raise FrameError(f"a field of {end - at - 4} bytes overruns its frame of {len(body)}")
        fields.append(body[at + 4 : end])
        at = end
    return fields


class Frames:
    """Splits a byte stream into frames: `feed` bytes, get lists of fields."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[list[bytes]]:
        self._buffer += data
        frames = []
        while len(self._buffer) >= 4:
            length = int.from_bytes(self._buffer[:4], "big")
            if length > self._limit:
                raise FrameError(f"a frame of {length} bytes; the limit is {self._limit}")
            if len(self._buffer) < 4 + length:
                break
            frames.append(unpack(bytes(self._buffer[4 : 4 + length])))
            del self._buffer[: 4 + length]
        return frames
