"""Opening a sandbox: which backend, never a weaker one than asked for."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from v32.sandboxes.errors import SandboxError
from v32.sandboxes.sandbox import SandboxPolicy
from v32.sandboxes.supervised import SupervisedSandbox

Backend = Literal["auto", "bubblewrap", "container"]


@asynccontextmanager
async def open_sandbox(
    policy: SandboxPolicy = SandboxPolicy(),  # noqa: B008
    backend: Backend = "auto",
) -> AsyncIterator[SupervisedSandbox]:
    """A sandbox for the length of a `with` block.

    `auto` is bubblewrap on Linux and a container engine elsewhere; where that does not work, `SandboxUnavailable` says
    why and what helps. Nothing ever falls back to running without isolation.
    """
    sandbox = await start_sandbox(policy, backend)
    try:
        yield sandbox
    finally:
        await sandbox.close()


async def start_sandbox(
    policy: SandboxPolicy = SandboxPolicy(),  # noqa: B008
    backend: Backend = "auto",
) -> SupervisedSandbox:
    """As `open_sandbox`, for owners that call `close` themselves."""
    if backend == "auto":
        backend = "bubblewrap" if sys.platform == "linux" else "container"
    if backend == "bubblewrap":
        from v32.sandboxes.bubblewrap import open_bubblewrap

        return await open_bubblewrap(policy)
    if backend == "container":
        from v32.sandboxes.container import open_container

        return await open_container(policy)
    hint = "; to run without isolation construct UnisolatedSandbox yourself" if "isolated" in str(backend) else ""
    raise SandboxError(f"unknown sandbox backend {backend!r}; offered: auto, bubblewrap, container{hint}")
