"""The filter says what its table says, call by call: run here by a small BPF machine, and accepted by the kernel."""

from __future__ import annotations

import errno
import struct
import subprocess
import sys

import pytest

from v32.sandboxes.errors import SandboxUnavailable
from v32.sandboxes.seccomp import ALLOW, ARCHITECTURES, KILL_PROCESS, build_filter, syscall_table

REFUSED = 0x00050000


def run(program: bytes, number: int, *arguments: int, machine: str = "x86_64", audit: int | None = None) -> int:
    """What the filter returns for a call; the four jumps and the load that it uses, nothing else."""
    audit = ARCHITECTURES[machine][1] if audit is None else audit
    words = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("=IIQ6Q", number, audit, 0, *(word & (1 << 64) - 1 for word in words))
    at, accumulator = 0, 0
    while True:
        code, if_true, if_false, value = struct.unpack_from("=HBBI", program, 8 * at)
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif code == 0x06:
            return int(value)
        else:
            holds = {
                0x15: accumulator == value,
                0x35: accumulator >= value,
                0x25: accumulator > value,
                0x45: bool(accumulator & value),
            }[code]
            at += if_true if holds else if_false


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_every_call_of_the_table_gets_its_verdict(machine: str) -> None:
    program, table = build_filter(machine=machine), syscall_table(machine)
    for number in [*table["allowed"].values(), *table["hidden_memory"].values()]:
        assert run(program, number, machine=machine) == ALLOW
    for number in table["refused"].values():
        assert run(program, number, machine=machine) == REFUSED | errno.EPERM


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_a_call_that_stands_nowhere_does_not_exist(machine: str) -> None:
    program, table = build_filter(machine=machine), syscall_table(machine)
    known = {number for section in table.values() for number in section.values()}
    for number in set(range(1100)) - known:
        assert run(program, number, machine=machine) == REFUSED | errno.ENOSYS


def test_other_architectures_die_and_x32_does_not_exist() -> None:
    program = build_filter(machine="x86_64")
    assert run(program, 11, audit=0x40000003) == KILL_PROCESS
    assert run(program, 0x40000000 + 39) == REFUSED | errno.ENOSYS


@pytest.mark.parametrize(
    ("name", "arguments", "verdict"),
    [
        ("socket", (1, 1, 0), ALLOW),
        ("socket", (2, 1, 6), ALLOW),
        ("socket", (10, 2, 17), ALLOW),
        ("socket", (2, 1, 262), REFUSED | errno.EPROTONOSUPPORT),  # MPTCP
        ("socket", (16, 3, 0), REFUSED | errno.EAFNOSUPPORT),  # netlink
        ("socket", (40, 1, 0), REFUSED | errno.EAFNOSUPPORT),  # vsock
        ("socketpair", (1, 1, 0), ALLOW),
        ("socketpair", (30, 1, 0), REFUSED | errno.EAFNOSUPPORT),
        ("clone", (17,), ALLOW),
        ("clone", (0x10000000 | 17,), REFUSED | errno.EPERM),
        ("clone", (0x40000000,), REFUSED | errno.EPERM),
        ("clone3", (0,), REFUSED | errno.ENOSYS),
        ("ioctl", (0, 0x5401), ALLOW),
        ("ioctl", (0, 0x5412), REFUSED | errno.EPERM),
        ("ioctl", (0, 0x5412 | 1 << 40), REFUSED | errno.EPERM),  # the kernel reads 32 bits
        ("personality", (0xFFFFFFFF,), ALLOW),
        ("personality", (0x0400000,), REFUSED | errno.EPERM),
        ("prctl", (15, 4096), ALLOW),
        ("prctl", (41, 0, 0, 0, 0), REFUSED | errno.EPERM),  # huge pages stay off
        ("prlimit64", (0, 7, 4096, 0), ALLOW),
        ("prlimit64", (1, 7, 4096, 0), REFUSED | errno.EPERM),  # the supervisor's
        ("prlimit64", (1 | 1 << 40, 7, 4096, 0), REFUSED | errno.EPERM),
        ("prlimit64", (0, 4, 0, 4096), ALLOW),  # the core limit may be read
        ("prlimit64", (0, 4, 4096, 0), REFUSED | errno.EPERM),  # and not set
        ("prlimit64", (0, 4, 1 << 32, 0), REFUSED | errno.EPERM),
        ("setrlimit", (4, 4096), REFUSED | errno.EPERM),
        ("setrlimit", (7, 4096), ALLOW),
        ("sched_setscheduler", (0, 5, 4096), ALLOW),
        ("sched_setscheduler", (1, 5, 4096), REFUSED | errno.EPERM),
        ("sched_setattr", (1, 4096, 0), REFUSED | errno.EPERM),
        ("sched_setparam", (1, 4096), REFUSED | errno.EPERM),
        ("sched_setaffinity", (1, 8, 4096), REFUSED | errno.EPERM),
        ("sched_setaffinity", (77, 8, 4096), ALLOW),
        ("setpriority", (0, 0, 19), ALLOW),
        ("setpriority", (0, 1, 19), REFUSED | errno.EPERM),
        ("setpriority", (1, 1, 19), REFUSED | errno.EPERM),
        ("setpriority", (2, 0, 19), REFUSED | errno.EPERM),  # every process of the user
        ("ioprio_set", (1, 0, 0), ALLOW),
        ("ioprio_set", (1, 1, 0), REFUSED | errno.EPERM),
        ("ioprio_set", (3, 0, 0), REFUSED | errno.EPERM),
    ],
)
def test_checked_calls_are_judged_by_their_arguments(name: str, arguments: tuple[int, ...], verdict: int) -> None:
    number = syscall_table("x86_64")["checked"][name]
    assert run(build_filter(machine="x86_64"), number, *arguments) == verdict


def test_memory_that_no_rlimit_counts_is_refused_without_a_memory_cgroup() -> None:
    program, numbers = build_filter(machine="x86_64", allow_hidden_memory=False), syscall_table("x86_64")
    for number in numbers["hidden_memory"].values():
        assert run(program, number) == REFUSED | errno.EPERM


def test_moving_to_another_cpu_is_refused_where_the_cpu_is_the_limit() -> None:
    number = syscall_table("x86_64")["checked"]["sched_setaffinity"]
    assert run(build_filter(machine="x86_64"), number) == ALLOW
    assert run(build_filter(machine="x86_64", allow_affinity=False), number) == REFUSED | errno.EPERM


def test_an_unknown_machine_is_refused_with_a_way_out() -> None:
    with pytest.raises(SandboxUnavailable, match=r"'riscv64'.*container"):
        build_filter(machine="riscv64")


def test_the_kernel_takes_the_filter() -> None:
    load = (
        "import ctypes,sys,socket\n"
        "p=sys.stdin.buffer.read(); b=ctypes.create_string_buffer(p)\n"
        "class F(ctypes.Structure): _fields_=[('n',ctypes.c_ushort),('p',ctypes.c_void_p)]\n"
        "f=F(len(p)//8,ctypes.addressof(b)); c=ctypes.CDLL(None)\n"
        "assert c.prctl(38,1,0,0,0)==0 and c.prctl(22,2,ctypes.byref(f))==0\n"
        "try: socket.socket(40,1)\n"
        "except OSError as e: print(e.errno)\n"
    )
    done = subprocess.run([sys.executable, "-c", load], input=build_filter(), capture_output=True, check=True)
    assert int(done.stdout) == errno.EAFNOSUPPORT
