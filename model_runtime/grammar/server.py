"""Constraints for a server that compiles grammars itself (vLLM, SGLang with xgrammar): the EBNF is all it needs.

In a server's vocabulary every control token is its text, so text that spells one is excluded as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from v32.model_runtime.encoding import ChatTokenizer
from v32.model_runtime.errors import GeneratorError
from v32.model_runtime.generators.generator import TokenConstraint, TokenMatcher
from v32.model_runtime.grammar.completion import CompletionGrammar, completion_grammar
from v32.model_runtime.messages import ThinkingMode, ToolChoice, ToolSpec


class ServerConstraint:
    """A `TokenConstraint` that only a server can start."""

    def __init__(self, grammar: CompletionGrammar) -> None:
        self.grammar = grammar

    def start(self) -> TokenMatcher:
        raise GeneratorError("this constraint was made for a server; compile one with ConstraintCompiler")


class ServerConstraintCompiler:
    """Like `ConstraintCompiler`, for the tokenizer that a server uses."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self.tokenizer = tokenizer

    def compile(
        self,
        tools: Sequence[ToolSpec],
        tool_choice: ToolChoice = "auto",
        thinking_mode: ThinkingMode = "thinking",
        *,
        parallel_calls: bool = True,
        answer_schema: Mapping[str, Any] | None = None,
    ) -> ServerConstraint:
        """`UnsupportedSchemaError` names the tool whose calls cannot be written, or the unknown tool choice."""
        grammar = completion_grammar(
            tools,
            tool_choice,
            thinking_mode,
            f"Token({self.tokenizer.think_close_id})",
            parallel_calls=parallel_calls,
            answer_schema=answer_schema,
            forbidden=self.tokenizer.dialect.role_markers,
            dialect=self.tokenizer.dialect,
        )
        return ServerConstraint(grammar)

    compiled = compile
    """Nothing takes time here."""


def ebnf_of(constraint: TokenConstraint) -> str:
    """The grammar as text; `GeneratorError` for a constraint that has none."""
    grammar = getattr(constraint, "grammar", None)
    if not isinstance(grammar, CompletionGrammar):
        raise GeneratorError(f"a server cannot be given a {type(constraint).__name__}; it takes grammars as text")
    return grammar.ebnf
