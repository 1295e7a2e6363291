"""The Python interpreter of a session: cells in, value or traceback out, variables kept in between.

Runs in an untrusted process that the supervisor forked and confined. It talks over one datagram socket (fd 3):

    supervisor -> kernel   nonce | b"run" | total length     then the code in pieces
                           nonce | b"stop"                    before SIGINT, for a cell that has not begun
                           nonce | b"fork"                    with a socket for the copy
    kernel -> supervisor   nonce | b"v" value   |  b"n"  |  b"e" traceback
                           b"copy"                            from the copy, over its own socket

Nothing it says is believed beyond "this is what the cell answered": limits, times and deaths are measured outside.
"""

# ruff: noqa: SIM105 (contextlib is slow to import)

from __future__ import annotations

import _ast
import _signal  # type: ignore[import-not-found]
import _socket
import builtins
import io
import os
import sys
import types

TYPE_CHECKING = False
if TYPE_CHECKING:  # slow to import: loaded when the supervisor is idle, or when a cell needs it
    import asyncio

NONCE = 16
PIECE = 64 << 10
VALUE_LIMIT = 10 << 10
ERROR_LIMIT = 48 << 10
TOP_LEVEL_AWAIT = _ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
IS_COROUTINE = 0x80


class Kernel:
    """The variables of a session and the loop that serves its cells."""

    def __init__(self, channel: _socket.socket) -> None:
        self._channel = channel
        self._running = False
        self._cells = 0
        self._sources: dict[str, str] = {}
        self._event_loop: asyncio.AbstractEventLoop | None = None
        self._main = types.ModuleType("__main__")
        self._main.__dict__["__builtins__"] = builtins
        sys.modules["__main__"] = self._main
        _signal.signal(_signal.SIGINT, self._interrupt)
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, (_signal.SIGINT,))

    def serve(self) -> None:
        """Answer until the supervisor hangs up."""
        while True:
            message, passed = self._receive()
            if not message:
                return
            nonce, verb, rest = message[:NONCE], message[NONCE : NONCE + 4], message[NONCE + 4 :]
            if verb == b"run ":
                code = self._receive_code(int.from_bytes(rest, "big"))
                try:
                    answer = self._run(code)
                except KeyboardInterrupt:  # it struck while another exception was being handled
                    answer = b"eKeyboardInterrupt"
                self._channel.send(nonce + answer)
            elif verb == b"fork" and passed is not None:
                self._fork(nonce, passed)

    def _receive(self) -> tuple[bytes, int | None]:
        while True:
            try:
                data, ancillary, _, _ = self._channel.recvmsg(PIECE, _socket.CMSG_SPACE(4))
            except KeyboardInterrupt:
                continue
            passed = [int.from_bytes(item[2][:4], sys.byteorder) for item in ancillary if item[1] == _socket.SCM_RIGHTS]
            return data, passed[0] if passed else None

    def _receive_code(self, length: int) -> str:
        code = b""
        while len(code) < length:
            code += self._channel.recv(PIECE)
        return code.decode("utf-8", "surrogatepass")

    def _is_stopped(self) -> bool:
        """Whether the interrupt came before the cell had begun, when the signal was not heard."""
        try:
            return self._channel.recv(PIECE, _socket.MSG_DONTWAIT)[NONCE:] == b"stop"
        except BlockingIOError:
            return False

    def _fork(self, nonce: bytes, passed: int) -> None:
        """Become two: the copy sleeps on its own socket until the supervisor wakes it.

        It is an orphan before it answers, so that the supervisor, not we, hears of its end.
        """
        threads = len(os.listdir("/proc/self/task"))
        if threads > 1:
            self._channel.send(nonce + b"t%d" % threads)
            os.close(passed)  # last: it tells the supervisor that the answer is there
            return
        waiting, go = os.pipe()
        middle = os.fork()
        if middle == 0:
            if os.fork():
                os._exit(0)
            os.close(go)
            os.read(waiting, 1)
            os.setpgid(0, 0)
            os.dup2(passed, 3, inheritable=False)
            self._channel.send(b"copy")
        else:
            os.waitpid(middle, 0)
            os.close(go)
        os.close(waiting)
        os.close(passed)

    def _run(self, code: str) -> bytes:
        """One cell; whatever it raises becomes text."""
        _signal.signal(_signal.SIGINT, self._interrupt)
        _make_blocking(1, 2)
        self._cells += 1
        name = f"<cell {self._cells}>"
        try:
            self._running = True
            if self._is_stopped():
                raise KeyboardInterrupt
            value = self._evaluate(code, name)
            text = None if value is None else repr(value)
            self._running = False
            self._flush()
        except BaseException as error:
            self._running = False
            self._flush()
            return b"e" + _cut(self._describe(error), ERROR_LIMIT)
        return b"n" if text is None else b"v" + _cut(text, VALUE_LIMIT)

    def _evaluate(self, code: str, name: str) -> object:
        """Run the statements; the value of a last expression is the value of the cell."""
        self._sources[name] = code
        self._show_sources()
        tree = compile(code, name, "exec", _ast.PyCF_ONLY_AST | TOP_LEVEL_AWAIT, True)
        last = tree.body[-1] if tree.body and isinstance(tree.body[-1], _ast.Expr) else None
        if last is not None:
            del tree.body[-1]
        if tree.body:
            self._execute(compile(tree, name, "exec", TOP_LEVEL_AWAIT, True))
        if last is None:
            return None
        value = self._execute(compile(_ast.Expression(last.value), name, "eval", TOP_LEVEL_AWAIT, True))
        if value is not None:
            self._main.__dict__["_"] = value
        return value

    def _execute(self, code: types.CodeType) -> object:
        result = eval(code, self._main.__dict__)
        if not code.co_flags & IS_COROUTINE:
            return result
        import asyncio

        if self._event_loop is None:
            self._event_loop = asyncio.new_event_loop()
        return self._event_loop.run_until_complete(result)

    def _interrupt(self, number: int, frame: object) -> None:
        """A late interrupt, after the cell has ended, must not hit the loop."""
        if self._running:
            raise KeyboardInterrupt

    def _show_sources(self) -> None:
        """Tracebacks and `inspect` find the lines of cells in `linecache`, once something has loaded it."""
        linecache = sys.modules.get("linecache")
        if linecache is not None:
            for name, code in self._sources.items():
                linecache.cache[name] = (len(code), None, code.splitlines(True), name)
            self._sources.clear()

    def _describe(self, error: BaseException) -> str:
        """The traceback as Python prints it, without the frames of this file."""
        try:
            import traceback

            self._show_sources()
            summary: traceback.TracebackException | None = traceback.TracebackException.from_exception(error)
            assert summary is not None
            text = summary
            while summary is not None:
                summary.stack = traceback.StackSummary.from_list([f for f in summary.stack if f.filename != __file__])
                summary = summary.__cause__ or summary.__context__
            return "".join(text.format()).rstrip("\n")
        except BaseException:  # __str__ and friends belong to the cell
            return f"{type(error).__name__} (it cannot be printed)"

    @staticmethod
    def _flush() -> None:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BaseException:  # a cell may have put anything there
                pass


