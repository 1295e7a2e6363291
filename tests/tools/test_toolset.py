from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import TypeAdapter

from v32.sandboxes.errors import SandboxUnavailable
from v32.tools import FunctionTool, RawTool, ToolContext, ToolDefinitionError, ToolError, ToolOutput, Toolset, tool

pytestmark = pytest.mark.anyio


@tool(in_worker=False)
def search(query: str, topn: int = 5, tags: list[str] | None = None) -> str:
    """Search."""
    return f"{query} {topn} {tags}"


@tool
async def open_page(id: int) -> int:
    """Open."""
    return id


def raw(schema: Mapping[str, Any], name: str = "f") -> RawTool:
    return RawTool(name, "F.", schema, lambda **arguments: json.dumps(arguments), in_worker=False)


def reasons(tools: Toolset, name: str, arguments: Any) -> list[str]:
    return [str(problem) for problem in tools.validate(name, arguments)]


async def test_a_valid_call_runs(context: ToolContext) -> None:
    tools = Toolset([search, open_page])
    assert tools.names == ["search", "open_page"]
    assert tools.validate("search", {"query": "x"}) == []
    assert (await tools.run("search", {"query": "x", "tags": ["a"]}, context)).text == "x 5 ['a']"
    assert (await tools.run("open_page", {"id": 3}, context)).text == "3"


async def test_an_unknown_tool_names_what_is_offered(context: ToolContext) -> None:
    tools = Toolset([search, open_page])
    output = await tools.run("serach", {}, context)
    assert output.text == "Error: unknown tool 'serach'; offered: search, open_page; did you mean 'search'?"
    assert output.is_error
    assert output.data["failure"] == "unknown_tool"
    assert (await Toolset().run("x", {}, context)).text == "Error: unknown tool 'x'; offered: none"


async def test_every_problem_is_listed_with_its_path(context: ToolContext) -> None:
    tools = Toolset([search])
    arguments = {"topn": "five", "tags": ["a", 7], "querry": "x"}
    assert sorted(reasons(tools, "search", arguments)) == [
        "$.tags[1]: expected string, got integer 7",
        '$.topn: expected integer, got string "five"',
        "$: 'query' is missing",
        "$: unexpected 'querry'; did you mean 'query'?",
    ]
    output = await tools.run("search", arguments, context)
    assert output.text.startswith("Error: invalid arguments for search:\n- $")
    assert output.data["failure"] == "invalid_arguments"
    one = await tools.run("search", {"query": None}, context)
    assert one.text == "Error: invalid arguments for search: $.query: expected string, got null"


@pytest.mark.parametrize("arguments", [None, [], "x", 3])
def test_arguments_must_be_an_object(arguments: Any) -> None:
    assert reasons(Toolset([search]), "search", arguments)[0].startswith("$: arguments must be an object, got ")


