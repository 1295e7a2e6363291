"""The container backend: the same supervisor as PID 1 of a locked-down podman or docker container.

For machines without user namespaces of their own (macOS, Windows, clusters). The engine's stdio is the channel; the
supervisor's files travel in the command line, so that nothing of the host is mounted. Files go through a program run
inside (`artefacts.py`); the host sees bytes only.
"""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import subprocess
import tempfile
import threading
import uuid
from dataclasses import dataclass

import anyio
import anyio.to_thread

from v32.sandboxes import artefacts
from v32.sandboxes.channel import Channel, ChannelClosed
from v32.sandboxes.errors import SandboxFileError, SandboxUnavailable
from v32.sandboxes.files import Listing
from v32.sandboxes.guest.wire import FrameError
from v32.sandboxes.sandbox import Enforcement, FileEntry, SandboxPolicy
from v32.sandboxes.startup import GUEST, GUEST_FILES, settings_frame
from v32.sandboxes.supervised import SupervisedSandbox

ENGINES = ("podman", "docker")
IMAGE = "docker.io/library/python:3.12-slim"
USER = "65534:65534"
OPEN_SECONDS, FILE_SECONDS, CLOSE_SECONDS = 60.0, 60.0, 15.0
PATH_LIMIT = 4096
ANSWER_LIMIT = 16 << 20
BOOTSTRAP = """\
import base64, os, sys
os.makedirs("/run/v32", exist_ok=True)
for name, text in zip(sys.argv[1::2], sys.argv[2::2]):
    with open("/run/v32/" + name, "wb") as file: file.write(base64.b64decode(text))
os.chmod("/run/v32", 0o555)
supervisor = ["/run/v32/boot.py", "-1", "0", "1", "/workspace", "namespace"]
os.execv(sys.executable, [sys.executable, "-I", "-S", "-B", *supervisor])
"""


@dataclass(frozen=True)
class Engine:
    """What is run, with which image, and optionally under which OCI runtime (`runsc` is gVisor)."""

    program: str
    image: str = IMAGE
    runtime: str | None = None


