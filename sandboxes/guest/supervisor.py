"""The supervisor of a sandbox: starts foreign programs, watches them, and alone speaks to the host.

In a namespace it is PID 1: nothing inside can kill, stop, trace or look into it, and when it ends the kernel ends
everything else. One call at a time:

    host -> here   settings name value …           once, first
                   python id fresh code
                   exec id cwd stdin argc argv… NAME=value…
                   fork id name | wake id name | forget name      checkpoints of the interpreter
                   restart id wipe
                   interrupt id | kill id          while a call runs; stale ids are ignored
    here -> host   ready                           said by boot.py
                   out id stream data
                   done id how detail lost late anomalies memory

`how` is one of value, none, error, exit, signal, died, ok, failed. `lost` is 1 when an interpreter with variables
ended since the last answer.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import posix
import select
import sys
import time

from processes import anonymous_bytes, execute, kill, parent, read, signal_group  # type: ignore[import-not-found]
from storage import empty, used_bytes  # type: ignore[import-not-found]
from wire import MAX_TO_GUEST, FrameError, Frames, pack  # type: ignore[import-not-found]

TYPE_CHECKING = False
if TYPE_CHECKING:  # the module itself is slow to import
    from typing import NoReturn

NONCE, PIECE, REPLY_LIMIT = 16, 64 << 10, 128 << 10
SWEEP_SECONDS = 4.0
WATCH_SECONDS, IDLE_WATCH_SECONDS = 0.05, 0.5
READABLE, WRITABLE, HUNG_UP = select.POLLIN, select.POLLOUT, select.POLLHUP | select.POLLERR


class Interpreter:
    """A forked Python kernel: its process and the socket to it."""

    def __init__(self, pid: int, channel: _socket.socket) -> None:
        self.pid = pid
        self.channel = channel
        self.used = False


class Call:
    """The one call that runs: what the host named it, and what must be watched for it."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.pid = 0
        self.nonce = b""
        self.pipes: dict[int, bytes] = {}  # read end -> stream
        self.stdin = -1
        self.to_stdin = memoryview(b"")
        self.to_kernel: list[bytes] = []
        self.how = b""
        self.detail = b""
        self.late = 0
        self.anomalies = 0
        self.over_memory = False


