"""What a call printed, within bounds: the first bytes, the last bytes, and the exact count of what lies between."""

from __future__ import annotations

from v32.sandboxes.sandbox import SandboxPolicy


class Output:
    """One stream of one call; `add` as it comes, `text` when it ends. Holds head + 2 × tail bytes at most."""

    def __init__(self, head_bytes: int, tail_bytes: int) -> None:
        self._head_bytes, self._tail_bytes = head_bytes, tail_bytes
        self._head, self._tail = bytearray(), bytearray()
        self.received = 0

    @classmethod
    def of(cls, policy: SandboxPolicy) -> Output:
        return cls(policy.output_head_bytes, policy.output_tail_bytes)

    def add(self, data: bytes) -> None:
        self.received += len(data)
        room = self._head_bytes - len(self._head)
        self._head += data[:room] if room > 0 else b""
        self._tail += data[max(room, 0) :]
        if len(self._tail) > 2 * self._tail_bytes:
            del self._tail[: len(self._tail) - self._tail_bytes]

    @property
    def left_out(self) -> int:
        return max(0, self.received - self._head_bytes - self._tail_bytes)

    def text(self) -> bytes:
        """Everything, or head and tail around a line that says how much is missing; no character is cut in two."""
        if not self.left_out:
            return bytes(self._head + self._tail)
        head, tail = _without_end(bytes(self._head)), _without_start(bytes(self._tail[-self._tail_bytes :]))
        missing = self.received - len(head) - len(tail)
        return head + f"\n[... {missing:,} bytes left out ...]\n".encode() + tail


def _without_end(data: bytes) -> bytes:
    """Drop an unfinished UTF-8 character at the end."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 != 0x80:
            length = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return data[:-back] if length > back else data
    return data


def _without_start(data: bytes) -> bytes:
    """Drop continuation bytes whose character began before."""
    start = 0
    while start < min(3, len(data)) and data[start] & 0xC0 == 0x80:
        start += 1
    return data[start:]
