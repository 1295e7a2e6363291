"""What a host has that an attack may be after: canaries, listeners, a victim, and meters that see what it takes.

Success of an attack is decided here, from outside: by canaries that turn up in its output, connections that arrive,
processes and memory that the host counts. Used by `attacks.py`; everything it makes is random and removed again.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

ADD_KEY, SESSION_KEYRING = {"x86_64": 248, "aarch64": 217}, -3
SAMPLE_SECONDS = 0.01
PAGE = os.sysconf("SC_PAGESIZE")
TICK = os.sysconf("SC_CLK_TCK")


class Arena:
    """Open while attacks run; `fill` puts its values into an attack's `@@NAME@@` holes."""

    def __init__(self) -> None:
        self._closers = contextlib.ExitStack()
        self.canary = f"canary-{secrets.token_hex(12)}"
        self.environment_canary = f"key-{secrets.token_hex(12)}"
        self.mark = f"mark-{secrets.token_hex(8)}"
        self.folder = Path(tempfile.mkdtemp(prefix="sbx-", dir="/var/tmp" if os.path.isdir("/var/tmp") else None))
        self._closers.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self.folder.chmod(0o755)
        self.drop = self.folder / "w"
        self.drop.mkdir(mode=0o777)
        self.drop.chmod(0o777)
        self.secret = self._plant("sbx_canary", 0o644)
        self.root_secret = self._plant("sbx_canary_root", 0o600)
        self.connected: dict[str, bool] = {"tcp": False, "unix": False, "abstract": False}
        self._port = self._listen("tcp", socket.AF_INET, ("127.0.0.1", 0)).getsockname()[1]
        self._unix = str(self.folder / "s.sock")
        self._listen("unix", socket.AF_UNIX, self._unix)
        os.chmod(self._unix, 0o777)
        self._abstract = f"sbx-{secrets.token_hex(8)}"
        self._listen("abstract", socket.AF_UNIX, f"\0{self._abstract}")
        os.environ["HOST_API_KEY"] = self.environment_canary  # what is started from now on inherits it
        self._closers.callback(os.environ.pop, "HOST_API_KEY", None)
        self.victim = subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL)
        self._closers.callback(self._end_victim)
        _add_session_key("sbxcanary", self.canary)

    def __enter__(self) -> Arena:
        return self

    def __exit__(self, *exception: object) -> None:
        self._closers.close()

    def fill(self, text: str) -> str:
        """The text with every `@@NAME@@` replaced."""
        values = {
            "CANARY": self.canary,
            "ENVCANARY": self.environment_canary,
            "MARK": self.mark,
            "SECRET": self.secret,
            "ROOTSECRET": self.root_secret,
            "WDIR": self.drop,
            "PORT": self._port,
            "UNIX": self._unix,
            "ABS": self._abstract,
        }
        for name, value in values.items():
            text = text.replace(f"@@{name}@@", str(value))
        return text

    def _plant(self, name: str, mode: int) -> Path:
        path = self.folder / name
        path.write_text(self.canary)
        path.chmod(mode)
        return path

    def _listen(self, name: str, family: int, address: object) -> socket.socket:
        """Accept for ever, note it, and hand every visitor a descriptor of the secret."""
        server = socket.socket(family)
        server.bind(address)  # type: ignore[arg-type]
        server.listen()
        self._closers.callback(_close_server, server)

        def serve() -> None:
            while True:
                try:
                    visitor, _ = server.accept()
                except OSError:
                    return
                self.connected[name] = True
                with visitor, open(self.secret, "rb") as secret, contextlib.suppress(OSError):
                    if family == socket.AF_UNIX:
                        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [secret.fileno()]))]
                        visitor.sendmsg([b"x"], rights)
                    time.sleep(0.2)

        threading.Thread(target=serve, daemon=True).start()
        return server

    def _end_victim(self) -> None:
        self.victim.kill()
        self.victim.wait()


