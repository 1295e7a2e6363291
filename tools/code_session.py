"""The sandboxes behind the tools that run code: one for each conversation, opened at its first call.

Each is kept until `end_session` or `aclose`. Where no sandbox works, the first call raises `SandboxUnavailable`;
nothing ever runs unisolated.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Literal

import anyio

from v32.sandboxes.errors import SandboxClosed, SandboxError
from v32.sandboxes.sandbox import Sandbox, SandboxPolicy
from v32.tools.tool import Tool, ToolContext, ToolError

# Opening, the sandbox's own interrupt and grace come on top of the time that the code may take.
_MARGIN_SECONDS = 15.0


class CodeSession:
    """The sandboxes behind the code tools, by session id.

    `open` makes a sandbox; by default it is `v32.sandboxes.start_sandbox(policy, backend)`.
    """

    def __init__(
        self,
        policy: SandboxPolicy | None = None,
        *,
        backend: Literal["auto", "bubblewrap", "container"] = "auto",
        open: Callable[[], Awaitable[Sandbox]] | None = None,
    ) -> None:
        self.policy = policy or SandboxPolicy()
        self._open = open or (lambda: _open_default(self.policy, backend))
        self._lent: Sandbox | None = None
        self._sandboxes: dict[str, Sandbox] = {}
        self._turns: dict[str, anyio.Lock] = {}

    @classmethod
    def of(cls, sandbox: Sandbox, policy: SandboxPolicy | None = None) -> CodeSession:
        """A sandbox that somebody else opened and will close; every conversation shares it."""
        session = cls(policy)
        session._lent = sandbox
        return session

    def tools(self, *, files: bool = False) -> list[Tool]:
        """`python` and `bash`, and with `files` the tools to view, create, change and list files, on one workspace."""
        from v32.tools.code import bash_tool, python_tool
        from v32.tools.files import files_tools

        return [python_tool(self), bash_tool(self), *(files_tools(self) if files else [])]

    @property
    def timeout(self) -> float:
        """Seconds a tool call may take, so that the sandbox's own limit comes first and partial output is kept."""
        return self.policy.wall_seconds + self.policy.grace_seconds + _MARGIN_SECONDS

    async def sandbox(self, session_id: str) -> Sandbox:
        """The sandbox of a conversation, opened if need be. Raises `SandboxUnavailable`."""
        if self._lent is not None:
            return self._lent
        async with self._turn(session_id):
            if session_id not in self._sandboxes:
                self._sandboxes[session_id] = await self._open()
            return self._sandboxes[session_id]

    @asynccontextmanager
    async def lending(self, context: ToolContext) -> AsyncIterator[Sandbox]:
        """The sandbox of a call; what it refuses is for the model to read, and a dead one is let go."""
        sandbox = await self.sandbox(context.session_id)
        try:
            yield sandbox
        except SandboxClosed as error:
            await self.let_go(context, sandbox)
            reason = str(error).partition(";")[0]  # what follows is for programmers
            outlook = "the next call starts anew" if self._lent is None else "no code can be run any more"
            raise ToolError(f"{reason}; variables and files are lost, {outlook}") from error
        except SandboxError as error:
            raise ToolError(str(error)) from error

    async def let_go(self, context: ToolContext, sandbox: Sandbox) -> None:
        """It is dead: the next call opens a new one, unless another call has done so."""
        if self._sandboxes.get(context.session_id) is sandbox:
            await self.end_session(context.session_id)

    async def end_session(self, session_id: str) -> None:
        """Close the sandbox of one conversation, also one that is being opened; its next call opens a new one."""
        async with self._turn(session_id):
            if sandbox := self._sandboxes.pop(session_id, None):
                await sandbox.close()

    async def aclose(self) -> None:
        """Close every sandbox; a later call opens a new one."""
        for session_id in {*self._sandboxes, *self._turns}:
            await self.end_session(session_id)

    @asynccontextmanager
    async def _turn(self, session_id: str) -> AsyncIterator[None]:
        """One at a time opens or closes the sandbox of a conversation."""
        turn = self._turns.setdefault(session_id, anyio.Lock())
        try:
            async with turn:
                yield
        finally:
            if not turn.locked():
                self._turns.pop(session_id, None)


def session_of(session: CodeSession | Sandbox) -> CodeSession:
    """What the tools of a session, or of one sandbox, share."""
    return session if isinstance(session, CodeSession) else CodeSession.of(session)


async def _open_default(policy: SandboxPolicy, backend: Literal["auto", "bubblewrap", "container"]) -> Sandbox:
    from v32.sandboxes import start_sandbox

    return await start_sandbox(policy, backend)
