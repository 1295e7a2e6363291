"""The system-call filter as BPF bytes: an allow-list read from `data/syscalls.txt`, without libseccomp.

What enters: the machine's architecture and whether memory that no rlimit counts must be refused. What leaves: the
bytes that `bwrap --seccomp` takes. Order of the verdicts, first match wins:

    other architecture (ia32)        kill the process
    x32 number (bit 30)              ENOSYS
    socket, clone, ioctl, …          by their arguments
    [allowed]                        allow
    [refused]                        EPERM
    everything else                  ENOSYS, so that a new libc falls back to older calls
"""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from v32.sandboxes.errors import SandboxUnavailable


class Instruction(NamedTuple):
    """One classic-BPF instruction, `struct sock_filter`."""

    code: int
    jump_true: int
    jump_false: int
    value: int


Program = list[Instruction]

LOAD = 0x20  # 32-bit word at an absolute offset
EQUAL, AT_LEAST, ABOVE, ANY_BIT = 0x15, 0x35, 0x25, 0x45
RETURN = 0x06

ALLOW, KILL_PROCESS = 0x7FFF0000, 0x80000000
NUMBER, ARCHITECTURE = 0, 4  # offsets in struct seccomp_data; arguments are 64-bit words from 16 on, low half first
X32_BIT = 0x40000000

ARCHITECTURES = {"x86_64": (1, 0xC000003E), "aarch64": (2, 0xC00000B7)}  # column of the table, AUDIT_ARCH

AF_UNIX, AF_INET, AF_INET6 = 1, 2, 10
TRANSPORTS = (0, 6, 17)  # default, TCP, UDP
NEW_NAMESPACES = 0x7E020000  # every CLONE_NEW* flag that clone(2) knows
TERMINAL_INPUT = (0x5412, 0x541C, 0x541D, 0x5423)  # TIOCSTI, TIOCLINUX, TIOCCONS, TIOCSETD
PERSONALITIES = (0, 8, 0xFFFFFFFF)  # Linux, 32-bit Linux, "tell me"
SUPERVISOR = 1  # its process id inside; it has the uid of those it watches, so priorities and limits are open to them
RLIMIT_CORE = 4
PR_SET_THP_DISABLE = 41  # off stays off: the watchdog does not see what huge pages hold
PRIO_USER, IOPRIO_WHO_USER = 2, 3


@cache
def build_filter(
    *,
    machine: str | None = None,
    allow_hidden_memory: bool = True,
    allow_affinity: bool = True,
    without: frozenset[str] = frozenset(),
) -> bytes:
    """The filter for this machine.

    `allow_hidden_memory`: memfd and SysV shared memory, which only a memory cgroup counts. `allow_affinity`: moving
    to another CPU, which must be refused where one CPU is the only limit. `without` drops named calls from the
    checked, refused or unknown (they become allowed): the ablation tests use it.
    """
    machine = machine or platform.machine()
    table = syscall_table(machine)
    program = _guard_architecture(machine)
    checks = {
        "socket": _check_socket(),
        "socketpair": _only_values(0, (AF_UNIX,), errno.EAFNOSUPPORT),
        "clone": _refuse_bits(0, NEW_NAMESPACES),
        "clone3": [_refuse(errno.ENOSYS)],  # its flags lie behind a pointer; libc falls back to clone
        "ioctl": _refuse_values(1, TERMINAL_INPUT),
        "personality": _only_values(0, PERSONALITIES, errno.EPERM),
        "sched_setaffinity": _refuse_values(0, (SUPERVISOR,)) if allow_affinity else [_refuse(errno.EPERM)],
        "prctl": _refuse_values(0, (PR_SET_THP_DISABLE,)),
        "prlimit64": _check_limits(),
        "setrlimit": [_argument(0), *_if(EQUAL, RLIMIT_CORE, [_refuse(errno.EPERM)]), _allow()],
        "setpriority": _refuse_others(PRIO_USER),
        "ioprio_set": _refuse_others(IOPRIO_WHO_USER),
    }
    checks |= dict.fromkeys(("sched_setattr", "sched_setparam", "sched_setscheduler"), _refuse_values(0, (SUPERVISOR,)))
    allowed = dict(table["allowed"])
    if allow_hidden_memory:
        allowed |= table["hidden_memory"]
    refused = dict(table["refused"]) if allow_hidden_memory else table["refused"] | table["hidden_memory"]
    for name, number in table["checked"].items():
        if name not in without:
            program += _when_number(number, checks[name])
    allowed |= {n: number for section in table.values() for n, number in section.items() if n in without}
    for first, last in _ranges(allowed.values()):
        program += _when_between(first, last, [_allow()])
    for first, last in _ranges(number for name, number in refused.items() if name not in without):
        program += _when_between(first, last, [_refuse(errno.EPERM)])
    program.append(_refuse(errno.ENOSYS))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


