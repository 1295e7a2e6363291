"""A model that knows nothing, held by the mask: whatever it writes parses into valid calls, without a deviation."""

from __future__ import annotations

import random
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

from v32.model_runtime.encoding import CompletionParser, Detokenizer
from v32.model_runtime.grammar import ConstraintCompiler, GrammarMatcher
from v32.model_runtime.messages import ParsedCompletion, ToolSpec

from .conftest import NOW, SEARCH, tool

TOOLS = [
    SEARCH,
    NOW,
    tool(
        {
            "city": {"type": ["string", "null"]},
            "share": {"type": "number", "minimum": 0.25, "maximum": 3},
            "unit": {"enum": ["km", "mi", 5, None]},
            "anything": {},
            "inner": {
                "type": "object",
                "properties": {"a": {"type": "boolean"}, "b": {"type": "array", "items": {"type": "integer"}}},
                "additionalProperties": {"type": "string"},
            },
            "tree": {"$ref": "#/$defs/tree"},
        },
        ["share", "unit"],
        "mixed",
        **{"$defs": {"tree": {"properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}}}},
    ),
]
CLOSERS = ["</｜DSML｜parameter>", '"', "]", "}", "1", "true", "</think>"]


class Walk:
    """Tokens drawn under the mask, half of them anyhow, half of them such as close something; then only those."""

    def __init__(self, compiler: ConstraintCompiler, matcher: GrammarMatcher, seed: int) -> None:
        self.tokenizer = compiler.tokenizer
        self.matcher = matcher
        self.random = random.Random(seed)
        self.bitmask = torch.zeros((compiler.vocab_size + 31) // 32, dtype=torch.int32)
        self.ids: list[int] = []
        close, eos = self.tokenizer.think_close_id, self.tokenizer.eos_id
        self.closers = [[eos], [close], *(self.tokenizer.encode_text(text) for text in CLOSERS)]

    def run(self, free_steps: int) -> list[int]:
        while not self.ids or self.ids[-1] != self.tokenizer.eos_id:
            forced = self.matcher.forced_tokens()
            if forced:
                assert all(map(self.accept, forced))
            elif len(self.ids) >= free_steps or self.random.random() < 0.5:
                self.close() or self.draw()
            else:
                self.draw()
            assert len(self.ids) < free_steps + 2_000
        return self.ids

    def accept(self, token_id: int) -> bool:
        if not self.matcher.accept(token_id):
            return False
        self.ids.append(token_id)
        return True

    def close(self) -> bool:
        closers = self.random.sample(self.closers[1:], len(self.closers) - 1)
        for closer in [self.closers[0], *closers]:
            start = len(self.ids)
            if all(map(self.accept, closer)):
                return True
            self.matcher.rollback(len(self.ids) - start)
            del self.ids[start:]
        return False

    def draw(self) -> None:
        """One token, uniform over the mask."""
        if not self.matcher.fill_bitmask(self.bitmask):
            self.bitmask.fill_(-1)
        allowed = np.unpackbits(self.bitmask.numpy().view(np.uint8), bitorder="little").nonzero()[0]
        assert self.accept(int(self.random.choice(allowed)))


def parse(compiler: ConstraintCompiler, ids: list[int], thinking_mode: str) -> ParsedCompletion:
    tokenizer = compiler.tokenizer
    detokenizer = Detokenizer(tokenizer)
    parser = CompletionParser(thinking_mode, ids_known=True)
    for token_id in ids:
        marker = tokenizer.marker_of(token_id)
        parser.feed(detokenizer.finish() if marker else detokenizer.feed(token_id))
        if marker:
            parser.feed_control(marker)
    return parser.finish()


def check(parsed: ParsedCompletion, tools: list[ToolSpec]) -> None:
    assert parsed.deviations == []
    assert parsed.malformed == []
    assert parsed.finished
    schemas: dict[str, Any] = {spec.name: dict(spec.parameters) for spec in tools}
    for call in parsed.tool_calls:
        jsonschema.validate(call.arguments, schemas[call.name], cls=jsonschema.Draft202012Validator)


SEEDS = [0, 1, 3, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 20))]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("choice", ["auto", "required", "mixed", "none"])
@pytest.mark.parametrize("thinking_mode", ["thinking", "chat"])
def test_walks_parse_into_valid_calls(compiler: ConstraintCompiler, seed: int, choice: str, thinking_mode: str) -> None:
    constraint = compiler.compile(TOOLS, choice, thinking_mode)  # type: ignore[arg-type]
    ids = Walk(compiler, constraint.start(), seed).run(free_steps=10 * seed)
    parsed = parse(compiler, ids, thinking_mode)
    check(parsed, TOOLS)
    if choice in ("required", "mixed"):
        assert parsed.tool_calls
    if choice == "mixed":
        assert [call.name for call in parsed.tool_calls] == ["mixed"]
    if choice == "none":
        assert not parsed.tool_calls
