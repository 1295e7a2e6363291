"""The supervisor of a sandbox: starts foreign programs, watches them, and alone speaks to the host.

In a namespace it is PID 1: nothing inside can kill, stop, trace or look into it, and when it ends the kernel ends
everything else. One call at a time:

    host -> here   settings name=value …           once, first
                   python id fresh code
                   exec id cwd stdin argc argv… NAME=value…
                   fork id name | wake id name | forget name      checkpoints of the interpreter
                   restart id wipe
                   interrupt id | kill id          while a call runs; stale ids are ignored
    here -> host   ready                           said by boot.py
                   out id stream data
                   interrupted id                  the signal is sent: from now on the code is to blame for delay
                   done id how detail lost late anomalies memory

`how` is one of value, none, error, exit, signal, died, ok, failed. `lost` is 1 when an interpreter with variables
ended since the last answer.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import posix
import select
import sys
import time

from call import Call, drain  # type: ignore[import-not-found]
from interpreters import Interpreter, Interpreters  # type: ignore[import-not-found]
from processes import execute, kill, members, signal_group  # type: ignore[import-not-found]
from storage import empty  # type: ignore[import-not-found]
from wire import MAX_TO_GUEST, FrameError, Frames, pack  # type: ignore[import-not-found]

TYPE_CHECKING = False
if TYPE_CHECKING:  # slow to import
    from collections.abc import Callable
    from typing import Any, NoReturn

NONCE, PIECE, REPLY_LIMIT = 16, 64 << 10, 128 << 10
SWEEP_SECONDS = 4.0
WATCH_SECONDS, IDLE_WATCH_SECONDS = 0.05, 0.5
READABLE, WRITABLE = select.POLLIN, select.POLLOUT
ANSWERS = {b"v": b"value", b"n": b"none", b"e": b"error"}


class Supervisor:
    """`mode` is `namespace`: every process we see is the sandbox's; or `tree`: our descendants are."""

    def __init__(self, peer: int, control_in: int, control_out: int, workspace: str, mode: str) -> None:
        self._peer, self._in, self._out = peer, control_in, control_out
        self._workspace, self._is_namespace = workspace, mode == "namespace"
        self._frames = Frames(MAX_TO_GUEST)
        self._writable = (workspace, "/tmp", "/dev/shm") if self._is_namespace else (workspace,)
        self._settings: dict[str, int] = {}
        self._environment: dict[str, str] = {}
        self._confine: Callable[[], None] | None = None
        self._warm_up: Callable[[], None] | None = None
        self._watchdog: Any = None
        self._interpreters = Interpreters(self._fork, self._become_interpreter)
        self._statuses: dict[int, int] = {}
        self._call: Call | None = None
        self._ahead: list[list[bytes]] = []  # frames that came along with the one that is being served

    # -- life ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until the host hangs up or dies."""
        while True:
            self._ahead += self._wait_for_host()
            while self._ahead:
                self._take(self._ahead.pop(0))

    def _wait_for_host(self) -> list[list[bytes]]:
        poll = select.poll()
        poll.register(self._in, READABLE)
        if self._peer >= 0:
            poll.register(self._peer, READABLE)
        if self._warm_up is not None and not poll.poll(0):
            self._warm_up()
            self._warm_up = None
        is_watched = self._watchdog is not None and self._interpreters.current is not None
        for fd, _ in poll.poll(IDLE_WATCH_SECONDS * 1000 if is_watched else None):
            if fd == self._peer:
                self.leave()
            return self._receive()
        self._reap()
        self._watch(None)
        return []

    def _receive(self) -> list[list[bytes]]:
        data = posix.read(self._in, 1 << 20)
        if not data:
            self.leave()
        try:
            return self._frames.feed(data)
        except FrameError:
            self.leave()

    def leave(self) -> NoReturn:
        """The host is gone. In a namespace the kernel ends the rest with us; elsewhere that is our duty."""
        if not self._is_namespace:
            self._sweep(spared=set())
            folder = self._workspace.rpartition("/")[0]
            if folder.rpartition("/")[2].startswith("v32-unisolated-"):  # made for us alone; a killed host cannot
                empty(folder)
                posix.rmdir(folder)
        posix._exit(0)

    def _send(self, *fields: bytes) -> None:
        data = memoryview(pack(*fields))
        while data:
            try:
                data = data[posix.write(self._out, data) :]
            except BlockingIOError:
                poll = select.poll()
                poll.register(self._out, WRITABLE)
                poll.poll()
            except OSError:
                self.leave()

    # -- requests -----------------------------------------------------------------------------------------------

    def _take(self, frame: list[bytes]) -> None:
        verb, arguments = frame[0], frame[1:]
        if verb == b"settings":
            self._set(arguments)
        elif verb == b"python":
            self._python(*arguments)
        elif verb == b"exec":
            self._exec(*arguments)
        elif verb == b"restart":
            name, wipe = arguments
            self._order(name, lambda: self._restart(wipe == b"1"))
        elif verb == b"fork":
            name, checkpoint = arguments
            self._order(name, lambda: self._interpreters.remember(checkpoint))
        elif verb == b"wake":
            name, checkpoint = arguments
            self._order(name, lambda: self._wake(checkpoint))
        elif verb == b"forget":
            self._interpreters.forget(arguments[0])

    def _set(self, arguments: list[bytes]) -> None:
        """After `ready`: the settings, and what the first untrusted process will need."""
        pairs = [tuple(argument.decode().split("=", 1)) for argument in arguments]
        self._environment = {name[4:]: value for name, value in pairs if name.startswith("env.")}
        self._settings = settings = {name: int(value) for name, value in pairs if not name.startswith("env.")}
        import confine  # type: ignore[import-not-found]

        confine.set_dumpable(False)
        _signal.pthread_sigmask(_signal.SIG_BLOCK, (_signal.SIGINT,))  # a child unblocks it when it can take it
        if not self._is_namespace:
            confine.set_subreaper()
        landlock = confine.Landlock(self._writable) if settings["landlock"] else None
        self._confine = lambda: confine.confine(settings, landlock)
        import kernel  # type: ignore[import-not-found]

        self._start_kernel, self._warm_up = kernel.start, kernel.prepare_more
        if settings["watch_bytes"]:
            import watchdog  # type: ignore[import-not-found]

            pools = list(self._writable) if self._is_namespace else []
            self._watchdog = watchdog.Watchdog(settings["watch_bytes"], pools, lambda: members(self._is_namespace))
        sys.path.remove(__file__.rpartition("/")[0])
        kernel.prepare()

    def _python(self, name: bytes, fresh: bytes, code: bytes) -> None:
        call = self._begin(name)
        if fresh == b"1":
            self._interpreters.end()
            self._sweep()
        try:
            interpreter = self._interpreters.start()
        except OSError as error:
            self._finish(call, b"failed", str(error).encode())
            return
        call.late = self._interpreters.drain()
        call.anomalies = interpreter.discard()
        call.pid, call.pipes, call.nonce = interpreter.pid, dict(self._interpreters.pipes), posix.urandom(NONCE)
        pieces = [code[at : at + PIECE] for at in range(0, len(code), PIECE)]
        call.to_interpreter = [call.nonce + b"run " + len(code).to_bytes(8, "big"), *pieces]
        interpreter.used = True
        self._attend(call)
        self._finish(call, call.how, call.detail)

    def _exec(self, name: bytes, cwd: bytes, stdin: bytes, count: bytes, *rest: bytes) -> None:
        call = self._begin(name)
        argv, extra = list(rest[: int(count)]), rest[int(count) :]
        environment = {name.encode(): text.encode() for name, text in self._environment.items()}
        for item in extra:
            key, _, value = item.partition(b"=")
            environment[key] = value
        pipes = [posix.pipe2(posix.O_CLOEXEC) for _ in range(3)]
        given, out, err = pipes
        try:
            call.pid = self._fork((given[0], out[1], err[1]), lambda: execute(argv, environment, cwd))
        except OSError as error:
            for fd in (fd for ends in pipes for fd in ends):
                posix.close(fd)
            self._finish(call, b"failed", str(error).encode())
            return
        for fd in (given[0], out[1], err[1]):
            posix.close(fd)
        for fd in (out[0], err[0]):
            posix.set_blocking(fd, False)
        call.pipes = {out[0]: b"1", err[0]: b"2"}
        call.give_stdin(given[1], stdin)
        self._attend(call)
        for fd in call.pipes:
            posix.close(fd)
        call.close_stdin()
        self._finish(call, call.how, call.detail)

    def _order(self, name: bytes, work: Callable[[], None]) -> None:
        """A request that runs no foreign code."""
        call = self._begin(name)
        try:
            work()
        except OSError as error:
            self._finish(call, b"failed", str(error).encode())
        else:
            self._finish(call, b"ok", b"")

    def _restart(self, wipe: bool) -> None:
        """A new interpreter for an old one; nothing of what ran survives but checkpoints, which are stopped."""
        self._interpreters.end()
        self._sweep()
        if wipe:
            for directory in self._writable:
                empty(directory)
        self._interpreters.drain()
        self._interpreters.start()

    def _wake(self, checkpoint: bytes) -> None:
        self._interpreters.wake(checkpoint)
        self._sweep()
        self._interpreters.drain()

    def _begin(self, name: bytes) -> Call:
        self._reap()
        self._call = call = Call(name)
        if self._watchdog is not None:
            self._watchdog.begin()
        return call

    def _finish(self, call: Call, how: bytes, detail: bytes) -> None:
        self._call = None
        self._interpreters.note_dying()
        lost, self._interpreters.lost = self._interpreters.lost, False
        counts = (b"%d" % number for number in (lost, call.late, call.anomalies, call.is_over_memory))
        self._send(b"done", call.name, how, detail, *counts)

    # -- a running call -----------------------------------------------------------------------------------------

    def _attend(self, call: Call) -> None:
        """Carry bytes until the call's process answers or ends, then clean up after it and carry the rest."""
        interpreter = self._interpreters.current if call.nonce else None
        try:
            ended = posix.pidfd_open(call.pid)
        except ProcessLookupError:  # an interpreter that was never our child, and is gone
            call.end(None)
        else:
            while self._ahead:
                self._steer(call, self._ahead.pop(0))
            while not call.how:
                self._step(call, interpreter, ended)
            posix.close(ended)
        if not self._settings["keep_background"]:
            self._sweep()
        for fd, stream in call.pipes.items():
            for data in drain(fd):
                self._send(b"out", call.name, stream, data)

    def _step(self, call: Call, interpreter: Interpreter | None, ended: int) -> None:
        if call.pid in self._statuses:  # collected while we swept
            call.end(self._statuses.pop(call.pid))
            return
        poll = select.poll()
        for fd in (self._in, ended, *call.pipes):
            poll.register(fd, READABLE)
        if self._peer >= 0:
            poll.register(self._peer, READABLE)
        if interpreter is not None:
            poll.register(interpreter.channel.fileno(), READABLE | (WRITABLE if call.to_interpreter else 0))
        if call.stdin >= 0:
            poll.register(call.stdin, WRITABLE)
        events = dict(poll.poll(None if self._watchdog is None else WATCH_SECONDS * 1000))
        if self._peer in events:
            self.leave()
        if self._in in events:
            for frame in self._receive():
                self._steer(call, frame)
        for fd in [fd for fd in call.pipes if fd in events]:
            self._carry(call, fd)
        if call.stdin in events:
            call.feed()
        if interpreter is not None and interpreter.channel.fileno() in events:
            self._converse(call, interpreter)
        if ended in events and not call.how:
            self._note_end(call)
        self._watch(call)

    def _steer(self, call: Call, frame: list[bytes]) -> None:
        if frame[0] not in (b"interrupt", b"kill") or frame[1] != call.name:
            return
        if frame[0] == b"interrupt":
            call.is_interrupted = True
            if call.nonce:
                call.to_interpreter.append(call.nonce + b"stop")
            else:
                self._interrupt(call)
        else:
            signal_group(call.pid, _signal.SIGKILL)
            self._sweep(spared=self._interpreters.pids() - {call.pid})

    def _interrupt(self, call: Call) -> None:
        call.is_interrupted = False
        signal_group(call.pid, _signal.SIGINT)
        self._send(b"interrupted", call.name)

    def _carry(self, call: Call, fd: int) -> None:
        try:
            data = posix.read(fd, PIECE)
        except BlockingIOError:
            return
        if data:
            self._send(b"out", call.name, call.pipes[fd], data)
        else:
            del call.pipes[fd]
            posix.close(fd)

    def _converse(self, call: Call, interpreter: Interpreter) -> None:
        """Send what is left of the code; look at what the interpreter says."""
        try:
            while call.to_interpreter:
                interpreter.channel.send(call.to_interpreter[0])
                del call.to_interpreter[0]
        except BlockingIOError:
            pass
        except OSError:
            call.to_interpreter.clear()
        if call.is_interrupted and not call.to_interpreter:
            self._interrupt(call)
        try:
            reply = interpreter.channel.recv(REPLY_LIMIT + 1)
        except BlockingIOError:
            return
        except OSError:
            reply = b""
        if not reply:  # it closed its side: nothing can be heard from it any more
            kill(interpreter.pid)
            self._note_end(call)
        elif reply[:NONCE] == call.nonce and len(reply) <= REPLY_LIMIT and reply[NONCE : NONCE + 1] in ANSWERS:
            call.how, call.detail = ANSWERS[reply[NONCE : NONCE + 1]], reply[NONCE + 1 :]
        else:
            call.anomalies += 1

    def _note_end(self, call: Call) -> None:
        """Its process ends or has ended; it is collected, unless it is not our child, as a hostile copy may be."""
        try:
            posix.waitid(posix.P_PID, call.pid, posix.WEXITED | posix.WNOWAIT)
        except ChildProcessError:
            self._interpreters.note_end(call.pid)
        self._reap()
        call.end(self._statuses.pop(call.pid, None))

    def _watch(self, call: Call | None) -> None:
        """Over the memory limit, all of it ends."""
        if self._watchdog is not None and self._watchdog.is_over():
            if call is not None:
                call.is_over_memory = True
            self._interpreters.kill_all()
            self._sweep(spared=set())

    # -- processes ----------------------------------------------------------------------------------------------

    def _fork(self, ends: tuple[int, int, int], program: Callable[[], None], channel: int = -1) -> int:
        """A confined child with these three streams (and the channel as fd 3) that runs `program` and never returns."""
        pid = posix.fork()
        if pid:
            return pid
        try:
            posix.setsid()
            for number in range(1, _signal.NSIG):
                if number not in (_signal.SIGKILL, _signal.SIGSTOP) and not 32 <= number < 34:
                    _signal.signal(number, _signal.SIG_DFL)
            if channel < 0:
                _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
            moved = [posix.dup(fd) for fd in ends]  # clear of 0..3, whatever they were
            for target, fd in enumerate(moved):
                posix.dup2(fd, target)
            posix.chdir(self._workspace)
            self._confine()  # type: ignore[misc]
            if channel >= 0:  # not earlier: fd 3 may be the ruleset
                posix.dup2(channel, 3, False)
            posix.closerange(4 if channel >= 0 else 3, 1 << 16)
            program()
        except BaseException as error:
            posix.write(2, (f"the sandbox could not start the process: {error}\n").encode())
        posix._exit(126)

    def _become_interpreter(self) -> None:
        self._start_kernel(self._workspace, self._environment)

    def _reap(self) -> None:
        """Collect the dead; an interpreter among them takes its variables along."""
        while True:
            try:
                pid, status = posix.waitpid(-1, posix.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if self._call is not None and pid == self._call.pid:
                self._statuses[pid] = status
            self._interpreters.note_end(pid)

    def _sweep(self, spared: set[int] | None = None) -> None:
        """End every process but the supervisor and those spared: by default the interpreter and its checkpoints."""
        deadline = time.monotonic() + SWEEP_SECONDS
        pause = 0.0002
        while time.monotonic() < deadline:
            self._reap()
            spare = self._interpreters.pids() if spared is None else spared
            leftover = [pid for pid in members(self._is_namespace) if pid not in spare]
            if not leftover:
                return
            for number in (_signal.SIGSTOP, _signal.SIGKILL):  # stopped first: nothing forks on while we kill
                for pid in leftover:
                    kill(pid, number)
            time.sleep(pause)
            pause = min(0.01, pause * 2)
