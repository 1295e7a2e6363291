"""What every untrusted process does to itself before its first byte of foreign code runs.

Enters: the limits as a plain mapping. Leaves: nothing; a failure raises OSError and the process must not go on.
Order matters: dumpable first (else /proc/self belongs to root), Landlock last (it closes /proc/self for writing).
"""

from __future__ import annotations

import ctypes
import posix
import resource

PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 4, 38
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture
RULE_PATH_BENEATH = 1

WRITE_FILE = 1 << 1
REMOVE = 1 << 4 | 1 << 5
MAKE_DEVICE = 1 << 6 | 1 << 11
MAKE = 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 12
REFER, TRUNCATE = 1 << 13, 1 << 14  # since ABI 2 and 3
SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS = 3  # since ABI 6

WATCHED_NICE = 5
"""Where the supervisor counts memory itself, it must get to run beside those it counts."""

DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/ptmx", "/dev/pts")

_libc = ctypes.CDLL(None, use_errno=True)


class PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


class Landlock:
    """A ruleset that allows writing below some directories only; made once, entered by every child."""

    def __init__(self, writable: tuple[str, ...]) -> None:
        self.abi = max(0, _libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1)))
        self._fd = self._build(writable) if self.abi else -1

    def _build(self, writable: tuple[str, ...]) -> int:
        inside = WRITE_FILE | REMOVE | MAKE
        handled = inside | MAKE_DEVICE
        if self.abi >= 2:
            handled, inside = handled | REFER, inside | REFER
        if self.abi >= 3:
            handled, inside = handled | TRUNCATE, inside | TRUNCATE
        attributes = (ctypes.c_uint64 * 3)(handled, 0, SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS if self.abi >= 6 else 0)
        size = 24 if self.abi >= 6 else 16 if self.abi >= 4 else 8
        fd = _check(_libc.syscall(CREATE_RULESET, attributes, ctypes.c_size_t(size), ctypes.c_uint32(0)), "landlock")
        for path in writable:
            self._allow(fd, path, inside)
        for path in DEVICES:
            self._allow(fd, path, inside & (WRITE_FILE | TRUNCATE))
        return fd

    @staticmethod
    def _allow(ruleset: int, path: str, access: int) -> None:
        try:
            target = posix.open(path, posix.O_PATH | posix.O_CLOEXEC)
        except FileNotFoundError:
            return
        rule = PathBeneath(access, target)
        _check(
            _libc.syscall(ADD_RULE, ruleset, RULE_PATH_BENEATH, ctypes.byref(rule), ctypes.c_uint32(0)),
            "landlock rule for " + path,
        )
        posix.close(target)

    def enter(self) -> None:
        if self._fd >= 0:
            _check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
            _check(_libc.syscall(RESTRICT_SELF, self._fd, ctypes.c_uint32(0)), "landlock")


def set_dumpable(on: bool) -> None:
    """A process that is not dumpable can be neither traced nor looked into through /proc by its own uid."""
    _check(_libc.prctl(PR_SET_DUMPABLE, int(on), 0, 0, 0), "dumpable")


def set_subreaper() -> None:
    """Orphans of this process's tree become its children, as they would be PID 1's."""
    _check(_libc.prctl(36, 1, 0, 0, 0), "subreaper")


def confine(limits: dict[str, int], landlock: Landlock | None) -> None:
    """Bind the calling process to its limits, for good."""
    set_dumpable(True)
    _write("/proc/self/oom_score_adj", b"1000")
    if limits["watch_bytes"]:
        posix.nice(WATCHED_NICE)
    for name, soft, hard in rlimits(limits):
        now = resource.getrlimit(name)
        hard = hard if now[1] == resource.RLIM_INFINITY else min(hard, now[1])
        if now != (min(soft, hard), hard):  # the filter lets nobody set the core limit again
            resource.setrlimit(name, (min(soft, hard), hard))
    if landlock is not None:
        landlock.enter()


def rlimits(limits: dict[str, int]) -> list[tuple[int, int, int]]:
    """The resource limits as (resource, soft, hard); a limit of 0 for processes or data means none."""
    fixed = [
        (resource.RLIMIT_CORE, 1),  # not 0: only 1 keeps a core pattern with a pipe from starting its program as root
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_MEMLOCK, 1 << 20),
        (resource.RLIMIT_RTPRIO, 0),
        (resource.RLIMIT_NICE, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_SIGPENDING, 4096),
    ]
    optional = [(resource.RLIMIT_NPROC, limits["max_processes"]), (resource.RLIMIT_DATA, limits["data_bytes"])]
    rules = [(name, value, value) for name, value in fixed + [rule for rule in optional if rule[1]]]
    return [*rules, (resource.RLIMIT_STACK, 8 << 20, 64 << 20)]  # the soft value is also what each thread reserves


def _write(path: str, data: bytes) -> None:
    fd = posix.open(path, posix.O_WRONLY | posix.O_CLOEXEC)
    try:
        posix.write(fd, data)
    finally:
        posix.close(fd)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, what + ": " + posix.strerror(number))
    return result