@pytest.mark.parametrize(
    ("schema", "value", "reason"),
    [
        ({"enum": ["a", "b"]}, "c", '$.x: expected one of "a", "b", got string "c"'),
        ({"const": 1}, 2, "$.x: expected one of 1, got integer 2"),
        ({"type": "string", "format": "date"}, "soon", '$.x: string "soon" is no date, such as 2026-01-31'),
        (
            {"format": "date-time"},
            "2026-01-31",
            '$.x: string "2026-01-31" is no date-time, such as 2026-01-31T12:00:00Z',
        ),
        ({"format": "duration"}, "2 h", '$.x: string "2 h" is no duration, such as P1DT2H30M'),
        ({"format": "hostname"}, "-", '$.x: string "-" is no hostname'),
        ({"type": "string", "format": "email"}, "me", '$.x: string "me" is no email, such as name@example.org'),
        ({"type": "integer", "minimum": 3}, 2, "$.x: 2 is less than the minimum of 3"),
        ({"type": ["integer", "null"]}, "2", '$.x: expected integer or null, got string "2"'),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "2", '$.x: expected integer or null, got string "2"'),
        (
            {"oneOf": [{"type": "object", "required": ["a"]}, {"type": "array", "items": {"type": "integer"}}]},
            [1, "b"],
            '$.x[1]: expected integer, got string "b"',
        ),
        (
            {"oneOf": [{"type": "integer"}, {"type": "string", "format": "email"}]},
            "nomail",
            '$.x: string "nomail" is no email, such as name@example.org',
        ),
        (
            {"oneOf": [{"properties": {"kind": {"const": k}}, "required": ["kind", k]} for k in "ab"]},
            {"kind": "b"},
            "$.x: 'b' is missing",
        ),
        ({"$ref": "#/$defs/even"}, 3, "$.x: 3 is not a multiple of 2"),
        ({"type": "array", "uniqueItems": True}, [1, 1], "$.x: [1, 1] has non-unique elements"),
        ({"multipleOf": 3}, 10**400 + 1, None),
        ({"multipleOf": 0.1}, 0.35, "$.x: 0.35 is not a multiple of 0.1"),
        ({"pattern": r"^\p{L}[\w-\.]*$"}, "1", "$.x: string \"1\" does not match '^\\\\p{L}[\\\\w-\\\\.]*$'"),
    ],
)
def test_the_validator_has_the_last_word(schema: dict[str, Any], value: Any, reason: str | None) -> None:
    whole = {"type": "object", "properties": {"x": schema}, "$defs": {"even": {"multipleOf": 2}}}
    found = reasons(Toolset([raw(whole)]), "f", {"x": value})
    assert len(found) == 1
    assert reason is None or found[0] == reason


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("abcx"), inner, max_size=3)),
    max_leaves=6,
)
PART = st.recursive(
    st.sampled_from(
        [{}, {"type": "string"}, {"type": "integer"}, {"type": ["null", "number"]}, {"enum": ["a", 1]}, {"const": None}]
    ),
    lambda inner: st.one_of(
        inner.map(lambda part: {"type": "array", "items": part}),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts}),
        st.lists(inner, min_size=1, max_size=2).map(lambda parts: {"oneOf": parts}),
        st.dictionaries(st.sampled_from("abc"), inner, max_size=2).map(
            lambda parts: {
                "type": "object",
                "properties": parts,
                "required": sorted(parts)[:1],
                "additionalProperties": False,
            }
        ),
    ),
    max_leaves=6,
)


@given(PART, JSON)
def test_problems_exactly_where_jsonschema_finds_errors(part: dict[str, Any], value: Any) -> None:
    schema = {"type": "object", "properties": {"a": part}, "required": ["a"], "additionalProperties": False}
    arguments = {"a": value}
    problems = Toolset([raw(schema)]).validate("f", arguments)
    assert bool(problems) != Draft202012Validator(schema).is_valid(arguments)
    assert all(problem.path.startswith("$") and problem.reason for problem in problems)


EVIL, BAIT = "^(a|aa)+$", "a" * 60 + "!"
TREE = {"$ref": "#/properties/x"}  # two ways at each level


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"pattern": EVIL}, BAIT),
        ({"pattern": f"(?=a){EVIL}"}, BAIT),
        ({"patternProperties": {EVIL: {}}}, {BAIT: 1}),
        ({"patternProperties": {EVIL: {}}, "additionalProperties": False}, {BAIT: 1}),
        ({"propertyNames": {"pattern": EVIL}}, {BAIT: 1}),
        ({"type": "array", "anyOf": [{"items": TREE}, {"items": TREE}]}, json.loads("[" * 60 + "0" + "]" * 60)),
    ],
)
def test_no_schema_takes_longer_than_the_limit(schema: dict[str, Any], value: Any) -> None:
    tools = Toolset([raw({"type": "object", "properties": {"x": schema}})])
    start = time.process_time()
    assert reasons(tools, "f", {"x": value}) == ["$: cannot be checked within 1 s; send a shorter or simpler value"]
    assert time.process_time() - start < 3
    assert reasons(tools, "f", {}) == []


def test_patterns_are_those_of_json_schema_and_extras_are_named() -> None:
    schema = {"type": "object", "patternProperties": {"^x-": {"type": "string", "pattern": "b$"}}}
    tools = Toolset([raw({**schema, "properties": {"known": {}}, "additionalProperties": False})])
    assert reasons(tools, "f", {"x-a": "ab", "known": 1}) == []
    assert reasons(tools, "f", {"x-a": "ba"}) == ["$['x-a']: string \"ba\" does not match 'b$'"]
    assert reasons(tools, "f", {"knwon": 1}) == ["$: unexpected 'knwon'; did you mean 'known'?"]
    typed = Toolset([raw({**schema, "additionalProperties": {"type": "integer"}})])
    assert reasons(typed, "f", {"x-a": "b", "n": 1, "m": "1"}) == ['$.m: expected integer, got string "1"']
    with pytest.raises(ToolDefinitionError, match="unevaluatedProperties beside patternProperties"):
        Toolset([raw({**schema, "unevaluatedProperties": False})])


