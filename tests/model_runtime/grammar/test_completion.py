"""Which completions the grammar lets through, with both tokenizers."""

from __future__ import annotations

import pytest

from v32.model_runtime.encoding import V32
from v32.model_runtime.errors import UnsupportedSchemaError
from v32.model_runtime.grammar import ConstraintCompiler

from .conftest import NOW, SEARCH, accepts, completion, token_ids, tool

TWO_CALLS = [("search", {"query": 'a <b> & "c"\n', "limit": 3}), ("now", {})]
BLOCK = completion(TWO_CALLS, thinking_mode="chat", reasoning="").removesuffix(V32.eos)


def allows(compiler: ConstraintCompiler, text: str, tool_choice: str = "auto", thinking_mode: str = "chat") -> bool:
    constraint = compiler.compile([SEARCH, NOW], tool_choice, thinking_mode)  # type: ignore[arg-type]
    return accepts(constraint, token_ids(compiler, text))


@pytest.mark.parametrize("content", ["", "I will look it up.", "Two lines\n\nand a < b\n", "中文 ｜ <｜ </ <| 🎈"])
@pytest.mark.parametrize("calls", [[], TWO_CALLS, [("now", {})]])
def test_what_the_encoder_writes_is_allowed(compiler: ConstraintCompiler, content: str, calls: list) -> None:
    assert allows(compiler, completion(calls, content=content), thinking_mode="thinking")
    if calls or content:
        assert allows(compiler, completion(calls, content=content, thinking_mode="chat", reasoning=""))


def test_reasoning_must_end_before_the_sentence_does(compiler: ConstraintCompiler) -> None:
    assert not allows(compiler, f"I think{V32.eos}", thinking_mode="thinking")
    assert not allows(compiler, f"I think{BLOCK}</think>{V32.eos}", thinking_mode="thinking")
    assert not allows(compiler, f"a</think>b</think>c{V32.eos}", thinking_mode="thinking")


@pytest.mark.parametrize(
    "text",
    [
        BLOCK + "\n",
        BLOCK + "Done.",
        BLOCK + BLOCK,
        BLOCK[1:],
        "Sure." + BLOCK[2:],
        BLOCK.replace(">\n<", "><", 1),
        BLOCK.replace(">\n<", ">\n\n<", 1),
        BLOCK.replace('name="now">\n\n', 'name="now">\n'),
        BLOCK.replace('string="false"', 'string="true"'),
        BLOCK.replace('string="false">3', 'string="false">three'),
        BLOCK.replace('string="false">3', 'string="false">03'),
        BLOCK.replace("now", "then"),
        BLOCK.replace('"query"', '"question"'),
        BLOCK.replace("</｜DSML｜function_calls>", ""),
        "<｜DSML｜invoke name=",
        "</｜DSML｜parameter>",
        "<｜DSML｜tool_calls>",
        "a｜DSML｜b",
    ],
)
def test_what_is_no_completion_is_refused(compiler: ConstraintCompiler, text: str) -> None:
    assert allows(compiler, BLOCK + V32.eos)
    assert not allows(compiler, text + V32.eos)


def test_missing_and_swapped_parameters_are_refused(compiler: ConstraintCompiler) -> None:
    def call(**arguments: object) -> str:
        return completion([("search", arguments)], thinking_mode="chat", reasoning="")

    assert allows(compiler, call(query="x", limit=1))
    assert not allows(compiler, call(limit=1))
    assert not allows(compiler, call(limit=1, query="x"))
    assert not allows(compiler, call(query="x", limit=1, more=1))


