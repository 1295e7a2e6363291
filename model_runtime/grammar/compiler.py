"""Tools to compiled constraints, each compiled once: the vocabulary is prepared at the first use, then kept."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from v32.model_runtime.encoding import ChatTokenizer
from v32.model_runtime.errors import UnsupportedSchemaError
from v32.model_runtime.grammar.completion import CONTROL_CHARACTER, completion_grammar
from v32.model_runtime.grammar.forced import CanonicalForcing
from v32.model_runtime.grammar.library import load_xgrammar
from v32.model_runtime.grammar.matcher import GrammarConstraint
from v32.model_runtime.grammar.schema import canonical_json
from v32.model_runtime.messages import ThinkingMode, ToolChoice, ToolSpec

if TYPE_CHECKING:
    import xgrammar

_CACHED_CONSTRAINTS = 64


class ConstraintCompiler:
    """Compiles the constraints of one tokenizer; `vocab_size` is the model's, which may be padded."""

    def __init__(self, tokenizer: ChatTokenizer, vocab_size: int | None = None) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = max(vocab_size or 0, tokenizer.vocab_size)
        self._constraints: dict[str, GrammarConstraint] = {}
        self._lock = threading.Lock()

    def compile(
        self,
        tools: Sequence[ToolSpec],
        tool_choice: ToolChoice = "auto",
        thinking_mode: ThinkingMode = "thinking",
        *,
        parallel_calls: bool = True,
        answer_schema: Mapping[str, Any] | None = None,
    ) -> GrammarConstraint:
        """The constraint of these tools and of an answer in JSON, from the cache if they have been seen.

        `UnsupportedSchemaError` names the tool whose calls cannot be written, or the unknown tool choice.
        """
        key = _key(tools, tool_choice, thinking_mode, parallel_calls, answer_schema)
        with self._lock:
            if key not in self._constraints:
                if len(self._constraints) >= _CACHED_CONSTRAINTS:
                    self._constraints.pop(next(iter(self._constraints)))
                self._constraints[key] = self._compile(tools, tool_choice, thinking_mode, parallel_calls, answer_schema)
            return self._constraints[key]

    def compiled(
        self,
        tools: Sequence[ToolSpec],
        tool_choice: ToolChoice = "auto",
        thinking_mode: ThinkingMode = "thinking",
        *,
        parallel_calls: bool = True,
        answer_schema: Mapping[str, Any] | None = None,
    ) -> GrammarConstraint | None:
        """The constraint if it is in the cache; takes no time."""
        return self._constraints.get(_key(tools, tool_choice, thinking_mode, parallel_calls, answer_schema))

    def _compile(
        self,
        tools: Sequence[ToolSpec],
        tool_choice: ToolChoice,
        thinking_mode: ThinkingMode,
        parallel_calls: bool,
        answer_schema: Mapping[str, Any] | None,
    ) -> GrammarConstraint:
        grammar = completion_grammar(
            tools,
            tool_choice,
            thinking_mode,
            f"Token({self.tokenizer.think_close_id})",
            parallel_calls=parallel_calls,
            answer_schema=answer_schema,
            dialect=self.tokenizer.dialect,
        )
        try:
            compiled = self._compiler.compile_grammar(grammar.ebnf)
        except RuntimeError as error:
            names = ", ".join([*(tool.name for tool in tools), *(["response_format"] if answer_schema else [])])
            raise UnsupportedSchemaError(f"the schemas of {names} make no grammar: {error}") from error
        return GrammarConstraint(grammar, compiled, self.tokenizer, self.vocab_size, self._forcing)

    @cached_property
    def _forcing(self) -> CanonicalForcing:
        return CanonicalForcing(self.tokenizer)

    @cached_property
    def _compiler(self) -> xgrammar.GrammarCompiler:
        xgrammar = load_xgrammar()
        info = xgrammar.TokenizerInfo(
            [self._grammar_bytes(token_id) for token_id in range(self.vocab_size)],
            xgrammar.VocabType.RAW,
            vocab_size=self.vocab_size,
            stop_token_ids=[self.tokenizer.eos_id],
        )
        return xgrammar.GrammarCompiler(info, max_threads=2, cache_enabled=False)

    def _grammar_bytes(self, token_id: int) -> bytes:
        """What a token is to the grammar; control tokens are no text, and most of them are nothing at all."""
        if token_id == self.tokenizer.think_close_id:
            return CONTROL_CHARACTER.encode()
        if not self.tokenizer.is_structural(token_id):
            return self.tokenizer.token_bytes(token_id)
        is_dsml = self.tokenizer.marker_of(token_id) == self.tokenizer.dialect.dsml
        return self.tokenizer.token_bytes(token_id) if is_dsml else b""


def _key(tools: Sequence[ToolSpec], *others: Any) -> str:
    return canonical_json([[tool.to_openai() for tool in tools], *others])
