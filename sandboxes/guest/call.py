"""The one call that runs: what the host named it, its process, the pipes to carry, and what became of it."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import posix

PIECE = 64 << 10


class Call:
    """A running call; `how` stays empty until it has answered or ended."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.pid = 0
        self.nonce = b""
        self.pipes: dict[int, bytes] = {}  # read end -> stream
        self.stdin = -1
        self.to_stdin = memoryview(b"")
        self.to_interpreter: list[bytes] = []
        self.is_interrupted = False  # and the signal has not been sent yet
        self.how = b""
        self.detail = b""
        self.late = 0
        self.anomalies = 0
        self.is_over_memory = False

    def give_stdin(self, fd: int, data: bytes) -> None:
        """From now on `feed` writes the data, then closes."""
        self.stdin, self.to_stdin = fd, memoryview(data)
        posix.set_blocking(fd, False)
        if not data:
            self.close_stdin()

    def feed(self) -> None:
        try:
            self.to_stdin = self.to_stdin[posix.write(self.stdin, self.to_stdin[:PIECE]) :]
        except BlockingIOError:
            return
        except OSError:  # nobody reads any more
            self.to_stdin = memoryview(b"")
        if not self.to_stdin:
            self.close_stdin()

    def close_stdin(self) -> None:
        if self.stdin >= 0:
            posix.close(self.stdin)
            self.stdin = -1

    def end(self, status: int | None) -> None:
        """Its process has ended with this wait status; None if somebody else has collected it."""
        status = int(_signal.SIGKILL) if status is None else status
        signalled = posix.WIFSIGNALED(status)
        number = posix.WTERMSIG(status) if signalled else posix.WEXITSTATUS(status)
        if self.nonce:
            self.how, self.detail = b"died", (b"signal %d" if signalled else b"exit %d") % number
        else:
            self.how, self.detail = b"signal" if signalled else b"exit", b"%d" % number


def drain(fd: int) -> list[bytes]:
    """What a pipe holds now; at most a few pipe buffers, for a writer may still be at it."""
    pieces: list[bytes] = []
    try:
        while len(pieces) < 32:
            data = posix.read(fd, PIECE)
            if not data:
                break
            pieces.append(data)
    except BlockingIOError:
        pass
    return pieces
