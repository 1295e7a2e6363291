"""One contract over every backend: `session(body)` runs `body(sandbox)` in a sandbox of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import anyio
import pytest

from v32.sandboxes.backends import start_sandbox
from v32.sandboxes.errors import SandboxUnavailable
from v32.sandboxes.sandbox import SandboxPolicy
from v32.sandboxes.supervised import SupervisedSandbox
from v32.sandboxes.unisolated import UnisolatedSandbox

T = TypeVar("T")
DEFAULT = SandboxPolicy()


class Session(Protocol):
    backend: str

    def __call__(self, body: Callable[[SupervisedSandbox], Awaitable[T]], policy: SandboxPolicy = DEFAULT) -> T: ...


class _Session:
    def __init__(self, backend: str) -> None:
        self.backend = backend

    def __call__(self, body: Callable[[SupervisedSandbox], Awaitable[T]], policy: SandboxPolicy = DEFAULT) -> T:
        async def run() -> T:
            try:
                sandbox = await self._open(policy)
            except SandboxUnavailable as error:
                if self.backend == "container":
                    pytest.skip(str(error))
                raise
            async with sandbox:
                return await body(sandbox)

        return anyio.run(run)

    async def _open(self, policy: SandboxPolicy) -> SupervisedSandbox:
        if self.backend == "unisolated":
            return UnisolatedSandbox(policy)
        return await start_sandbox(policy, self.backend)  # type: ignore[arg-type]


@pytest.fixture(
    params=["bubblewrap", *(pytest.param(name, marks=pytest.mark.slow) for name in ("unisolated", "container"))]
)
def session(request: pytest.FixtureRequest) -> Session:
    return _Session(request.param)


@pytest.fixture
def bubblewrap() -> Session:
    return _Session("bubblewrap")