def _make_blocking(*fds: int) -> None:
    """Again: programs like node leave the pipes that they inherited non-blocking behind."""
    for fd in fds:
        try:
            os.set_blocking(fd, True)
        except OSError:  # a cell has closed it
            pass


def _cut(text: str, limit: int) -> bytes:
    """UTF-8, the head and the tail when it is too long."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= limit:
        return data
    head, tail = data[: limit // 4], data[-(limit * 3 // 4) :]
    left_out = b"\n[... %d bytes left out ...]\n" % (len(data) - len(head) - len(tail))
    return _whole(head) + left_out + _whole(tail)


def _whole(data: bytes) -> bytes:
    """Drop what cutting left of a character."""
    return data.decode("utf-8", "ignore").encode()


def prepare() -> None:
    """In the supervisor, before any fork: where modules are found."""
    import site

    site.main()
    sys.path.insert(0, "")


def prepare_more() -> None:
    """In the supervisor, when it is idle: what many cells will need."""
    import traceback  # noqa: F401


def start(workspace: str, environment: dict[str, str]) -> None:
    """In the child, confined: become the interpreter of the session."""
    os.chdir(workspace)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [""]
    for stream, fd in (("stdout", 1), ("stderr", 2)):
        buffer = open(fd, "wb", buffering=0, closefd=False)  # noqa: SIM115
        setattr(
            sys, stream, io.TextIOWrapper(io.BufferedWriter(buffer), "utf-8", "backslashreplace", line_buffering=True)
        )
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    Kernel(_socket.socket(fileno=3)).serve()
    os._exit(0)