def find_engine(image: str = IMAGE, runtime: str | None = None) -> Engine:
    """The first engine whose daemon or machine answers and that has the image."""
    problems = []
    for name in ENGINES:
        program = shutil.which(name)
        if program is None:
            problems.append(f"{name} is not installed")
            continue
        try:
            answer = subprocess.run(
                [program, "image", "inspect", "--format", "ok", image], capture_output=True, text=True, timeout=20
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            problems.append(f"{name} does not answer ({error})")
            continue
        if answer.returncode == 0:
            return Engine(program, image, runtime)
        problems.append(f"{name}: {answer.stderr.strip().splitlines()[-1] if answer.stderr.strip() else 'no answer'}")
    raise SandboxUnavailable(
        f"nothing was run: no container engine works here. {'; '.join(problems)}. "
        f"Fix: install podman or start docker, then `podman pull {image}`"
    )


async def open_container(policy: SandboxPolicy, engine: Engine | None = None) -> SupervisedSandbox:
    """Start a container and wait for its supervisor."""
    if engine is None:
        engine = await anyio.to_thread.run_sync(find_engine)
    name = f"v32-{uuid.uuid4().hex[:16]}"
    process = subprocess.Popen(
        [*run_command(engine, policy, name), *program_inside()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    channel = Channel(os.dup(process.stdout.fileno()), os.dup(process.stdin.fileno()))
    process.stdin.close()
    process.stdout.close()
    jail = _Container(engine, name, process)
    try:
        await _greet(channel, policy)
    except (ChannelClosed, FrameError, TimeoutError) as error:
        channel.close()
        said = await jail.last_words()
        raise SandboxUnavailable(f"nothing was run: {engine.program} did not start a sandbox. {said}") from error
    except BaseException:
        channel.close()
        with anyio.CancelScope(shield=True):
            await jail.close()
        raise
    return SupervisedSandbox(policy, channel, _ContainerFiles(engine, name), jail, _enforcement(engine))


def run_command(engine: Engine, policy: SandboxPolicy, name: str) -> list[str]:
    """The engine's command line up to the program: no network, no capability, nothing writable but sized tmpfs."""
    storage = f"rw,nosuid,nodev,size={policy.workspace_bytes},mode=1777"
    inodes = f",nr_inodes={policy.workspace_inodes}"
    return [
        engine.program, "run", "--rm", "--interactive", "--pull", "never", "--name", name,
        *(["--runtime", engine.runtime] if engine.runtime else []),
        "--network", "none", "--read-only", "--user", USER, "--hostname", "sandbox",
        "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
        "--memory", str(policy.memory_bytes), "--memory-swap", str(policy.memory_bytes),
        "--pids-limit", str(policy.max_processes + 1), "--cpus", f"{policy.cpus:g}",
        "--ulimit", f"nofile={max(policy.open_files, 256)}", "--ulimit", "core=1",
        "--tmpfs", f"/workspace:{storage}{inodes},exec", "--tmpfs", f"/tmp:{storage}{inodes}",
        "--tmpfs", "/run:rw,nosuid,nodev,size=1m,mode=1777", "--shm-size", str(policy.workspace_bytes),
        "--entrypoint", policy.python or "python3", engine.image,
    ]  # fmt: skip


def program_inside() -> list[str]:
    """Arguments of the image's Python: write the supervisor's files and become it."""
    files = []
    for name in GUEST_FILES:
        files += [name, base64.b64encode((GUEST / name).read_bytes()).decode()]
    return ["-I", "-S", "-B", "-c", BOOTSTRAP, *files]


async def _greet(channel: Channel, policy: SandboxPolicy) -> None:
    frame = settings_frame(
        policy,
        "/workspace",
        max_processes=0,
        data_bytes=0,
        watch_bytes=policy.memory_bytes,
        landlock=True,
        keep_background=policy.background == "keep",
    )
    channel.send_raw(frame)
    deadline = anyio.current_time() + OPEN_SECONDS
    while anyio.current_time() < deadline:
        for fields in await channel.receive(deadline):
            if fields == [b"ready"]:
                return
            raise FrameError(f"{fields[:1]!r} instead of a greeting")
    raise TimeoutError(f"no greeting within {OPEN_SECONDS:g} s")


def _enforcement(engine: Engine) -> Enforcement:
    by = f"container ({os.path.basename(engine.program)}{', ' + engine.runtime if engine.runtime else ''})"
    return Enforcement(by, by, f"{by}, watchdog", by, by, "tmpfs", by)


class _Container:
    """The engine's client as our child, and the container that it speaks for."""

    def __init__(self, engine: Engine, name: str, process: subprocess.Popen[bytes]) -> None:
        self._engine, self._name, self._process = engine, name, process

    def kill(self) -> None:
        subprocess.Popen(
            [self._engine.program, "kill", self._name], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def memory_strikes(self) -> int:
        return 0

    def process_strikes(self) -> int:
        return 0

    async def last_words(self) -> str:
        """What the engine said before it gave up."""
        await self.close()
        assert self._process.stderr is not None
        return self._process.stderr.read(4096).decode("utf-8", "replace").strip()

    async def close(self) -> None:
        with anyio.move_on_after(CLOSE_SECONDS) as waiting:
            while self._process.poll() is None:
                await anyio.sleep(0.02)
        if waiting.cancelled_caught:
            self.kill()
            self._process.kill()
        self._process.wait()


class _ContainerFiles:
    """The workspace through `exec` of a small program inside."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._prefix = [
            engine.program,
            "exec",
            "--interactive",
            "--user",
            USER,
            name,
            "python3",
            "-I",
            "-S",
            "-B",
            "-c",
        ]
        self._source = (GUEST.parent / "artefacts.py").read_text()

    async def read(self, path: str, max_bytes: int) -> bytes:
        return await self._run(path, "read", path, str(max_bytes), limit=max_bytes)

    async def write(self, path: str, data: bytes) -> None:
        await self._run(path, "write", path, stdin=data)

    async def entries(self) -> list[FileEntry]:
        listing = Listing()
        for record in (await self._run("/workspace", "list")).split(b"\0")[: artefacts.MAX_ENTRIES + 1]:
            fields = record.split(b" ", 3)
            if record == b"...":
                listing.is_complete = False
            elif len(fields) == 4:
                with contextlib.suppress(ValueError):
                    path = os.fsdecode(fields[3][:PATH_LIMIT])
                    listing.append(FileEntry(path, int(fields[0]), fields[1] == b"1", float(fields[2])))
        return listing

    def is_full(self) -> bool:
        return False

    def close(self) -> None:
        return None

    async def _run(self, shown: str, *arguments: str, stdin: bytes = b"", limit: int = ANSWER_LIMIT) -> bytes:
        if "\0" in "".join(arguments) or not artefacts.is_encodable("".join(arguments)):
            raise SandboxFileError(f"{shown!r}: is not the name of a file")
        command = [*self._prefix, self._source, "/workspace", *arguments]
        code, out, err = await anyio.to_thread.run_sync(_run_bounded, command, stdin, limit, abandon_on_cancel=True)
        if code != 0:
            raise SandboxFileError(err.decode("utf-8", "replace").strip()[-500:] or f"{shown}: not available")
        return out


def _run_bounded(command: list[str], stdin: bytes, limit: int) -> tuple[int, bytes, bytes]:
    """Run a program that may be hostile: neither its output nor its time is without end."""
    with tempfile.TemporaryFile() as given:
        given.write(stdin)
        given.seek(0)
        process = subprocess.Popen(command, stdin=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    timer = threading.Timer(FILE_SECONDS, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        out = process.stdout.read(limit + 1)
        if len(out) > limit:
            return -1, b"", b"more came back than was asked for"
        return process.wait(), out, process.stderr.read(4096)
    finally:
        timer.cancel()
        process.kill()
        process.wait()
