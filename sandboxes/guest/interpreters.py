"""The interpreter of a session and its checkpoints, each a process with a socket to it.

A checkpoint is stopped while it waits: whatever the cells before it have planted, nothing of it runs after a reset.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import posix
import select
import sys

from call import drain  # type: ignore[import-not-found]
from processes import is_dying, kill  # type: ignore[import-not-found]

TYPE_CHECKING = False
if TYPE_CHECKING:  # slow to import
    from collections.abc import Callable

NONCE, PIECE = 16, 64 << 10
COPY_SECONDS = 5.0
READABLE = select.POLLIN


class Interpreter:
    """A forked Python kernel; `used` once a cell has run in it."""

    def __init__(self, pid: int, channel: _socket.socket) -> None:
        self.pid = pid
        self.channel = channel
        self.used = False

    def discard(self) -> int:
        """Throw away what it said without being asked; how many messages that were."""
        count = 0
        try:
            while self.channel.recv(PIECE):
                count += 1
        except OSError:
            pass
        return count

    def copy(self) -> Interpreter:
        """Ask it to fork; the kernel tells us who answers, not the answer itself. Raises `OSError`."""
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        ours.setsockopt(_socket.SOL_SOCKET, _socket.SO_PASSCRED, 1)
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, theirs.fileno().to_bytes(4, sys.byteorder))]
        self.discard()
        nonce = posix.urandom(NONCE)
        self.channel.sendmsg([nonce + b"fork"], rights)
        theirs.close()
        poll = select.poll()
        poll.register(ours.fileno(), READABLE)
        poll.poll(COPY_SECONDS * 1000)
        ours.setblocking(False)
        try:
            _, ancillary, _, _ = ours.recvmsg(PIECE, _socket.CMSG_SPACE(12))
        except BlockingIOError:
            ancillary = []
        pids = [int.from_bytes(item[2][:4], sys.byteorder) for item in ancillary if item[1] == _socket.SCM_CREDENTIALS]
        if not pids or pids[0] == self.pid:
            raise OSError(self._why_not(nonce))
        return Interpreter(pids[0], ours)

    def _why_not(self, nonce: bytes) -> str:
        try:
            reply = self.channel.recv(PIECE)
        except OSError:
            reply = b""
        if reply[:NONCE] == nonce and reply[NONCE : NONCE + 1] == b"t":
            return reply[NONCE + 1 :].decode("ascii", "replace") + " threads run in the interpreter"
        return "the interpreter does not answer"


class Interpreters:
    """At most one is `current`. `fork(streams, program, channel)` makes a confined child and returns its pid."""

    def __init__(self, fork: Callable[..., int], program: Callable[[], None]) -> None:
        self._fork, self._program = fork, program
        self.current: Interpreter | None = None
        self.checkpoints: dict[bytes, Interpreter] = {}
        self.pipes: dict[int, bytes] = {}  # read end -> stream; all interpreters write to the same
        self._streams = (-1, -1)
        self.lost = False
        """Whether an interpreter with variables has ended since somebody last asked."""

    def pids(self) -> set[int]:
        alive = [*self.checkpoints.values(), *([self.current] if self.current else [])]
        return {interpreter.pid for interpreter in alive}

    def start(self) -> Interpreter:
        """The current one, made if there is none. Raises `OSError`."""
        if self.current is None:
            self._open_pipes()
            ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
            nothing = posix.open("/dev/null", posix.O_RDONLY)
            try:
                pid = self._fork((nothing, *self._streams), self._program, theirs.fileno())
            finally:
                posix.close(nothing)
                theirs.close()
            ours.setblocking(False)
            self.current = Interpreter(pid, ours)
        return self.current

    def drain(self) -> int:
        """Throw away what waits in the pipes; how many bytes that were."""
        return sum(len(data) for fd in self.pipes for data in drain(fd))

    def end(self) -> None:
        """End the current one, without calling that a loss."""
        if self.current is not None:
            _end(self.current)
            self.current = None
        self.lost = False

    def remember(self, name: bytes) -> None:
        """Make a checkpoint. Raises `OSError`."""
        self.checkpoints[name] = copy = self.start().copy()
        kill(copy.pid, _signal.SIGSTOP)

    def wake(self, name: bytes) -> None:
        """A copy of a checkpoint becomes the current one; the checkpoint stays. Raises `OSError`."""
        if name not in self.checkpoints:
            raise OSError("this checkpoint has ended")
        checkpoint = self.checkpoints[name]
        kill(checkpoint.pid, _signal.SIGCONT)
        try:
            copy = checkpoint.copy()
        finally:
            kill(checkpoint.pid, _signal.SIGSTOP)
        self.end()
        self.current, copy.used = copy, True

    def forget(self, name: bytes) -> None:
        if name in self.checkpoints:
            _end(self.checkpoints.pop(name))

    def kill_all(self) -> None:
        """Too much memory is held: none is spared."""
        for pid in self.pids():
            kill(pid)

    def note_end(self, pid: int) -> None:
        """A process of ours has been collected."""
        if self.current is not None and pid == self.current.pid:
            self.lost = self.lost or self.current.used
            self.current.channel.close()
            self.current = None
        for name in [name for name, copy in self.checkpoints.items() if copy.pid == pid]:
            self.checkpoints.pop(name).channel.close()

    def note_dying(self) -> None:
        """A killed process may answer for a moment still; it counts as ended."""
        for pid in self.pids():
            if is_dying(pid):
                self.note_end(pid)

    def _open_pipes(self) -> None:
        if not self.pipes:
            out, err = posix.pipe2(posix.O_CLOEXEC), posix.pipe2(posix.O_CLOEXEC)
            for read in (out[0], err[0]):
                posix.set_blocking(read, False)
            self.pipes = {out[0]: b"1", err[0]: b"2"}
            self._streams = (out[1], err[1])


def _end(interpreter: Interpreter) -> None:
    kill(interpreter.pid)
    interpreter.channel.close()
