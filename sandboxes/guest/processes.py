"""Processes as the supervisor sees them: starting a program, signalling, reading /proc."""

# ruff: noqa: SIM105 (contextlib is slow to import)

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import posix

PIECE = 64 << 10
PAGE = posix.sysconf("SC_PAGESIZE")
EXITING = 0x4  # PF_EXITING of a process's flags
PENDING = (b"SigPnd:", b"ShdPnd:")


def execute(argv: list[bytes], environment: dict[bytes, bytes], cwd: bytes) -> None:
    """Look the program up as a shell would and become it; say so if that fails."""
    try:
        posix.chdir(cwd)
    except OSError as error:
        posix.write(2, b"cannot enter %s: %s\n" % (cwd, str(error.strerror).encode()))
        posix._exit(126)
    program = argv[0]
    places = [b""] if b"/" in program else environment.get(b"PATH", b"/usr/bin:/bin").split(b":")
    reason, code = b"command not found", 127
    for place in places:
        try:
            posix.execve(place + b"/" + program if place else program, argv, environment)
        except FileNotFoundError:
            continue
        except OSError as error:
            reason, code = str(error.strerror).encode(), 126
    posix.write(2, program + b": " + reason + b"\n")
    posix._exit(code)


def kill(pid: int, number: int = _signal.SIGKILL) -> None:
    try:
        posix.kill(pid, number)
    except ProcessLookupError:
        pass


def signal_group(pid: int, number: int) -> None:
    """To a process and those that share its group, each once: a second interrupt would hit its clean-up."""
    try:
        posix.killpg(pid, number)
    except OSError:  # it has not made its group yet
        kill(pid, number)


def parent(pid: int) -> int:
    """The parent of a live process; -1 for a zombie or one that is gone."""
    fields = read(f"/proc/{pid}/stat").rpartition(b") ")[2].split(None, 2)
    return -1 if len(fields) < 2 or fields[0] in (b"Z", b"X") else int(fields[1])


def is_dying(pid: int) -> bool:
    """Whether it is gone, on its way out, or has a kill waiting that it has not seen yet."""
    fields = read(f"/proc/{pid}/stat").rpartition(b") ")[2].split(None, 7)
    if len(fields) < 8 or fields[0] in (b"Z", b"X") or int(fields[6]) & EXITING:
        return True
    waiting = [line.split()[1] for line in read(f"/proc/{pid}/status").splitlines() if line[:7] in PENDING]
    return any(int(signals, 16) >> (_signal.SIGKILL - 1) & 1 for signals in waiting)


def members(is_namespace: bool) -> list[int]:
    """The live processes of this sandbox without us: all that we see in a namespace, our descendants elsewhere."""
    me = posix.getpid()
    parents = {pid: parent(pid) for pid in map(int, filter(str.isdigit, posix.listdir("/proc"))) if pid != me}
    if is_namespace:
        return [pid for pid, above in parents.items() if above >= 0]
    tree, grown = {me}, True
    while grown:
        more = {pid for pid, above in parents.items() if above in tree} - tree
        grown, tree = bool(more), tree | more
    return sorted(tree - {me})


def read(path: str, limit: int = 64 << 20) -> bytes:
    """A file of /proc, up to about `limit` bytes; nothing if it cannot be read."""
    try:
        fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError:
        return b""
    pieces: list[bytes] = []
    try:
        while limit > 0 and (data := posix.read(fd, PIECE)):
            pieces.append(data)
            limit -= len(data)
    except OSError:
        pass
    finally:
        posix.close(fd)
    return b"".join(pieces)
