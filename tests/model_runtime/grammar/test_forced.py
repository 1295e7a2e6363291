"""Forced tokens are exactly those that the canonical tokenisation has, and they save most of the steps of a call."""

from __future__ import annotations

import pytest

from v32.model_runtime.grammar import ConstraintCompiler

from .conftest import NOW, SEARCH, completion, token_ids, tool

PLAN = tool(
    {
        "steps": {"type": "array", "items": {"type": "string"}},
        "limits": {"type": "object", "properties": {"deadline": {"type": "integer"}}, "required": ["deadline"]},
        "mode": {"enum": ["careful", "fast"]},
    },
    ["limits", "mode"],
    "plan",
)
CALLS = [
    [("search", {"query": '<b>"x"</b>\n', "limit": 12345}), ("now", {})],
    [("search", {"query": ""})],
    [("search", {"query": "\n"}), ("search", {"query": "中文 und Ünïcode"})],
    [("plan", {"steps": ["a", "\n"], "limits": {"deadline": 20260101}, "mode": "fast"})],
    [("plan", {"limits": {"deadline": 7}, "mode": "careful"}), ("now", {})],
]


def steps(compiler: ConstraintCompiler, calls: list, choice: str, thinking_mode: str) -> tuple[int, int]:
    """Walks along a canonical completion; counts the tokens, and those that were not forced."""
    constraint = compiler.compile([SEARCH, NOW, PLAN], choice, thinking_mode)  # type: ignore[arg-type]
    text = completion(calls, thinking_mode=thinking_mode, content="" if choice == "required" else "Well:")
    ids = token_ids(compiler, text.removeprefix("Let me see.\n") if thinking_mode == "chat" else text)
    matcher = constraint.start()
    position = sampled = 0
    while position < len(ids):
        forced = matcher.forced_tokens()
        assert forced == ids[position : position + len(forced)]
        for token_id in forced or ids[position : position + 1]:
            assert matcher.accept(token_id)
        sampled += not forced
        position += len(forced) or 1
    assert matcher.is_complete
    return len(ids), sampled


@pytest.mark.parametrize("choice", ["auto", "required"])
@pytest.mark.parametrize("thinking_mode", ["thinking", "chat"])
@pytest.mark.parametrize("calls", CALLS)
def test_forced_tokens_are_canonical(
    compiler: ConstraintCompiler, calls: list, choice: str, thinking_mode: str
) -> None:
    steps(compiler, calls, choice, thinking_mode)


@pytest.mark.slow
@pytest.mark.parametrize("calls", CALLS)
def test_a_marker_that_is_one_token_is_forced_as_such(single: ConstraintCompiler, calls: list) -> None:
    tokens, sampled = steps(single, calls, "required", "chat")
    assert sampled < 0.6 * tokens


def test_most_of_a_call_is_forced(deepseek: ConstraintCompiler) -> None:
    tokens, sampled = steps(deepseek, CALLS[4], "required", "chat")
    assert sampled < tokens / 3


def test_forcing_changes_nothing(deepseek: ConstraintCompiler) -> None:
    matcher = deepseek.compile([SEARCH], "required", "chat").start()
    forced = matcher.forced_tokens()
    assert forced
    assert matcher.forced_tokens() == forced
    assert not matcher.accept(deepseek.tokenizer.eos_id)
    assert all(matcher.accept(token_id) for token_id in forced)


def test_nothing_is_forced_in_free_text_or_at_the_end(deepseek: ConstraintCompiler) -> None:
    matcher = deepseek.compile([SEARCH]).start()
    assert matcher.forced_tokens() == []
    for token_id in token_ids(deepseek, completion([("search", {"query": "x"})])):
        assert matcher.accept(token_id)
    assert matcher.forced_tokens() == []
