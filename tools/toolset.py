"""The tools of an agent together: the one validator of their arguments and the one way to run them.

What the model does wrong comes back as text that says what and how to do better; `run` raises only for what the
machine cannot do at all (`SandboxUnavailable`) and when it is cancelled.
"""

from __future__ import annotations

import difflib
import json
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio

from v32.sandboxes.errors import SandboxUnavailable
from v32.tools.errors import ToolDefinitionError, WorkerError
from v32.tools.gate import MAX_CHARS, for_model
from v32.tools.tool import Tool, ToolContext, ToolError, ToolOutput

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator, ValidationError

DEFAULT_TIMEOUT = 30.0
MAX_PROBLEMS_SHOWN = 20

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_JSON_TYPES = {
    dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with the arguments of a call: where (`$.items[0].count`) and why."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class Toolset:
    """Tools under their names. Raises `ToolDefinitionError` for a bad name, a name taken twice, a bad schema.

    `timeout` holds for tools that have none of their own; `max_chars` bounds each result.
    """

    def __init__(
        self, tools: Iterable[Tool] = (), *, timeout: float = DEFAULT_TIMEOUT, max_chars: int = MAX_CHARS
    ) -> None:
        self.timeout = timeout
        self.max_chars = max_chars
        self._tools: dict[str, Tool] = {}
        self._validators: dict[str, Draft202012Validator] = {}
        for tool in tools:
            self._offer(tool)

    def __iter__(self) -> Iterator[Tool]:
        return iter(self._tools.values())

    def __len__(self) -> int:
        return len(self._tools)

    def __contains__(self, name: object) -> bool:
        return name in self._tools

    def __getitem__(self, name: str) -> Tool:
        """Raises `KeyError` for an unknown name."""
        return self._tools[name]

    @property
    def names(self) -> list[str]:
        return list(self._tools)

    def validate(self, name: str, arguments: Any) -> list[Problem]:
        """Everything that is wrong with a call; empty if it may run."""
        if name not in self._tools:
            return [Problem("", self._unknown(name))]
        if not isinstance(arguments, Mapping):
            return [Problem("$", f"arguments must be an object, got {_shown(arguments)}")]
        try:
            errors = sorted(self._validators[name].iter_errors(dict(arguments)), key=lambda error: error.json_path)
            return list(dict.fromkeys(problem for error in errors for problem in _problems(error)))
        except RecursionError:
            return [Problem("$", "nested too deeply")]
        except (ArithmeticError, ValueError) as error:  # such as an infinite number where a multiple of 3 is wanted
            return [Problem("$", f"cannot be checked: {error}")]

    async def run(self, name: str, arguments: Any, context: ToolContext) -> ToolOutput:
        """One call, one result: validated, within its timeout, its text through the gate."""
        problems = self.validate(name, arguments)
        if problems:
            return self._gated(refusal(name, problems))
        tool = self._tools[name]
        timeout = self.timeout if tool.timeout is None else tool.timeout
        output = None
        with anyio.move_on_after(timeout) as deadline:
            output = await _contained(tool, arguments, context)
        if output is None:
            assert deadline.cancelled_caught
            end = "was stopped" if getattr(tool, "stops", True) else "was given up; it may still be running"
            output = _error(f"{name} took longer than {timeout:g} s and {end}", "timeout")
        return self._gated(output)

    async def end_session(self, session_id: str) -> None:
        """Free what tools hold for one session: its sandbox, its open pages."""
        await self._close_all("end_session", session_id)

    async def aclose(self) -> None:
        """Free what tools hold. The toolset can be used again; tools that keep state start anew."""
        await self._close_all("aclose")

    def _offer(self, tool: Tool) -> None:
        if not isinstance(tool, Tool):
            raise ToolDefinitionError(f"{tool!r} is not a tool; decorate a function with @tool, or use RawTool")
        if not _NAME.fullmatch(tool.name):
            raise ToolDefinitionError(
                f"tool name {tool.name!r} cannot be written in a call; use 1 to 64 of A-Z a-z 0-9 _ -"
            )
        if tool.name in self._tools:
            raise ToolDefinitionError(
                f"two tools are named {tool.name!r}: {self._tools[tool.name]!r} and {tool!r}; rename one with name="
            )
        self._validators[tool.name] = _validator(tool)
        self._tools[tool.name] = tool

    def _unknown(self, name: str) -> str:
        offered = ", ".join(self._tools) or "none"
        close = difflib.get_close_matches(str(name)[:200], self._tools, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"unknown tool {str(name)[:200]!r}; offered: {offered}{hint}"

    def _gated(self, output: ToolOutput) -> ToolOutput:
        return ToolOutput(for_model(output.text, max_chars=self.max_chars), output.is_error, output.data)

    async def _close_all(self, method: str, *arguments: str) -> None:
        """Every distinct holder is closed, whatever happens to the others; their exceptions come together."""
        holders = {getattr(tool, "holder", tool) for tool in self}
        failures: list[Exception] = []
        with anyio.CancelScope(shield=True):
            for close in [getattr(holder, method) for holder in holders if hasattr(holder, method)]:
                try:
                    await close(*arguments)
                except Exception as error:
                    failures.append(error)
        if failures:
            raise ExceptionGroup("tools did not close cleanly", failures)


def refusal(name: str, problems: list[Problem]) -> ToolOutput:
    """What the model reads instead of a result when its call cannot run."""
    data = {"failure": "invalid_arguments", "problems": [(problem.path, problem.reason) for problem in problems]}
    if len(problems) == 1 and not problems[0].path:
        return ToolOutput(f"Error: {problems[0].reason}", True, {**data, "failure": "unknown_tool"})
    if len(problems) == 1:
        return ToolOutput(f"Error: invalid arguments for {name}: {problems[0]}", True, data)
    shown = [f"- {problem}" for problem in problems[:MAX_PROBLEMS_SHOWN]]
    if len(problems) > MAX_PROBLEMS_SHOWN:
        shown.append(f"- and {len(problems) - MAX_PROBLEMS_SHOWN} more")
    return ToolOutput(f"Error: invalid arguments for {name}:\n" + "\n".join(shown), True, data)


async def _contained(tool: Tool, arguments: Mapping[str, Any], context: ToolContext) -> ToolOutput:
    """The tool's output; its failures as text."""
    try:
        output = await tool.call(arguments, context)
    except SandboxUnavailable:
        raise
    except ToolError as error:
        return _error(str(error), "tool_error")
    except WorkerError as error:
        return _error(f"{tool.name} failed: {error}", "crash", exception=error.kind, traceback=error.traceback)
    except (Exception, SystemExit) as error:
        kind = type(error).__name__
        return _error(f"{tool.name} failed: {kind}: {error}", "crash", exception=kind, traceback=traceback.format_exc())
    if not isinstance(output, ToolOutput):
        return _error(f"{tool.name} failed: it returned {type(output).__name__}, not ToolOutput", "crash")
    return output


def _error(message: str, failure: str, **data: str) -> ToolOutput:
    return ToolOutput(f"Error: {message}", True, {"failure": failure, **data})


def _validator(tool: Tool) -> Draft202012Validator:
    """The validator of a tool's arguments; `$ref` may only lead into the schema itself, nothing is ever fetched."""
    from jsonschema import Draft202012Validator, SchemaError
    from referencing import Registry

    schema = tool.parameters
    try:
        Draft202012Validator.check_schema(dict(schema))
    except SchemaError as error:
        raise ToolDefinitionError(
            f"parameters of tool {tool.name!r} are no JSON Schema (2020-12): {error.json_path}: {error.message}"
        ) from error
    if schema.get("type") != "object":
        raise ToolDefinitionError(
            f'parameters of tool {tool.name!r} must be a schema with "type": "object", got {schema.get("type")!r}'
        )
    validator = Draft202012Validator(
        dict(schema), registry=Registry(), format_checker=Draft202012Validator.FORMAT_CHECKER
    )
    _check_references(tool.name, dict(schema))
    return validator


def _check_references(name: str, schema: Mapping[str, Any]) -> None:
    from referencing import Registry, Resource
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    resource: Resource[Any] = Resource.from_contents(schema, default_specification=DRAFT202012)
    resolver = Registry().with_resource(resource.id() or "", resource).resolver(resource.id() or "")
    for reference in _references(schema):
        try:
            resolver.lookup(reference)
        except Unresolvable as error:
            raise ToolDefinitionError(
                f"parameters of tool {name!r} refer to {reference!r}, which is not in them; put it under $defs"
            ) from error


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def _problems(error: ValidationError) -> Iterator[Problem]:
    """One error of jsonschema in words that a model can act on."""
    path, value, wanted = error.json_path, error.instance, error.validator_value
    if error.validator == "required":
        yield Problem(path, f"{next(key for key in wanted if _says(error, key))!r} is missing")
    elif error.validator == "additionalProperties" and wanted is False:
        known = error.schema.get("properties", {})
        patterns = error.schema.get("patternProperties", {})
        for key in value:
            if key not in known and not any(re.search(pattern, key) for pattern in patterns):
                yield Problem(path, _unexpected(key, known))
    elif error.validator == "type":
        types = " or ".join([wanted] if isinstance(wanted, str) else wanted)
        yield Problem(path, f"expected {types}, got {_shown(value)}")
    elif error.validator in ("enum", "const"):
        options = wanted if error.validator == "enum" else [wanted]
        yield Problem(path, f"expected one of {', '.join(_json(option) for option in options)}, got {_shown(value)}")
    elif error.validator in ("anyOf", "oneOf") and error.context:
        yield from _closest_branch(error)
    else:
        message = error.message if len(error.message) <= 300 else f"{error.message[:300]}…"
        yield Problem(path, message)


def _closest_branch(error: ValidationError) -> Iterator[Problem]:
    """Of a union, the problems of the branch that fits best: the type is right, and it fails deepest in the value."""
    branches: dict[int, list[ValidationError]] = {}
    for part in error.context or ():
        branches.setdefault(int(part.schema_path[0]), []).append(part)
    closest = max(branches.values(), key=_fit)
    if all(part.validator == "type" and not part.path for parts in branches.values() for part in parts):
        types = [part.validator_value for parts in branches.values() for part in parts]
        flat = dict.fromkeys(kind for kinds in types for kind in ([kinds] if isinstance(kinds, str) else kinds))
        yield Problem(error.json_path, f"expected {' or '.join(flat)}, got {_shown(error.instance)}")
        return
    for part in closest:
        yield from _problems(part)


def _fit(parts: list[ValidationError]) -> tuple[bool, int, int]:
    has_type = not any(part.validator == "type" and not part.path for part in parts)
    return has_type, max(len(part.path) for part in parts), -len(parts)


def _says(error: ValidationError, key: str) -> bool:
    """jsonschema reports each missing key in an error of its own and names it in the message only."""
    return error.message.startswith(f"{key!r} is a required property")


def _unexpected(key: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(key[:200], known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known) or 'none'}"
    return f"unexpected {key[:200]!r}{hint}"


def _shown(value: Any) -> str:
    kind = _JSON_TYPES.get(type(value), type(value).__name__)
    return kind if isinstance(value, (dict, list)) or value is None else f"{kind} {_json(value)}"


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 80 else f"{text[:80]}…"