def test_what_jsonschema_alone_would_refuse() -> None:
    """Decimal fractions, and what patterns have since Unicode."""
    schema = {"price": {"multipleOf": 0.01}, "name": {"pattern": r"^\p{L}+$"}, "any": {"default": {"$ref": "x"}}}
    tools = Toolset([raw({"type": "object", "properties": schema})])
    assert reasons(tools, "f", {"price": 19.99, "name": "Łódź", "any": 1}) == []


def test_hostile_arguments_are_answered_quickly() -> None:
    tree: dict[str, Any] = {"type": "object", "properties": {"x": {"$ref": "#/$defs/t"}}}
    tree["$defs"] = {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}}}
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    tools = Toolset([raw(tree), search])
    start = time.perf_counter()
    assert reasons(tools, "f", {"x": deep}) == ["$: nested too deeply"]
    many = reasons(tools, "search", {f"k{i}": i for i in range(2000)} | {"query": "\x1b[31m" * 10**6})
    assert len(many) == 100
    assert len(reasons(tools, "search", {"query": ["x" * 10**7]})[0]) < 400
    assert time.perf_counter() - start < 10
    while deep:  # take it apart: its destructor would recurse
        deep = deep[0]


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ([search, search], "two tools are named 'search': <tool search.*<tool search"),
        ([raw({"type": "object"}, name="no space")], "tool name 'no space' cannot be written in a call"),
        ([raw({"type": "object"}, name="x" * 65)], "cannot be written in a call"),
        ([raw({"type": "strange"})], r"parameters of tool 'f': not a JSON Schema \(2020-12\): \$.type: 'strange'"),
        ([raw({"type": "array"})], 'must be a schema with "type": "object", got \'array\''),
        ([raw({"type": "object", "properties": {"a": {"$ref": "#/$defs/b"}}})], r"refer to '#/\$defs/b'"),
        (
            [raw({"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1/x"}}})],
            "refer to 'http://127.0.0.1/x'",
        ),
        ([raw({"type": "object", "properties": {"a": {"$dynamicRef": "#b"}}})], "refer to '#b'"),
        (
            [raw({"type": "object", "properties": {"a": {"$id": "b/", "$ref": "#/$defs/c"}}, "$defs": {"c": {}}})],
            r"refer to '#/\$defs/c'",
        ),
        ([print], "is not a tool; decorate a function with @tool"),
    ],
)
def test_a_bad_toolset_is_refused(tools: list[Any], message: str) -> None:
    with pytest.raises(ToolDefinitionError, match=message):
        Toolset(tools)


async def test_failures_of_tools_become_text(context: ToolContext) -> None:
    @tool
    async def refuses() -> str:
        raise ToolError("unknown name 'Jorn'; did you mean 'Jorna'?")

    @tool
    async def crashes() -> str:
        raise KeyError("x")

    @tool
    def crashes_in_worker() -> str:
        raise KeyError("x")

    @tool
    async def exits() -> str:
        raise SystemExit(3)

    @tool
    async def is_wordless() -> str:
        class Wordless(Exception):
            def __str__(self) -> str:
                raise RuntimeError("no words")

        raise Wordless

    @tool
    async def waits_for_what_is_cancelled() -> str:
        waiting = asyncio.ensure_future(asyncio.sleep(10))
        waiting.cancel()
        return await waiting or ""

    @tool
    async def returns_a_number_as_text() -> ToolOutput:
        return ToolOutput(5)  # type: ignore[arg-type]

    class Returns:
        name, description, parameters, timeout = "returns", "", {"type": "object"}, None

        async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> Any:
            return "text"

    odd = [is_wordless, waits_for_what_is_cancelled, returns_a_number_as_text, Returns()]
    tools = Toolset([refuses, crashes, crashes_in_worker, exits, *odd])
    texts = {name: (await tools.run(name, {}, context)).text for name in tools.names}
    assert texts == {
        "refuses": "Error: unknown name 'Jorn'; did you mean 'Jorna'?",
        "crashes": "Error: crashes failed: KeyError: 'x'",
        "crashes_in_worker": "Error: crashes_in_worker failed: KeyError: 'x'",
        "exits": "Error: exits failed: SystemExit: 3",
        "is_wordless": "Error: is_wordless failed: Wordless: (its message cannot be shown)",
        "waits_for_what_is_cancelled": (
            "Error: waits_for_what_is_cancelled failed: something that it waited for was cancelled"
        ),
        "returns_a_number_as_text": ("Error: returns_a_number_as_text failed: the text of its output is int, not str"),
        "returns": "Error: returns failed: it returned str, not ToolOutput",
    }
    crash = await tools.run("crashes", {}, context)
    assert crash.is_error
    assert crash.data["exception"] == "KeyError"
    assert 'raise KeyError("x")' in crash.data["traceback"]


