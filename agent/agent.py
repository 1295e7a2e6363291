"""An agent: a model, tools, instructions and bounds. It holds no conversation; sessions do."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

from v32.agent.context import ContextPolicy, Strategy
from v32.agent.errors import SessionError
from v32.agent.events import Event
from v32.agent.journal import Journal
from v32.agent.limits import Limits
from v32.agent.prelude import Prelude, Role
from v32.agent.result import RunResult
from v32.agent.session import Session
from v32.model_runtime.messages import ToolChoice, ToolSpec
from v32.model_runtime.response_format import ResponseFormat, answer_schema
from v32.tools.toolset import DEFAULT_TIMEOUT, Toolset

if TYPE_CHECKING:
    from v32.model_runtime.chat import ChatModel
    from v32.model_runtime.generators.generator import SamplingParams
    from v32.sandboxes.sandbox import SandboxPolicy
    from v32.tools.tool import Tool

T = TypeVar("T")


class Agent:
    """A model with tools.

    `sandbox=SandboxPolicy(...)` gives every session the tools `python` and `bash` in a sandbox of its own.
    `journal` is the file that `run` and `stream` write; `Session.resume` continues it.
    `tool_choice` holds for the first turn of a run ("none" for all); from the second turn on the model is free.
    `response_format` (an OpenAI format, a JSON Schema or a pydantic model class) makes every answer JSON of that
    schema: by the grammar while it is written, by jsonschema when it stands; `RunResult.data` is its value.
    """

    def __init__(
        self,
        model: ChatModel,
        *,
        tools: Sequence[Tool] = (),
        instructions: str | None = None,
        limits: Limits = Limits(),  # noqa: B008 (frozen)
        context: Strategy | ContextPolicy = ContextPolicy(),  # noqa: B008 (frozen)
        sandbox: SandboxPolicy | None = None,
        journal: str | os.PathLike[str] | None = None,
        tool_choice: ToolChoice = "auto",
        params: SamplingParams | None = None,
        role: Role = "system",
        response_format: ResponseFormat | None = None,
        max_parallel_calls: int = 8,
        tool_timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        """Schemas are checked and their grammar is compiled here, not in the first run.

        Raises `ToolsNotSupportedError` if the model is a variant without tools, `ToolDefinitionError` or
        `UnsupportedSchemaError` for what cannot be offered, `ValueError` for an option that makes no sense.
        """
        self.model = model
        self.toolset = Toolset([*tools, *_code_tools(sandbox)], timeout=tool_timeout)
        self.limits = limits
        self.context = ContextPolicy(context) if isinstance(context, str) else context
        self.journal = journal
        self.tool_choice = tool_choice
        self.params = params
        self.max_parallel_calls = max_parallel_calls
        self.prelude = Prelude(instructions, role, tuple(map(_spec_of, self.toolset)), answer_schema(response_format))
        self._loop: asyncio.Runner | None = None
        if self.prelude.tools:
            model.check_tools_supported()
        self._check()
        model.prepare(self.prelude.tools, tool_choice, self.prelude.response_format)

    async def run(self, prompt: str) -> RunResult:
        """Answer one message in a session of its own."""
        async with self.session() as session:
            return await session.run(prompt)

    async def stream(self, prompt: str) -> AsyncGenerator[Event | RunResult, None]:
        """The events of `run` as they happen; the last item is the `RunResult`. Leaving the stream cancels the run."""
        async with self.session() as session, aclosing(session.stream(prompt)) as events:
            async for event in events:
                yield event

    def run_sync(self, prompt: str) -> RunResult:
        """`run` for programs without an event loop."""
        return self.wait_for(self.run(prompt))

    def session(self, journal: str | os.PathLike[str] | Journal | None = None) -> Session:
        """A conversation of several messages; `journal` (default: the agent's) is a new file."""
        journal = self.journal if journal is None else journal
        return Session(self, journal=Journal(journal) if isinstance(journal, str | os.PathLike) else journal)

    def resume(self, journal: str | os.PathLike[str] | Journal) -> Session:
        """Continue a journaled session with this agent; see `Session.resume`."""
        return Session.replay(self, journal)

    def wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end. All calls share one event loop, so that what a tool keeps open stays usable."""
        if _is_in_loop():
            work.close()
            raise SessionError("run_sync inside a running event loop; use `await agent.run(...)` there")
        if self._loop is None:
            self._loop = asyncio.Runner()
            weakref.finalize(self, _close, self._loop)
        return self._loop.run(work)

    async def aclose(self) -> None:
        """Free what the tools hold. The model stays loaded."""
        await self.toolset.aclose()

    def _check(self) -> None:
        _ = self.prelude.answer_validator  # made here, once, and kept
        offered = self.prelude.tool_names
        if self.tool_choice not in ("auto", "none") and not offered:
            raise ValueError(f"tool_choice is {self.tool_choice!r}, but no tools are offered; offer some")
        if self.tool_choice not in ("auto", "none", "required", *offered):
            raise ValueError(f"tool_choice {self.tool_choice!r} is no offered tool; offered: {', '.join(offered)}")
        if self.max_parallel_calls < 1:
            raise ValueError(f"max_parallel_calls is {self.max_parallel_calls}; it must be 1 or more")


def _is_in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _close(loop: asyncio.Runner) -> None:
    """To close a loop is to run it, and a thread runs one at a time: where one runs, another thread closes it."""
    if _is_in_loop():
        threading.Thread(target=loop.close).start()
    else:
        loop.close()


def _spec_of(tool: Tool) -> ToolSpec:
    return ToolSpec(tool.name, tool.description, tool.parameters)


def _code_tools(policy: SandboxPolicy | None) -> Sequence[Tool]:
    if policy is None:
        return ()
    from v32.tools.code import CodeSession

    return CodeSession(policy).tools()
