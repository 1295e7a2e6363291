"""Answers in JSON: held to the schema while they are written, checked when they stand, kept over a resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from v32.agent import Agent, Session, StopReason
from v32.agent.answer import read_answer
from v32.model_runtime.chat import ChatModel
from v32.model_runtime.encoding import ChatTokenizer
from v32.model_runtime.errors import GeneratorError, UnsupportedSchemaError
from v32.model_runtime.generators.scripted import ScriptedGenerator
from v32.model_runtime.grammar import ConstraintCompiler
from v32.tools import RawTool, ToolDefinitionError, tool
from v32.tools.validation import Validator

pytestmark = pytest.mark.anyio

CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^[A-Z]"}, "people": {"type": "integer", "minimum": 0}},
    "required": ["name", "people"],
    "additionalProperties": False,
}
INTEGERS = Validator({"type": "array", "items": {"type": "integer"}}, "response_format")
PARIS = '{"name": "Paris", "people": 2100000}'


@tool
def population(city: str) -> int:
    """Number of inhabitants of a city."""
    return 2_100_000


@pytest.fixture
def held(tokenizer: ChatTokenizer, constraints: ConstraintCompiler) -> Callable[..., ChatModel]:
    """A model whose script is an error where the grammar forbids it."""

    def model(*completions: str) -> ChatModel:
        return ChatModel(ScriptedGenerator(tokenizer, completions, obeys_grammar=True), tokenizer, compiler=constraints)

    return model


async def test_calls_and_then_an_answer_in_json(held: Callable[..., ChatModel], say: Any) -> None:
    model = held(say.calls(("population", {"city": "Paris"})), say.answer(PARIS))
    result = await Agent(model, tools=[population], response_format=CITY).run("How many people live in Paris?")
    assert result.stop_reason is StopReason.ANSWER
    assert result.output == PARIS
    assert result.data == {"name": "Paris", "people": 2_100_000}
    assert result.to_record()["data"] == result.data
    prompt = model.tokenizer.decode(model.generator.prompts[0])  # type: ignore[attr-defined]
    assert f"strictly adhere to the following schema to reply:\n{json.dumps(CITY)}" in prompt


@pytest.mark.parametrize("answer", ["Paris.", '{"name": "Paris"}', '{"name": "Paris", "people": -1}'])
async def test_other_answers_cannot_be_sampled(held: Callable[..., ChatModel], say: Any, answer: str) -> None:
    with pytest.raises(GeneratorError, match="the grammar forbids"):
        await Agent(held(say.answer(answer)), response_format=CITY).run("Paris?")


async def test_what_the_grammar_leaves_open_is_checked(held: Callable[..., ChatModel], say: Any) -> None:
    result = await Agent(held(say.answer('{"name": "paris", "people": 1}')), response_format=CITY).run("Paris?")
    assert result.stop_reason is StopReason.INVALID_ANSWER
    assert "$.name" in result.stop_detail
    assert (result.data, result.output) == (None, '{"name": "paris", "people": 1}')


async def test_without_a_grammar_the_answer_is_checked_all_the_same(
    scripted: Callable[..., ChatModel], say: Any
) -> None:
    agent = Agent(scripted(say.answer("It is Paris."), say.answer(PARIS)), response_format=CITY)
    async with agent.session() as session:
        assert (await session.run("Which city?")).stop_reason is StopReason.INVALID_ANSWER
        assert (await session.run("In JSON, please.")).data == {"name": "Paris", "people": 2_100_000}


async def test_a_pydantic_model_and_the_forms_of_the_openai_api(held: Callable[..., ChatModel], say: Any) -> None:
    class City(BaseModel):
        name: str
        people: int

    openai = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}
    for response_format in (City, openai, {"type": "json_object"}):
        result = await Agent(held(say.answer(PARIS)), response_format=response_format).run("Paris?")
        assert City.model_validate(result.data).people == 2_100_000
    assert (await Agent(held(say.answer("Paris")), response_format={"type": "text"}).run("?")).data is None


async def test_a_resumed_session_keeps_its_format(held: Callable[..., ChatModel], say: Any, tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    await Agent(held(say.answer(PARIS)), response_format=CITY, journal=path).run("Paris?")
    async with Session.resume(path, model=held(say.answer('{"name": "Rome", "people": 3}'))) as session:
        assert (await session.run("Rome?")).data == {"name": "Rome", "people": 3}


@pytest.mark.parametrize(
    ("response_format", "message"),
    [
        ({"type": "json_schema"}, "lacks its schema"),
        ({"type": "objekt"}, "response_format is no JSON Schema: .*objekt"),
        ({"enum": []}, "no answer can satisfy it"),
        (int, "only pydantic models"),
        ("json", "response_format is 'json'"),
    ],
)
def test_a_format_that_is_none_is_refused_at_construction(
    held: Callable[..., ChatModel], response_format: Any, message: str
) -> None:
    with pytest.raises(UnsupportedSchemaError, match=message):
        Agent(held(), response_format=response_format)


def test_a_tool_that_cannot_be_offered_is_refused_at_construction(held: Callable[..., ChatModel]) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["</｜DSML｜parameter>"]}}, "required": ["a"]}
    with pytest.raises(UnsupportedSchemaError, match="which the model cannot write"):
        Agent(held(), tools=[RawTool("f", "", schema, lambda **_: "")])


@given(text=st.text() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_every_text_is_an_answer_or_has_a_problem(text: str) -> None:
    answer = read_answer(text, INTEGERS)
    if answer.problem is None:
        assert answer.value == json.loads(text)
        assert all(isinstance(item, int) for item in answer.value)
    else:
        assert answer.value is None


def test_answers_are_checked_as_arguments_are() -> None:
    """Formats count, every problem is named, and no reference is fetched."""
    schema = {"type": "object", "properties": {"on": {"type": "string", "format": "date"}, "n": {"type": "integer"}}}
    assert read_answer('{"on": "soon", "n": "1"}', Validator(schema, "response_format")).problem == (
        "the answer does not follow response_format: "
        '$.n: expected integer, got string "1"; $.on: string "soon" is no date, such as 2026-01-31'
    )


def test_a_format_that_leads_elsewhere_is_refused_at_construction(held: Callable[..., ChatModel]) -> None:
    with pytest.raises(ToolDefinitionError, match=r"response_format may not refer to 'http://127\.0\.0\.1:1/x'"):
        Agent(held(), response_format={"type": "array", "items": {"$ref": "http://127.0.0.1:1/x"}})
