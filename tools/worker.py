"""A call in a process of its own: a function in, its ToolOutput out, and nothing left running.

The worker is forked for the call, so closures and objects that cannot be pickled are simply there. It leads a process
group that is killed when the call ends for whatever reason: result, crash, timeout, cancellation, death of the host.
Freeing the memory of a copy of this process takes longer than most calls, so a thread waits for that, not the caller.

    parent                          child
    pipe, fork ──────────────────▶  own session, signals and output detached
    wait until readable             function() → ToolOutput
    ◀────────────────────────────── length, pickle of (kind, …)
    kill the group                  (never returns)
    reap, in a thread
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import struct
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import anyio
import anyio.to_thread

from v32.tools.errors import WorkerError
from v32.tools.tool import ToolError, ToolOutput

MAX_RESULT_BYTES = 64 << 20

_LENGTH = struct.Struct("<Q")
_PR_SET_PDEATHSIG = 1
# Fork copies every open descriptor; between pipe() and close() no other thread may fork, or the child's end would
# stay open elsewhere and its death go unnoticed.
_forking = threading.Lock()


def can_fork() -> bool:
    return hasattr(os, "fork")


async def run_in_worker(function: Callable[[], ToolOutput], *, memory_bytes: int | None = None) -> ToolOutput:
    """Raises what the function raised: `ToolError` as such, everything else, and a dead process, as `WorkerError`.

    With `memory_bytes`, what the function takes beyond that is a `MemoryError` (on Linux).
    """
    pid, fd = _start(function, memory_bytes)
    try:
        kind, *parts = await _receive(pid, fd)
    finally:
        os.close(fd)
        _end(pid)
    if kind == "output":
        output: ToolOutput = parts[0]
        return output
    if kind == "tool_error":
        raise ToolError(parts[0])
    raise WorkerError(*parts)


def _start(function: Callable[[], ToolOutput], memory_bytes: int | None) -> tuple[int, int]:
    prctl = _prctl()
    host = os.getpid()
    with _forking:
        readable, writable = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(readable)
            _serve(function, memory_bytes, writable, prctl, host)
        os.close(writable)
    os.set_blocking(readable, False)
    return pid, readable


def _serve(
    function: Callable[[], ToolOutput],
    memory_bytes: int | None,
    fd: int,
    prctl: Callable[[int], Any] | None,
    host: int,
) -> NoReturn:
    """The child: run, report, leave without running a line of the host's clean-up code."""
    try:
        gc.freeze()  # a collection would write to, and so copy, every page of objects that are not ours
        _detach(prctl, host)
        if memory_bytes is not None:
            _limit_memory(memory_bytes)
        try:
            message: tuple[Any, ...] = ("output", _portable(function()))
        except ToolError as error:
            message = ("tool_error", str(error))
        except BaseException as error:
            message = ("crash", type(error).__name__, str(error), traceback.format_exc())
        body = pickle.dumps(message)
        if len(body) > MAX_RESULT_BYTES:
            body = pickle.dumps(("crash", "result too large", f"{len(body):,} bytes of {MAX_RESULT_BYTES:,}", ""))
        with open(fd, "wb", closefd=False) as pipe:
            pipe.write(_LENGTH.pack(len(body)) + body)
    finally:
        os._exit(0)


def _detach(prctl: Callable[[int], Any] | None, host: int) -> None:
    """Own session; no signals, terminal or standard output shared with the host; it dies when the host dies."""
    global _forking
    _forking = threading.Lock()
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    if prctl is not None:
        prctl(signal.SIGKILL)
    if os.getppid() != host:
        os._exit(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:  # `random` does this by itself; else every call would draw the same numbers
        numpy_random.seed()


def _limit_memory(more: int) -> None:
    """What may be written to, and what the host already had of it, for that is ours too."""
    if not sys.platform.startswith("linux"):
        return
    import resource

    status = Path("/proc/self/status").read_text()
    held = int(status.partition("VmData:")[2].split()[0]) << 10
    resource.setrlimit(resource.RLIMIT_DATA, (held + more, held + more))


def _portable(output: ToolOutput) -> ToolOutput:
    try:
        pickle.dumps(output)
    except Exception:
        return ToolOutput(output.text, output.is_error, {key: repr(value) for key, value in output.data.items()})
    return output


def _prctl() -> Callable[[int], Any] | None:
    """`prctl(PR_SET_PDEATHSIG, …)`, looked up before the fork."""
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    prctl = ctypes.CDLL(None, use_errno=True).prctl
    return lambda number: prctl(_PR_SET_PDEATHSIG, number)


async def _receive(pid: int, fd: int) -> tuple[Any, ...]:
    buffer = bytearray()
    while len(buffer) < _LENGTH.size or len(buffer) < _LENGTH.size + _LENGTH.unpack_from(buffer)[0]:
        await anyio.wait_readable(fd)
        try:
            chunk = os.read(fd, 1 << 20)
        except BlockingIOError:
            continue
        if not chunk:
            status = await anyio.to_thread.run_sync(_reap, pid, abandon_on_cancel=True)
            return "crash", _how_it_ended(status), "", ""
        buffer += chunk
    message: tuple[Any, ...] = pickle.loads(buffer[_LENGTH.size :])
    return message


def _end(pid: int) -> None:
    """Kill what is left of the process group, and have the worker reaped unless that has happened."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    threading.Thread(target=_reap, args=(pid,), name="v32-reaper", daemon=True).start()


def _reap(pid: int) -> int | None:
    """The wait status; None if it was reaped before."""
    try:
        return os.waitpid(pid, 0)[1]
    except ChildProcessError:
        return None


def _how_it_ended(status: int | None) -> str:
    if status is None:
        return "its process ended"
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"its process ended with exit code {code} before it returned"
    return f"its process was ended by {signal.Signals(-code).name}"
