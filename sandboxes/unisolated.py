"""A sandbox that isolates nothing, for operators who accept that; its name says so and no option leads here.

The same supervisor and the same calls as everywhere, in a temporary folder, with this user's rights, network and
files within reach. It ends what it started and keeps time and output limits; that is all. Linux only.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from typing import Self

import anyio

from v32.sandboxes.channel import Channel
from v32.sandboxes.errors import SandboxUnavailable
from v32.sandboxes.files import DirectoryFiles
from v32.sandboxes.sandbox import Enforcement, SandboxPolicy
from v32.sandboxes.startup import GUEST, GUEST_FILES, await_ready, settings_frame
from v32.sandboxes.supervised import SupervisedSandbox


class UnisolatedSandbox(SupervisedSandbox):
    """`async with UnisolatedSandbox() as sandbox:` runs foreign code with the rights of this process."""

    def __init__(self, policy: SandboxPolicy = SandboxPolicy()) -> None:  # noqa: B008
        if sys.platform != "linux":
            raise SandboxUnavailable(f"UnisolatedSandbox needs Linux, this is {sys.platform}; use backend='container'")
        self._folder = tempfile.mkdtemp(prefix="v32-unisolated-")
        shutil.copytree(GUEST, f"{self._folder}/guest", ignore=lambda _, names: set(names) - set(GUEST_FILES))
        workspace = f"{self._folder}/workspace"
        os.mkdir(workspace)
        self._ours, theirs = socket.socketpair()
        control, host = theirs.fileno(), os.pidfd_open(os.getpid())
        program = [policy.python or sys.executable, "-I", "-S", "-B", f"{self._folder}/guest/boot.py"]
        try:
            self._process = subprocess.Popen(
                [*program, str(host), str(control), str(control), workspace, "tree"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[control, host],
                start_new_session=True,
                env={},
            )
        finally:
            theirs.close()
            os.close(host)
        self._ours.sendall(_settings(policy, workspace))
        directory = os.open(workspace, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fd = self._ours.fileno()
        jail = _Tree(self._process, self._folder)
        super().__init__(policy, Channel(fd, fd), DirectoryFiles(directory), jail, Enforcement())

    async def __aenter__(self) -> Self:
        os.close(await await_ready(self._ours))
        self._ours.detach()
        return self


class _Tree:
    """The supervisor, which ends its descendants when it can, and the temporary folder."""

    def __init__(self, process: subprocess.Popen[bytes], folder: str) -> None:
        self._process, self._folder = process, folder

    def kill(self) -> None:
        self._process.terminate()

    def memory_strikes(self) -> int:
        return 0

    def process_strikes(self) -> int:
        return 0

    async def close(self) -> None:
        with anyio.move_on_after(10):
            while self._process.poll() is None:
                await anyio.sleep(0.002)
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)  # the supervisor does so too, unless it was killed


def _settings(policy: SandboxPolicy, workspace: str) -> bytes:
    return settings_frame(
        policy,
        workspace,
        max_processes=0,
        data_bytes=0,
        watch_bytes=policy.memory_bytes,
        landlock=False,
        keep_background=policy.background == "keep",
    )
