"""What sandboxing this machine can do, found by opening each backend and running a line of Python in it."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

from v32.sandboxes.backends import start_sandbox
from v32.sandboxes.errors import SandboxError
from v32.sandboxes.sandbox import Enforcement, SandboxPolicy


@dataclass(frozen=True, slots=True)
class BackendReport:
    """One backend: whether it works, what it enforces by which mechanism, or why it does not work."""

    backend: str
    works: bool
    enforced: Enforcement
    open_seconds: float = 0.0
    problem: str = ""


async def report(policy: SandboxPolicy = SandboxPolicy()) -> list[BackendReport]:  # noqa: B008
    """Every isolating backend, the one that `auto` takes first."""
    backends = ("bubblewrap", "container") if sys.platform == "linux" else ("container", "bubblewrap")
    return [await probe(backend, policy) for backend in backends]


async def probe(backend: str, policy: SandboxPolicy = SandboxPolicy()) -> BackendReport:  # noqa: B008
    """Open it and compute 1+1 inside."""
    start = time.monotonic()
    try:
        sandbox = await start_sandbox(policy, backend)  # type: ignore[arg-type]
    except SandboxError as error:
        return BackendReport(backend, False, Enforcement(), problem=str(error))
    seconds = time.monotonic() - start
    try:
        answer = await sandbox.run_python("1+1")
    finally:
        await sandbox.close()
    problem = "" if answer.value == "2" else f"1+1 gave {answer.value!r} ({answer.status}: {answer.notice})"
    return BackendReport(backend, not problem, sandbox.enforced, seconds, problem)
