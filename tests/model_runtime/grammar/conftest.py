"""Two tokenizers: the one of DeepSeek, and a byte-level BPE of a thousand entries as the tiny checkpoint has."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from v32.model_runtime.encoding import V32, ChatTokenizer, encode_messages
from v32.model_runtime.grammar import ConstraintCompiler, GrammarConstraint
from v32.model_runtime.messages import ToolSpec

Call = tuple[str, dict[str, Any]]


@pytest.fixture(scope="session")
def deepseek(constraints: ConstraintCompiler) -> ConstraintCompiler:
    return constraints


@pytest.fixture(scope="session")
def tiny() -> ConstraintCompiler:
    return ConstraintCompiler(tiny_tokenizer(), 1_056)


@pytest.fixture(scope="session")
def single(deepseek: ConstraintCompiler) -> ConstraintCompiler:
    """DeepSeek's tokenizer with one token for the marker of the tags, as the successor's has."""
    backend = Tokenizer.from_str(deepseek.tokenizer.backend.to_str())
    backend.add_tokens([AddedToken(V32.dsml, special=False, normalized=False)])
    return ConstraintCompiler(ChatTokenizer(backend.to_str()))


@pytest.fixture(scope="session", params=["deepseek", "tiny"])
def compiler(request: pytest.FixtureRequest) -> ConstraintCompiler:
    compiler: ConstraintCompiler = request.getfixturevalue(request.param)
    return compiler


def tiny_tokenizer() -> ChatTokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    corpus = [completion([("search", {"query": f"who is {name}?", "limit": 3})]) for name in ("Ada", "Alan", "Grace")]
    trainer = trainers.BpeTrainer(
        vocab_size=1_024, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([*corpus, *Path(__file__).read_text().splitlines()], trainer)
    tokenizer.add_special_tokens([AddedToken(marker, special=True) for marker in (*V32.role_markers, "<｜pad｜>")])
    return ChatTokenizer(tokenizer.to_str())


def completion(
    calls: Sequence[Call], *, thinking_mode: str = "thinking", reasoning: str = "Let me see.\n", content: str = ""
) -> str:
    """What the encoder makes of an assistant message: the text that a model writes."""
    message = {
        "role": "assistant",
        "content": content,
        "reasoning_content": reasoning,
        "tool_calls": [
            {"type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            for name, arguments in calls
        ],
    }
    before: list[dict[str, Any]] = [{"role": "user", "content": "?"}]
    prompt = encode_messages(before, thinking_mode)
    return encode_messages([*before, message], thinking_mode).removeprefix(prompt)


def token_ids(compiler: ConstraintCompiler, text: str) -> list[int]:
    """Canonical ids; the markers in `text` are control tokens."""
    return compiler.tokenizer.encode_segments(V32.split(text))


def accepts(constraint: GrammarConstraint, ids: Sequence[int]) -> bool:
    """Whether the ids, ending in the end of the sentence, are a completion."""
    matcher = constraint.start()
    return all(matcher.accept(token_id) for token_id in ids) and matcher.is_complete


def tool(properties: dict[str, Any], required: Sequence[str] = (), name: str = "f", **more: Any) -> ToolSpec:
    schema = {"type": "object", "properties": properties, "required": list(required), **more}
    return ToolSpec(name, "", schema)


SEARCH = tool({"query": {"type": "string"}, "limit": {"type": "integer"}}, ["query"], "search")
NOW = tool({}, name="now")


@pytest.fixture(scope="session")
def accepted(deepseek: ConstraintCompiler) -> Callable[..., bool]:
    """accepted(arguments, schema): whether a call with these arguments can be written."""

    def check(arguments: dict[str, Any], spec: ToolSpec) -> bool:
        constraint = deepseek.compile([spec], "required", "chat")
        text = completion([(spec.name, arguments)], thinking_mode="chat", reasoning="")
        return accepts(constraint, token_ids(deepseek, text))

    return check
