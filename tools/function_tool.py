"""A Python function as a tool: `@tool`. Typed function in, `FunctionTool` out; it stays callable as the function.

Where a call runs:

    async function                 on the event loop; cancelled at its timeout
    function                       in a worker process forked for the call; killed at its timeout
    function, in_worker=False      in a thread; abandoned at its timeout, because a thread cannot be killed

A forked worker sees the program as it is at the moment of the call (closures, globals, open objects), but what it
changes is lost when it ends. A tool that keeps state, holds a lock or a device, therefore says `in_worker=False`;
bound methods do so by themselves.
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Generic, ParamSpec, TypeVar, overload

import anyio.to_thread

from v32.tools.docstring import parse_docstring
from v32.tools.errors import ToolDefinitionError
from v32.tools.schema import read_signature
from v32.tools.tool import ToolContext, ToolOutput
from v32.tools.worker import can_fork, run_in_worker

P = ParamSpec("P")
R = TypeVar("R")

NOTHING_RETURNED = "done"


class FunctionTool(Generic[P, R]):
    """A function with the schema of its signature. Calling it calls the plain function."""

    def __init__(
        self,
        function: Callable[P, R],
        *,
        name: str | None = None,
        description: str | None = None,
        timeout: float | None = None,
        in_worker: bool | None = None,
        namespace: Mapping[str, Any] | None = None,
        holder: Any = None,
        safe_to_retry: bool = False,
    ) -> None:
        """`namespace` resolves annotations that are strings (by default, the caller's local names); `holder` is what
        `aclose` of a toolset closes."""
        self.name: str = name or _name_of(function)
        if namespace is None:
            namespace = dict(sys._getframe(1).f_locals)
        doc = parse_docstring(inspect.getdoc(_whole(function)))
        self.description: str = doc.description if description is None else description
        self._signature = read_signature(function, self.name, doc, namespace)
        self.parameters: Mapping[str, Any] = self._signature.schema
        self.timeout = _checked_timeout(self.name, timeout)
        self.function = function
        self.in_worker = _runs_in_worker(self.name, function, in_worker)
        self.holder = self if holder is None else holder
        self.safe_to_retry = safe_to_retry
        functools.update_wrapper(self, function, updated=())

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    @property
    def stops(self) -> bool:
        """Whether a call has really ended when it is cancelled; false for a function in a thread."""
        return self.in_worker or _is_async(self.function)

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolOutput:
        bound = self._signature.bind(arguments, context)
        run = functools.partial(self.function, *bound.args, **bound.kwargs)
        return await _run(run, is_async=_is_async(self.function), in_worker=self.in_worker)

    def __repr__(self) -> str:
        return f"<tool {self.name}{inspect.signature(self.function)}>"


class RawTool:
    """A tool with a JSON Schema of its own: `function(**arguments)` gets them as they came from JSON."""

    def __init__(
        self,
        name: str,
        description: str,
        parameters: Mapping[str, Any],
        function: Callable[..., Any],
        *,
        timeout: float | None = None,
        in_worker: bool | None = None,
        safe_to_retry: bool = False,
    ) -> None:
        self.name = name
        self.description = description
        self.parameters = parameters
        self.timeout = _checked_timeout(name, timeout)
        self.function = function
        self.in_worker = _runs_in_worker(name, function, in_worker)
        self.safe_to_retry = safe_to_retry

    @property
    def stops(self) -> bool:
        return self.in_worker or _is_async(self.function)

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolOutput:
        run = functools.partial(self.function, **arguments)
        return await _run(run, is_async=_is_async(self.function), in_worker=self.in_worker)

    def __repr__(self) -> str:
        return f"<tool {self.name}>"


@overload
def tool(function: Callable[P, R], /) -> FunctionTool[P, R]: ...


@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    timeout: float | None = None,
    in_worker: bool | None = None,
    safe_to_retry: bool = False,
) -> Callable[[Callable[P, R]], FunctionTool[P, R]]: ...


def tool(
    function: Callable[P, R] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    timeout: float | None = None,
    in_worker: bool | None = None,
    safe_to_retry: bool = False,
) -> FunctionTool[P, R] | Callable[[Callable[P, R]], FunctionTool[P, R]]:
    """Offer a typed function to the model; its docstring describes it. Raises `ToolDefinitionError`.

    `safe_to_retry`: running a call twice does no harm, so one that a crash interrupted may be run again.
    """
    namespace = dict(sys._getframe(1).f_locals)

    def wrap(function: Callable[P, R]) -> FunctionTool[P, R]:
        return FunctionTool(
            function,
            name=name,
            description=description,
            timeout=timeout,
            in_worker=in_worker,
            namespace=namespace,
            safe_to_retry=safe_to_retry,
        )

    return wrap if function is None else wrap(function)


def to_output(value: Any) -> ToolOutput:
    """What a function returned, as text: strings as they are, None as `done`, anything else as JSON."""
    if isinstance(value, ToolOutput):
        return value
    if value is None:
        return ToolOutput(NOTHING_RETURNED)
    if isinstance(value, str):
        return ToolOutput(str(value))
    from pydantic_core import to_jsonable_python

    return ToolOutput(json.dumps(to_jsonable_python(value, fallback=str), ensure_ascii=False))


async def _run(run: Callable[[], Any], *, is_async: bool, in_worker: bool) -> ToolOutput:
    if is_async:
        return to_output(await run())
    if in_worker:
        return await run_in_worker(lambda: to_output(run()))
    value = await anyio.to_thread.run_sync(run, abandon_on_cancel=True)
    if isinstance(value, Awaitable):
        value = await value
    return to_output(value)


def _whole(function: Callable[..., Any]) -> Callable[..., Any]:
    """What `functools.partial` was applied to."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _is_async(function: Callable[..., Any]) -> bool:
    function = _whole(function)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _runs_in_worker(name: str, function: Callable[..., Any], asked: bool | None) -> bool:
    if inspect.isasyncgenfunction(_whole(function)):
        raise ToolDefinitionError(f"tool {name!r} yields; a call has one result: collect it, and return it")
    if _is_async(function):
        if asked:
            raise ToolDefinitionError(f"tool {name!r} is async and runs on the event loop; leave out in_worker")
        return False
    if asked and not can_fork():
        raise ToolDefinitionError(f"tool {name!r} asks for a worker process, but this system cannot fork")
    return can_fork() and not inspect.ismethod(function) if asked is None else asked


def _checked_timeout(name: str, timeout: float | None) -> float | None:
    if timeout is not None and not timeout > 0:
        raise ToolDefinitionError(f"timeout of tool {name!r} is {timeout}; it must be more than 0 seconds, or None")
    return timeout


def _name_of(function: Callable[..., Any]) -> str:
    name: str = getattr(function, "__name__", "")
    if not name or name == "<lambda>":
        raise ToolDefinitionError(f"{function!r} has no name; pass name=")
    return name