def test_text_that_spells_a_control_token_is_not_that_token(compiler: ConstraintCompiler) -> None:
    tokenizer = compiler.tokenizer
    constraint = compiler.compile([SEARCH], "required", "chat")
    head, tail = completion([("search", {"query": "\n"})], thinking_mode="chat", reasoning="").split("\n</｜DSML｜pa")
    spelled = tokenizer.encode_text(f"{head}the </think> of <｜User｜></｜DSML｜pa{tail.removesuffix(V32.eos)}")
    assert accepts(constraint, [*spelled, tokenizer.eos_id])
    matcher = constraint.start()
    assert all(matcher.accept(token_id) for token_id in tokenizer.encode_text(head))
    for token_id in (tokenizer.think_close_id, tokenizer.user_id, tokenizer.eos_id, tokenizer.bos_id):
        assert not matcher.accept(token_id)


def test_tool_choice(compiler: ConstraintCompiler) -> None:
    now = completion([("now", {})], thinking_mode="chat", reasoning="")
    text = f"It is noon.{V32.eos}"
    assert [allows(compiler, text, choice) for choice in ("auto", "none", "required", "now")] == [
        True,
        True,
        False,
        False,
    ]
    assert [allows(compiler, now, choice) for choice in ("auto", "none", "required", "now")] == [
        True,
        False,
        True,
        True,
    ]
    assert not allows(compiler, now, "search")
    assert allows(compiler, BLOCK + V32.eos, "required")
    assert not allows(compiler, BLOCK + V32.eos, "search")


def test_calls_one_at_a_time(deepseek: ConstraintCompiler) -> None:
    constraint = deepseek.compile([SEARCH, NOW], "auto", "chat", parallel_calls=False)
    assert not accepts(constraint, token_ids(deepseek, BLOCK + V32.eos))
    assert accepts(constraint, token_ids(deepseek, completion([("now", {})], thinking_mode="chat", reasoning="")))


@pytest.mark.slow
def test_a_marker_that_is_one_token(single: ConstraintCompiler, deepseek: ConstraintCompiler) -> None:
    ids = token_ids(single, BLOCK + V32.eos)
    assert len(ids) < len(token_ids(deepseek, BLOCK + V32.eos))
    constraint = single.compile([SEARCH, NOW], "auto", "chat")
    assert accepts(constraint, ids)
    assert not accepts(constraint, token_ids(single, f"a{V32.dsml}b{V32.eos}"))


@pytest.mark.parametrize(
    ("specs", "choice", "message"),
    [
        ([SEARCH, SEARCH], "auto", "two tools share a name"),
        ([SEARCH], "serach", "tool_choice is 'serach'; offered: search"),
        ([], "required", "no tools are offered"),
        ([tool({}, name='a"b')], "auto", "tool name"),
        ([tool({"a｜DSML｜b": {}})], "auto", "parameter name"),
        ([tool({"a": {"enum": ["</｜DSML｜parameter>"]}})], "auto", "which the model cannot write"),
        ([tool({"a": {"type": "strnig"}})], "auto", "unknown type 'strnig'"),
        ([tool({"a": {"$ref": "#/$defs/no"}})], "auto", "points to nothing"),
        ([tool({"a": False}, ["a"])], "auto", "the arguments of a tool are an object"),
    ],
)
def test_what_cannot_be_offered_is_named(deepseek: ConstraintCompiler, specs: list, choice: str, message: str) -> None:
    with pytest.raises(UnsupportedSchemaError, match=message):
        deepseek.compile(specs, choice)


def test_a_constraint_is_compiled_once(deepseek: ConstraintCompiler) -> None:
    assert deepseek.compile([SEARCH, NOW]) is deepseek.compile([SEARCH, NOW])
    assert deepseek.compile([SEARCH, NOW]) is not deepseek.compile([SEARCH])


def test_rollback_restores_the_state(deepseek: ConstraintCompiler) -> None:
    ids = token_ids(deepseek, completion(TWO_CALLS))
    matcher = deepseek.compile([SEARCH, NOW]).start()
    for count in range(1, len(ids)):
        assert all(matcher.accept(token_id) for token_id in ids[:count])
        matcher.rollback(count)
    assert all(matcher.accept(token_id) for token_id in ids)
    assert matcher.is_complete
    with pytest.raises(ValueError, match="cannot take back"):
        matcher.rollback(len(ids) + 1)