class Meter:
    """Samples what this process's descendants use, in a thread, while a `with` block runs."""

    def __init__(self) -> None:
        self.peak_memory = 0
        self.peak_processes = 0
        self.seconds = 0.0
        self._cpu: dict[int, float] = {}
        self._group = _group()
        self._before = (len(_descendants()), self._held_bytes([]))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def cpus(self) -> float:
        """CPU seconds per second."""
        return sum(self._cpu.values()) / self.seconds if self.seconds else 0.0

    def __enter__(self) -> Meter:
        self._start = time.monotonic()
        self._first = {pid: _cpu_seconds(pid) for pid in _descendants()}
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.seconds = time.monotonic() - self._start
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            pids = _descendants()
            self.peak_memory = max(self.peak_memory, self._held_bytes(pids) - self._before[1])
            self.peak_processes = max(self.peak_processes, len(pids) - self._before[0])
            for pid in pids:
                used = _cpu_seconds(pid) - self._first.get(pid, 0.0)
                self._cpu[pid] = max(self._cpu.get(pid, 0.0), used)

    def _held_bytes(self, pids: list[int]) -> int:
        """What our control group counts, or else what these processes hold and what the machine's kernel does."""
        if self._group is not None:
            return _group_bytes(self._group)
        return sum(_anonymous_bytes(pid) for pid in pids) + _kernel_memory()


def is_running(mark: str) -> bool:
    """Whether a process of this host has the mark in its command line."""
    me = os.getpid()
    return any(mark.encode() in _read(f"/proc/{pid}/cmdline") for pid in _pids() if pid != me)


def can_open_terminal() -> bool:
    try:
        for fd in os.openpty():
            os.close(fd)
    except OSError:
        return False
    return True


def can_watch_files() -> bool:
    """Whether this user has a watcher and a watch left."""
    libc = ctypes.CDLL(None)
    fd = libc.inotify_init1(0)
    if fd < 0:
        return False
    watch = libc.inotify_add_watch(fd, b"/", 1)
    os.close(fd)
    return bool(watch >= 0)


def resident_bytes() -> int:
    """Of this process."""
    return int(_read("/proc/self/statm").split()[1]) * PAGE


def _descendants() -> list[int]:
    parents = {pid: _parent(pid) for pid in _pids()}
    tree, grown = {os.getpid()}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in tree} - tree
        grown, tree = bool(more), tree | more
    return sorted(tree - {os.getpid()})


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _fields(pid: int) -> list[bytes]:
    return _read(f"/proc/{pid}/stat").rpartition(b") ")[2].split()


def _parent(pid: int) -> int:
    fields = _fields(pid)
    return int(fields[1]) if len(fields) > 1 else -1


def _cpu_seconds(pid: int) -> float:
    fields = _fields(pid)
    return (int(fields[11]) + int(fields[12])) / TICK if len(fields) > 12 else 0.0


def _anonymous_bytes(pid: int) -> int:
    fields = _read(f"/proc/{pid}/statm").split()
    return (int(fields[1]) - int(fields[2])) * PAGE if len(fields) > 2 else 0


def _group() -> Path | None:
    """The memory control group of this process, if it is not that of the whole machine."""
    for line in _read("/proc/self/cgroup").decode().splitlines():
        _, controllers, path = line.split(":", 2)
        group = Path("/sys/fs/cgroup", controllers, path.lstrip("/"))
        if controllers in ("memory", "") and path != "/" and (group / "memory.stat").exists():
            return group
    return None


def _group_bytes(group: Path) -> int:
    """Without files of disks, which the kernel drops when it needs the room."""
    lines = _read(f"{group}/memory.stat").splitlines()
    stat = {name: int(text) for name, _, text in (line.partition(b" ") for line in lines)}
    if b"total_cache" in stat:
        return int(_read(f"{group}/memory.usage_in_bytes")) - stat[b"total_cache"] + stat[b"total_shmem"]
    return int(_read(f"{group}/memory.current")) - stat[b"file"] + stat[b"shmem"]


def _kernel_memory() -> int:
    """Shared memory of any kind and what the kernel holds for itself (buffers, tables, locks), of the whole machine."""
    lines = dict(line.split(b":") for line in _read("/proc/meminfo").splitlines() if b":" in line)
    size = {name: int(text.split()[0]) << 10 for name, text in lines.items()}
    others = sum(size.get(name, 0) for name in (b"MemFree", b"Buffers", b"Cached", b"SwapCached", b"AnonPages"))
    return size[b"Shmem"] + size[b"MemTotal"] - others - size[b"SReclaimable"]


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _close_server(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        server.shutdown(socket.SHUT_RDWR)
    server.close()


def _add_session_key(name: str, payload: str) -> None:
    """Into the keyring that every child inherits; without a keyring there is nothing to steal."""
    number = ADD_KEY.get(os.uname().machine)
    if number is not None:
        data = payload.encode()
        ctypes.CDLL(None).syscall(number, b"user", name.encode(), data, ctypes.c_size_t(len(data)), SESSION_KEYRING)
