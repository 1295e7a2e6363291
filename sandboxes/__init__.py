"""Where foreign code runs: `open_sandbox` and what it takes and gives. See README.md for what holds it in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from v32.sandboxes.errors import SandboxClosed, SandboxError, SandboxFileError, SandboxUnavailable
from v32.sandboxes.sandbox import (
    CellResult,
    Enforcement,
    ExecResult,
    FileEntry,
    OutputChunk,
    Sandbox,
    SandboxPolicy,
    State,
    Status,
)

if TYPE_CHECKING:
    from v32.sandboxes.attacks import AttackResult, run_attacks
    from v32.sandboxes.backends import open_sandbox, start_sandbox
    from v32.sandboxes.probes import BackendReport, report
    from v32.sandboxes.unisolated import UnisolatedSandbox

__all__ = [
    "AttackResult",
    "BackendReport",
    "CellResult",
    "Enforcement",
    "ExecResult",
    "FileEntry",
    "OutputChunk",
    "Sandbox",
    "SandboxClosed",
    "SandboxError",
    "SandboxFileError",
    "SandboxPolicy",
    "SandboxUnavailable",
    "State",
    "Status",
    "UnisolatedSandbox",
    "open_sandbox",
    "report",
    "run_attacks",
    "start_sandbox",
]

_HOMES = {
    "open_sandbox": "backends",
    "start_sandbox": "backends",
    "UnisolatedSandbox": "unisolated",
    "report": "probes",
    "BackendReport": "probes",
    "run_attacks": "attacks",
    "AttackResult": "attacks",
}


def __getattr__(name: str) -> Any:
    """Loaded when first asked for: anyio and subprocess are not needed to name a policy."""
    if name not in _HOMES:
        raise AttributeError(f"module 'v32.sandboxes' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"v32.sandboxes.{_HOMES[name]}"), name)