class Supervisor:
    def __init__(self, peer: int, control_in: int, control_out: int, workspace: str, mode: str) -> None:
        self._peer, self._in, self._out = peer, control_in, control_out
        self._workspace, self._is_namespace = workspace, mode == "namespace"
        self._frames = Frames(MAX_TO_GUEST)
        self._settings: dict[str, int] = {}
        self._writable = (workspace, "/tmp", "/dev/shm") if self._is_namespace else (workspace,)
        self._environment: dict[str, str] = {}
        self._landlock = None
        self._kernel: Interpreter | None = None
        self._checkpoints: dict[bytes, Interpreter] = {}
        self._kernel_pipes: dict[int, bytes] = {}
        self._kernel_streams = (-1, -1)
        self._lost = self._is_warm = False
        self._statuses: dict[int, int] = {}
        self._call: Call | None = None
        self._next_watch = 0.0
        self._confine = self._kernel_program = None

    # -- life ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until the host hangs up or dies."""
        while True:
            for frame in self._wait_for_host():
                self._take(frame)

    def _prepare(self) -> None:
        """After `ready`: what the first untrusted process will need."""
        import confine  # type: ignore[import-not-found]

        self._confine = confine
        confine.set_dumpable(False)
        if not self._is_namespace:
            confine.set_subreaper()
        if self._settings["landlock"]:
            self._landlock = confine.Landlock(self._writable)
        import kernel  # type: ignore[import-not-found]

        self._kernel_program = kernel
        sys.path.remove(__file__.rpartition("/")[0])
        kernel.prepare()

    def _wait_for_host(self) -> list[list[bytes]]:
        poll = select.poll()
        poll.register(self._in, READABLE)
        if self._peer >= 0:
            poll.register(self._peer, READABLE)
        if not self._is_warm and self._settings and not poll.poll(0):
            self._is_warm = True
            self._kernel_program.prepare_more()  # type: ignore[attr-defined]
        watched = self._settings.get("watch_bytes") and self._kernel is not None
        for fd, _ in poll.poll(IDLE_WATCH_SECONDS * 1000 if watched else None):
            if fd == self._peer:
                self.leave()
            return self._receive()
        self._reap()
        self._watch_memory(None)
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
            self._checkpoints.clear()
            self._sweep(spare_kernel=False)
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
            self._restart(*arguments)
        elif verb == b"fork":
            self._fork_kernel(*arguments)
        elif verb == b"wake":
            self._wake(*arguments)
        elif verb == b"forget":
            copy = self._checkpoints.pop(arguments[0], None)
            if copy is not None:
                self._end(copy)

    def _set(self, arguments: list[bytes]) -> None:
        pairs = [tuple(argument.decode().split("=", 1)) for argument in arguments]
        self._environment = {name[4:]: value for name, value in pairs if name.startswith("env.")}
        self._settings = {name: int(value) for name, value in pairs if not name.startswith("env.")}
        self._prepare()

    def _python(self, name: bytes, fresh: bytes, code: bytes) -> None:
        call = self._call = Call(name)
        if fresh == b"1":
            self._end_kernel()
            self._sweep()
            self._lost = False
        self._reap()
        try:
            interpreter = self._kernel or self._start_kernel()
        except OSError as error:
            self._finish(call, b"failed", str(error).encode())
            return
        call.late = sum(len(data) for fd in self._kernel_pipes for data in _drain(fd))
        call.pid, call.pipes = interpreter.pid, dict(self._kernel_pipes)
        call.anomalies += self._discard(interpreter)
        call.nonce = posix.urandom(NONCE)
        pieces = [code[at : at + PIECE] for at in range(0, len(code), PIECE)]
        call.to_kernel = [call.nonce + b"run " + len(code).to_bytes(8, "big"), *pieces]
        interpreter.used = True
        self._attend(call)
        self._finish(call, call.how, call.detail)

    def _exec(self, name: bytes, cwd: bytes, stdin: bytes, count: bytes, *rest: bytes) -> None:
        call = self._call = Call(name)
        argv, extra = list(rest[: int(count)]), rest[int(count) :]
        environment = {name.encode(): text.encode() for name, text in self._environment.items()}
        for item in extra:
            key, _, value = item.partition(b"=")
            environment[key] = value
        ends = [posix.pipe2(posix.O_CLOEXEC | (0 if index == 0 else posix.O_NONBLOCK)) for index in range(3)]
        for _, write in ends[1:]:
            posix.set_blocking(write, True)
        child_ends = (ends[0][0], ends[1][1], ends[2][1])
        try:
            call.pid = self._fork(child_ends, lambda: execute(argv, environment, cwd))
        except OSError as error:
            for read, write in ends:
                posix.close(read)
                posix.close(write)
            self._finish(call, b"failed", str(error).encode())
            return
        for fd in child_ends:
            posix.close(fd)
        call.pipes = {ends[1][0]: b"1", ends[2][0]: b"2"}
        call.stdin, call.to_stdin = ends[0][1], memoryview(stdin)
        posix.set_blocking(call.stdin, False)
        if not stdin:
            _close_stdin(call)
        self._attend(call)
        for fd in call.pipes:
            posix.close(fd)
        _close_stdin(call)
        self._finish(call, call.how, call.detail)

    def _restart(self, name: bytes, wipe: bytes) -> None:
        """A new interpreter for an old one; nothing of what ran survives, checkpoints do."""
        call = self._call = Call(name)
        self._end_kernel()
        self._sweep()
        self._lost = False
        if wipe == b"1":
            for directory in self._writable:
                empty(directory)
        for fd in self._kernel_pipes:
            for _ in _drain(fd):
                pass
        try:
            self._start_kernel()
        except OSError as error:
            self._finish(call, b"failed", str(error).encode())
            return
        self._finish(call, b"ok", b"")

    def _finish(self, call: Call, how: bytes, detail: bytes) -> None:
        self._call = None
        lost, self._lost = self._lost, False
        counts = (b"%d" % number for number in (lost, call.late, call.anomalies, call.over_memory))
        self._send(b"done", call.name, how, detail, *counts)

    # -- a running call -----------------------------------------------------------------------------------------

    def _attend(self, call: Call) -> None:
        """Carry bytes until the call's process answers or ends, then clean up after it and carry the rest."""
        ended = posix.pidfd_open(call.pid)
        interpreter = self._kernel if call.nonce else None
        while not call.how:
            self._step(call, interpreter, ended)
        posix.close(ended)
        if not self._settings["keep_background"]:
            self._sweep()
        for fd in list(call.pipes):
            for data in _drain(fd):
                self._send(b"out", call.name, call.pipes[fd], data)

    def _step(self, call: Call, interpreter: Interpreter | None, ended: int) -> None:
        if call.pid in self._statuses:
            self._note_end(call, interpreter)
            return
        poll = select.poll()
        for fd in (self._in, ended, *call.pipes):
            poll.register(fd, READABLE)
        if self._peer >= 0:
            poll.register(self._peer, READABLE)
        if interpreter is not None:
            poll.register(interpreter.channel.fileno(), READABLE | (WRITABLE if call.to_kernel else 0))
        if call.stdin >= 0:
            poll.register(call.stdin, WRITABLE)
        watched = self._settings["watch_bytes"]
        events = dict(poll.poll(WATCH_SECONDS * 1000 if watched else None))
        if self._peer in events:
            self.leave()
        if self._in in events:
            for frame in self._receive():
                self._steer(call, frame)
        for fd in [fd for fd in call.pipes if fd in events]:
            self._carry(call, fd)
        if call.stdin in events:
            _feed(call)
        if interpreter is not None and interpreter.channel.fileno() in events:
            self._converse(call, interpreter)
        if ended in events:
            self._reap()
        if watched:
            self._watch_memory(call)

    def _steer(self, call: Call, frame: list[bytes]) -> None:
        if frame[0] not in (b"interrupt", b"kill") or frame[1] != call.name:
            return
        if frame[0] == b"interrupt":
            signal_group(call.pid, _signal.SIGINT)
        else:
            signal_group(call.pid, _signal.SIGKILL)
            self._sweep(spare_kernel=not call.nonce)

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
        """Send what is left of the code; look at what the kernel says."""
        try:
            while call.to_kernel:
                interpreter.channel.send(call.to_kernel[0])
                del call.to_kernel[0]
        except BlockingIOError:
            pass
        except OSError:
            call.to_kernel.clear()
        try:
            reply = interpreter.channel.recv(REPLY_LIMIT + 1)
        except BlockingIOError:
            return
        except OSError:
            reply = b""
        hows = {b"v": b"value", b"n": b"none", b"e": b"error"}
        if not reply:  # it closed its side: nothing can be heard from it any more
            posix.kill(interpreter.pid, _signal.SIGKILL)
            posix.waitid(posix.P_PID, interpreter.pid, posix.WEXITED | posix.WNOWAIT)
            self._reap()
        elif reply[:NONCE] == call.nonce and len(reply) <= REPLY_LIMIT and reply[NONCE : NONCE + 1] in hows:
            call.how, call.detail = hows[reply[NONCE : NONCE + 1]], reply[NONCE + 1 :]
        else:
            call.anomalies += 1

    def _note_end(self, call: Call, interpreter: Interpreter | None) -> None:
        status = self._statuses.pop(call.pid, 0)
        signalled = posix.WIFSIGNALED(status)
        number = posix.WTERMSIG(status) if signalled else posix.WEXITSTATUS(status)
        if interpreter is None:
            call.how, call.detail = b"signal" if signalled else b"exit", b"%d" % number
        else:
            call.how, call.detail = b"died", (b"signal %d" if signalled else b"exit %d") % number

    # -- processes ----------------------------------------------------------------------------------------------

    def _fork(self, ends: tuple[int, int, int], program: object, channel: int = -1) -> int:
        """A confined child with these three streams (and the channel as fd 3) that runs `program` and never returns."""
        pid = posix.fork()
        if pid:
            return pid
        try:
            posix.setsid()
            for number in range(1, _signal.NSIG):
                if number not in (_signal.SIGKILL, _signal.SIGSTOP) and not 32 <= number < 34:
                    _signal.signal(number, _signal.SIG_DFL)
            moved = [posix.dup(fd) for fd in ends]  # clear of 0..3, whatever they were
            for target, fd in enumerate(moved):
                posix.dup2(fd, target)
            posix.chdir(self._workspace)
            self._confine.confine(self._settings, self._landlock)  # type: ignore[attr-defined]
            if channel >= 0:  # not earlier: fd 3 may be the ruleset
                posix.dup2(channel, 3, False)
            posix.closerange(4 if channel >= 0 else 3, 1 << 16)
            program()  # type: ignore[operator]
        except BaseException as error:
            posix.write(2, (f"the sandbox could not start the process: {error}\n").encode())
        posix._exit(126)

    def _start_kernel(self) -> Interpreter:
        if not self._kernel_pipes:
            out, err = posix.pipe2(posix.O_CLOEXEC), posix.pipe2(posix.O_CLOEXEC)
            for read in (out[0], err[0]):
                posix.set_blocking(read, False)
            self._kernel_pipes = {out[0]: b"1", err[0]: b"2"}
            self._kernel_streams = (out[1], err[1])
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        nothing = posix.open("/dev/null", posix.O_RDONLY)
        start, workspace = self._kernel_program.start, self._workspace  # type: ignore[attr-defined]

        def become() -> None:
            start(workspace, self._environment)

        try:
            pid = self._fork((nothing, *self._kernel_streams), become, theirs.fileno())
        finally:
            posix.close(nothing)
            theirs.close()
        ours.setblocking(False)
        self._kernel = Interpreter(pid, ours)
        return self._kernel

    def _discard(self, interpreter: Interpreter) -> int:
        """Throw away what the kernel said without being asked."""
        count = 0
        try:
            while interpreter.channel.recv(PIECE):
                count += 1
        except OSError:
            pass
        return count

    def _end(self, interpreter: Interpreter) -> None:
        kill(interpreter.pid)
        interpreter.channel.close()

    def _end_kernel(self) -> None:
        if self._kernel is not None:
            self._end(self._kernel)
            self._kernel = None

    def _reap(self) -> None:
        """Collect the dead; an interpreter among them takes its variables along."""
        while True:
            try:
                pid, status = posix.waitpid(-1, posix.WNOHANG)
            except ChildProcessError:
                break
            if not pid:
                break
            if self._call is not None and pid == self._call.pid:
                self._statuses[pid] = status
            if self._kernel is not None and pid == self._kernel.pid:
                self._lost = self._lost or self._kernel.used
                self._kernel.channel.close()
                self._kernel = None
            for name in [name for name, copy in self._checkpoints.items() if copy.pid == pid]:
                self._checkpoints.pop(name).channel.close()

    def _sweep(self, spare_kernel: bool = True) -> None:
        """End every process but the supervisor, the interpreter and its checkpoints."""
        deadline = time.monotonic() + SWEEP_SECONDS
        pause = 0.0002
        while time.monotonic() < deadline:
            self._reap()
            spared = {copy.pid for copy in self._checkpoints.values()}
            if spare_kernel and self._kernel is not None:
                spared.add(self._kernel.pid)
            leftover = [pid for pid in self._members() if pid not in spared]
            if not leftover:
                return
            for number in (_signal.SIGSTOP, _signal.SIGKILL):  # stopped first: nothing forks on while we kill
                for pid in leftover:
                    kill(pid, number)
            time.sleep(pause)
            pause = min(0.01, pause * 2)

    def _members(self) -> list[int]:
        """The live processes of this sandbox, without the supervisor."""
        me = posix.getpid()
        pids = [int(name) for name in posix.listdir("/proc") if name.isdigit()]
        if self._is_namespace:
            return [pid for pid in pids if pid != me and (self._is_known(pid) or parent(pid) >= 0)]
        parents = {pid: parent(pid) for pid in pids}
        tree, grown = {me}, True
        while grown:
            more = {pid for pid, parent in parents.items() if parent in tree} - tree
            grown, tree = bool(more), tree | more
        return sorted(tree - {me})

    def _is_known(self, pid: int) -> bool:
        return (self._kernel is not None and pid == self._kernel.pid) or any(
            pid == copy.pid for copy in self._checkpoints.values()
        )

    # -- checkpoints --------------------------------------------------------------------------------------------

    def _fork_kernel(self, name: bytes, checkpoint: bytes) -> None:
        call = self._call = Call(name)
        self._reap()
        try:
            copy = self._copy(self._kernel or self._start_kernel())
        except OSError as error:
            self._finish(call, b"failed", str(error).encode())
            return
        self._checkpoints[checkpoint] = copy
        self._finish(call, b"ok", b"")

    def _wake(self, name: bytes, checkpoint: bytes) -> None:
        """The checkpoint stays; a copy of it becomes the interpreter."""
        call = self._call = Call(name)
        self._reap()
        if checkpoint not in self._checkpoints:
            self._finish(call, b"failed", b"this checkpoint has ended")
            return
        try:
            copy = self._copy(self._checkpoints[checkpoint])
        except OSError as error:
            self._finish(call, b"failed", str(error).encode())
            return
        self._end_kernel()
        self._kernel = copy
        self._kernel.used = True
        self._sweep()
        self._lost = False
        for fd in self._kernel_pipes:
            for _ in _drain(fd):
                pass
        self._finish(call, b"ok", b"")

    def _copy(self, interpreter: Interpreter) -> Interpreter:
        """Ask an interpreter to fork; the kernel tells us who answers, not the answer itself."""
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        ours.setsockopt(_socket.SOL_SOCKET, _socket.SO_PASSCRED, 1)
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, theirs.fileno().to_bytes(4, sys.byteorder))]
        self._discard(interpreter)
        nonce = posix.urandom(NONCE)
        interpreter.channel.sendmsg([nonce + b"fork"], rights)
        theirs.close()
        poll = select.poll()
        poll.register(ours.fileno(), READABLE)
        poll.poll(5000)
        ours.setblocking(False)
        try:
            _, ancillary, _, _ = ours.recvmsg(PIECE, _socket.CMSG_SPACE(12))
        except BlockingIOError:
            ancillary = []
        pids = [int.from_bytes(item[2][:4], sys.byteorder) for item in ancillary if item[1] == _socket.SCM_CREDENTIALS]
        if not pids or pids[0] == interpreter.pid:
            try:
                reply = interpreter.channel.recv(PIECE)
            except OSError:
                reply = b""
            if reply[:NONCE] == nonce and reply[NONCE : NONCE + 1] == b"t":
                raise OSError(reply[NONCE + 1 :].decode("ascii", "replace") + " threads run in the interpreter")
            raise OSError("the interpreter does not answer")
        return Interpreter(pids[0], ours)

    # -- memory -------------------------------------------------------------------------------------------------

    def _watch_memory(self, call: Call | None) -> None:
        """Where no cgroup counts: add up what the processes and the workspace hold; over the limit, end them all."""
        now = time.monotonic()
        if not self._settings.get("watch_bytes") or now < self._next_watch:
            return
        used = sum(anonymous_bytes(pid) for pid in self._members()) + self._shared_bytes()
        used += sum(used_bytes(directory) for directory in self._pools())
        if used > self._settings["watch_bytes"]:
            if call is not None:
                call.over_memory = True
            for copy in list(self._checkpoints.values()):
                kill(copy.pid)
            if self._kernel is not None:
                kill(self._kernel.pid)
            self._sweep(spare_kernel=False)
        spent = time.monotonic() - now
        self._next_watch = now + max(WATCH_SECONDS, 10 * spent)

    def _pools(self) -> list[str]:
        """One directory of each file system that belongs to the sandbox alone."""
        if not self._is_namespace:
            return []
        return list({posix.stat(directory).st_dev: directory for directory in self._writable}.values())

    def _shared_bytes(self) -> int:
        """Upper bound of shared anonymous memory: mapped sizes, each object once; it need not be resident anywhere."""
        objects: dict[bytes, int] = {}
        for pid in self._members():
            for line in read(f"/proc/{pid}/maps").splitlines():
                if b"/dev/zero (deleted)" in line or b"/SYSV" in line or b"/memfd:" in line:
                    first, _, last = line.partition(b" ")[0].partition(b"-")
                    inode = line.split(None, 5)[4]
                    objects[inode] = max(objects.get(inode, 0), int(last, 16) - int(first, 16))
        return sum(objects.values())


def _drain(fd: int) -> list[bytes]:
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


def _feed(call: Call) -> None:
    try:
        call.to_stdin = call.to_stdin[posix.write(call.stdin, call.to_stdin[:PIECE]) :]
    except BlockingIOError:
        return
    except OSError:
        call.to_stdin = memoryview(b"")
    if not call.to_stdin:
        _close_stdin(call)


def _close_stdin(call: Call) -> None:
    if call.stdin >= 0:
        posix.close(call.stdin)
        call.stdin = -1