async def test_timeouts_stop_what_can_be_stopped(context: ToolContext) -> None:
    @tool(timeout=0.2)
    async def waits() -> None:
        await anyio.sleep(60)

    @tool(timeout=0.2)
    def spins() -> None:
        while True:
            pass

    @tool(timeout=0.2, in_worker=False)
    def blocks() -> None:
        time.sleep(0.6)

    tools = Toolset([waits, spins, blocks, search])
    start = time.perf_counter()
    texts = {}

    async def run(name: str) -> None:
        texts[name] = (await tools.run(name, {"query": "x"} if name == "search" else {}, context)).text

    async with anyio.create_task_group() as group:
        for name in tools.names:
            group.start_soon(run, name)
    assert time.perf_counter() - start < 5
    assert texts == {
        "waits": "Error: waits took longer than 0.2 s and was stopped",
        "spins": "Error: spins took longer than 0.2 s and was stopped",
        "blocks": "Error: blocks took longer than 0.2 s and was given up; it may still be running",
        "search": "x 5 None",
    }


async def test_cancelling_a_call_stops_it(context: ToolContext) -> None:
    @tool
    def spins() -> None:
        while True:
            pass

    with anyio.move_on_after(0.2) as scope:
        await Toolset([spins]).run("spins", {}, context)
    assert scope.cancelled_caught


async def test_results_pass_the_gate(context: ToolContext) -> None:
    @tool
    async def floods(n: int) -> str:
        return "\x1b[31m" + "x" * n

    tools = Toolset([floods], max_chars=1000)
    assert (await tools.run("floods", {"n": 5}, context)).text == "xxxxx"
    text = (await tools.run("floods", {"n": 5000}, context)).text
    assert len(text) <= 1000
    assert "of 5,000 characters left out" in text


async def test_a_machine_without_a_sandbox_is_no_result(context: ToolContext) -> None:
    @tool
    async def python(code: str) -> str:
        raise SandboxUnavailable("nothing works here")

    with pytest.raises(SandboxUnavailable, match="nothing works here"):
        await Toolset([python]).run("python", {"code": "1"}, context)


async def test_closing_reaches_every_holder_once(context: ToolContext) -> None:
    closed: list[str] = []

    class Holder:
        def __init__(self, name: str) -> None:
            self.name = name

        async def aclose(self) -> None:
            closed.append(self.name)
            if self.name == "bad":
                raise OSError("stuck")

        async def end_session(self, session_id: str) -> None:
            closed.append(f"{self.name} {session_id}")

    def f() -> None: ...

    bad, good = Holder("bad"), Holder("good")
    tools = Toolset(
        [FunctionTool(f, name=f"t{i}", holder=holder) for i, holder in enumerate([bad, good, good])] + [search]
    )
    await tools.end_session("s")
    assert sorted(closed) == ["bad s", "good s"]
    closed.clear()
    with pytest.raises(ExceptionGroup, match="did not close cleanly"):
        await tools.aclose()
    assert sorted(closed) == ["bad", "good"]


async def test_output_data_is_kept(context: ToolContext) -> None:
    @tool
    async def f() -> ToolOutput:
        return ToolOutput("x", data={"ids": [1]})

    assert (await Toolset([f]).run("f", {}, context)).data == {"ids": [1]}


def test_durations_are_those_that_pydantic_reads() -> None:
    durations = TypeAdapter(timedelta)
    tools = Toolset([raw({"type": "object", "properties": {"x": durations.json_schema()}})])
    for text in ("P4D", "PT0S", "P1W", "P3DT4H5M6S", "PT36H", "PT1.5S"):
        durations.validate_json(f'"{text}"')
        assert reasons(tools, "f", {"x": text}) == []
    for text in ("P", "PT", "P1", "P1D2H", "1D", "PT1H2D", "P1S", "", "P1DT"):
        assert len(reasons(tools, "f", {"x": text})) == 1