@cache
def syscall_table(machine: str) -> dict[str, dict[str, int]]:
    """Section -> name -> number, for one architecture."""
    if machine not in ARCHITECTURES:
        raise SandboxUnavailable(
            f"no system-call table for {machine!r}; known: {', '.join(ARCHITECTURES)}. Use backend='container'"
        )
    column = ARCHITECTURES[machine][0]
    sections: dict[str, dict[str, int]] = {}
    for line in (Path(__file__).parent / "data" / "syscalls.txt").read_text().splitlines():
        if line.startswith("["):
            section = sections.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            fields = line.split()
            if fields[column] != "-":
                section[fields[0]] = int(fields[column])
    return sections


def _guard_architecture(machine: str) -> Program:
    audit = ARCHITECTURES[machine][1]
    x32 = _if(AT_LEAST, X32_BIT, [_refuse(errno.ENOSYS)]) if machine == "x86_64" else []
    return [
        Instruction(LOAD, 0, 0, ARCHITECTURE),
        Instruction(EQUAL, 1, 0, audit),
        Instruction(RETURN, 0, 0, KILL_PROCESS),
        Instruction(LOAD, 0, 0, NUMBER),
        *x32,
    ]


def _check_socket() -> Program:
    """AF_UNIX freely, IP with TCP or UDP; no vsock, netlink, packet, …: a network namespace does not cover them all."""
    internet: Program = [_argument(2)]
    for transport in TRANSPORTS:
        internet += _if(EQUAL, transport, [_allow()])
    internet.append(_refuse(errno.EPROTONOSUPPORT))
    program: Program = [_argument(0), *_if(EQUAL, AF_UNIX, [_allow()])]
    for family in (AF_INET, AF_INET6):
        program += _if(EQUAL, family, internet)
    return [*program, _refuse(errno.EAFNOSUPPORT)]


def _only_values(argument: int, values: Iterable[int], error: int) -> Program:
    program: Program = [_argument(argument)]
    for value in values:
        program += _if(EQUAL, value, [_allow()])
    return [*program, _refuse(error)]


def _refuse_values(argument: int, values: Iterable[int]) -> Program:
    program: Program = [_argument(argument)]
    for value in values:
        program += _if(EQUAL, value, [_refuse(errno.EPERM)])
    return [*program, _allow()]


def _check_limits() -> Program:
    """Not the supervisor's limits, and for all others the core limit stays 1: a pattern with a pipe ignores 0, and the
    host's root would read what crashes in here."""
    both_halves = [_argument(2), *_if(ANY_BIT, 0xFFFFFFFF, [_refuse(errno.EPERM)]), _high_half(2)]
    sets_core = [*both_halves, *_if(ANY_BIT, 0xFFFFFFFF, [_refuse(errno.EPERM)]), _allow()]
    refused = _refuse_values(0, (SUPERVISOR,))[:-1]
    return [*refused, _argument(1), *_if(EQUAL, RLIMIT_CORE, sets_core), _allow()]


def _refuse_others(whole_user: int) -> Program:
    """Of calls by kind and id: all processes of the user, and the supervisor or its group."""
    return [*_refuse_values(0, (whole_user,))[:-1], *_refuse_values(1, (SUPERVISOR,))]


def _refuse_bits(argument: int, mask: int) -> Program:
    return [_argument(argument), *_if(ANY_BIT, mask, [_refuse(errno.EPERM)]), _allow()]


def _argument(index: int) -> Instruction:
    """Load the low half: the kernel reads these arguments as 32-bit values, so the high half must not matter."""
    return Instruction(LOAD, 0, 0, 16 + 8 * index)


def _high_half(index: int) -> Instruction:
    return Instruction(LOAD, 0, 0, 20 + 8 * index)


def _when_number(number: int, block: Program) -> Program:
    return _if(EQUAL, number, block)


def _when_between(first: int, last: int, block: Program) -> Program:
    if first == last:
        return _if(EQUAL, first, block)
    return [Instruction(AT_LEAST, 0, 1 + len(block), first), Instruction(ABOVE, len(block), 0, last), *block]


def _if(condition: int, value: int, block: Program) -> Program:
    return [Instruction(condition, 0, len(block), value), *block]


def _allow() -> Instruction:
    return Instruction(RETURN, 0, 0, ALLOW)


def _refuse(error: int) -> Instruction:
    return Instruction(RETURN, 0, 0, 0x00050000 | error)


def _ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Sorted closed ranges of consecutive numbers."""
    ranges: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ranges
