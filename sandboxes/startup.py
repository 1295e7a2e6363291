"""What every backend does to start a supervisor: its files, its settings, its greeting."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

import anyio

from v32.sandboxes.guest.wire import pack
from v32.sandboxes.sandbox import SandboxPolicy

OPEN_SECONDS = 15.0
GUEST = Path(__file__).parent / "guest"
GUEST_FILES = (
    "boot.py", "supervisor.py", "wire.py", "call.py", "interpreters.py", "processes.py", "storage.py", "confine.py",
    "kernel.py", "watchdog.py",
)  # fmt: skip


def settings_frame(
    policy: SandboxPolicy,
    workspace: str,
    *,
    max_processes: int,
    data_bytes: int,
    watch_bytes: int,
    landlock: bool,
    keep_background: bool,
) -> bytes:
    """The first frame to a supervisor; a limit of 0 is none."""
    numbers = {
        "file_bytes": policy.file_bytes,
        "open_files": policy.open_files,
        "max_processes": max_processes,
        "data_bytes": data_bytes,
        "watch_bytes": watch_bytes,
        "landlock": int(landlock),
        "keep_background": int(keep_background),
    }
    fields = [f"{name}={value}" for name, value in numbers.items()]
    fields += [f"env.{name}={value}" for name, value in _environment(workspace, policy).items()]
    return pack(b"settings", *(field.encode() for field in fields))


def _environment(workspace: str, policy: SandboxPolicy) -> dict[str, str]:
    """What foreign programs find in their environment; nothing comes from the host's."""
    threads = str(max(1, int(policy.cpus)))
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": workspace,
        "USER": "sandbox",
        "LANG": "C.UTF-8",
        "TMPDIR": "/tmp",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "MPLBACKEND": "Agg",
    }


async def await_ready(control: socket.socket) -> int:
    """The supervisor's greeting over a socket, and the descriptor of the workspace that comes with it."""
    control.setblocking(False)
    with anyio.fail_after(OPEN_SECONDS):
        await anyio.wait_readable(control)
    fds: list[int] = []
    data = b""
    with contextlib.suppress(ConnectionError):
        data, fds, _, _ = socket.recv_fds(control, 64, 1)
    if data != pack(b"ready") or len(fds) != 1:
        for fd in fds:
            os.close(fd)
        raise OSError("the supervisor did not start")
    return fds[0]
