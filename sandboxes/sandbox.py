"""The Sandbox protocol, its policy and its results. Backends stand beside this file; none is imported here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

Status = Literal[
    "ok", "error", "timeout", "memory_limit", "process_limit", "disk_limit", "output_limit", "cancelled", "died",
    "protocol_violation", "session_dead",
]  # fmt: skip
State = Literal["kept", "lost"]


@dataclass(frozen=True, slots=True)
class SandboxPolicy:
    """Limits of one sandbox, chosen by the operator; no field of it can be reached by the model."""

    wall_seconds: float = 30.0
    grace_seconds: float = 1.0
    memory_bytes: int = 1 << 30
    max_processes: int = 128
    cpus: float = 1.0
    workspace_bytes: int = 512 << 20
    workspace_inodes: int = 50_000
    file_bytes: int = 256 << 20
    open_files: int = 256
    output_head_bytes: int = 16 << 10
    output_tail_bytes: int = 48 << 10
    output_kill_bytes: int = 64 << 20
    artefact_bytes: int = 32 << 20
    background: Literal["kill", "keep"] = "kill"
    python: str | None = None
    """Interpreter inside the sandbox; None: the first of /usr/bin/python3 and what the backend finds."""


@dataclass(frozen=True, slots=True)
class Enforcement:
    """By which mechanism each limit holds on this machine: `namespace`, `cgroup2`, `watchdog`, …, or `none`."""

    filesystem: str = "none"
    network: str = "none"
    memory: str = "none"
    processes: str = "none"
    syscalls: str = "none"
    inodes: str = "none"
    cpu: str = "none"


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What one command did, measured by the host."""

    stdout: bytes
    stderr: bytes
    exit_code: int | None
    timed_out: bool = False
    truncated: bool = False
    status: Status = "ok"
    state: State = "kept"
    notice: str = ""
    """The host's own words for the model (limit reached, state lost); never mixed into the output."""
    seconds: float = 0.0
    enforced: Enforcement = field(default_factory=Enforcement)


@dataclass(frozen=True, slots=True)
class CellResult:
    """What one Python cell did: its output, the repr of its last expression, the traceback of its exception."""

    stdout: bytes
    stderr: bytes
    value: str | None = None
    error: str | None = None
    timed_out: bool = False
    truncated: bool = False
    status: Status = "ok"
    state: State = "kept"
    notice: str = ""
    seconds: float = 0.0
    enforced: Enforcement = field(default_factory=Enforcement)


@dataclass(frozen=True, slots=True)
class OutputChunk:
    """A piece of output of a running cell or command, in the order the host received it."""

    stream: Literal["stdout", "stderr"]
    data: bytes


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One regular file or directory below the workspace; `path` is relative."""

    path: str
    size: int
    is_dir: bool
    modified: float


class Sandbox(Protocol):
    """Where foreign code runs. One call at a time; a second waits. After `close` every call raises `SandboxError`."""

    async def run_python(self, code: str, *, timeout: float | None = None, fresh: bool = False) -> CellResult:
        """Run a cell in the persistent interpreter; `fresh` forgets its variables first."""

    async def bash(
        self, command: str, *, timeout: float | None = None, cwd: str = ".", env: Mapping[str, str] | None = None
    ) -> ExecResult: ...

    async def exec(
        self, argv: Sequence[str], *, stdin: bytes | None = None, timeout: float | None = None
    ) -> ExecResult: ...

    def stream(
        self, kind: Literal["python", "bash"], code: str, *, timeout: float | None = None
    ) -> AsyncIterator[OutputChunk | CellResult | ExecResult]:
        """Chunks as they come, then exactly one result."""

    async def cancel(self) -> None:
        """Interrupt the running call, then kill it; its result has status `cancelled`. Safe at any time."""

    async def write_file(self, path: str, data: bytes) -> None:
        """Write below the workspace; parents are made. Raises `SandboxFileError` (path, links, limits)."""

    async def read_file(self, path: str, *, max_bytes: int | None = None) -> bytes: ...

    async def list_files(self) -> list[FileEntry]: ...

    async def reset(self, *, files: Literal["keep", "wipe"] = "keep") -> None:
        """A new interpreter; with `wipe` an empty workspace too."""

    async def checkpoint(self) -> str:
        """Remember interpreter and variables; returns an id for `rollback`."""

    async def rollback(self, checkpoint: str) -> None: ...

    async def close(self) -> None: ...

    @property
    def enforced(self) -> Enforcement: ...
