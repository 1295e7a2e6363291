"""A `TokenGenerator` that writes what it was told: completions as text in, their token ids out; for tests and demos.

Everything above the seam is real: ids, grammar, parser, transcript. Only the choice of the tokens is scripted.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from typing import Any

import anyio

from v32.model_runtime.encoding import ChatTokenizer
from v32.model_runtime.errors import ContextOverflowError, GeneratorError
from v32.model_runtime.generators.generator import Finished, SamplingParams, Token, TokenConstraint


class ScriptedGenerator:
    """Plays completions one after another.

    A completion is what a model would write after the prompt: `Thinking...</think>The answer.`; control markers in it
    become control tokens, and the end of the sentence is added where it is missing.
    """

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        completions: Iterable[str],
        *,
        max_context: int = 131_072,
        obeys_grammar: bool = False,
        seconds_per_token: float = 0.0,
    ) -> None:
        """`obeys_grammar`: a completion that the given constraint forbids is a `GeneratorError`."""
        self.prompts: list[tuple[int, ...]] = []
        """The prompt of every generation so far."""
        self.params: list[SamplingParams] = []
        self._tokenizer = tokenizer
        self._script: Iterator[str] = iter(completions)
        self._max_context = max_context
        self._obeys_grammar = obeys_grammar
        self._seconds_per_token = seconds_per_token
        self._computed: list[int] = []
        self._is_closed = False

    @property
    def max_context(self) -> int:
        return self._max_context

    async def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, constraint: TokenConstraint | None = None
    ) -> AsyncGenerator[Token | Finished, None]:
        """Raises `GeneratorError` when the script has run out."""
        if self._is_closed:
            raise RuntimeError("the generator is closed; make a new one")
        if not prompt_ids:
            raise ValueError("the prompt is empty; it needs at least the begin-of-sentence token")
        if len(prompt_ids) >= self._max_context:
            raise ContextOverflowError(len(prompt_ids), self._max_context)
        self.prompts.append(tuple(prompt_ids))
        self.params.append(params)
        cached = min(_common_prefix(self._computed, prompt_ids), len(prompt_ids) - 1)
        self._computed = list(prompt_ids)
        started = time.perf_counter()
        tokens = self._tokens(self._next_completion(), constraint if self._obeys_grammar else None)
        room = self._max_context - len(prompt_ids)
        room = room if params.max_new_tokens is None else min(room, params.max_new_tokens)
        reason = "stop"
        for count, token in enumerate(tokens, start=1):
            await anyio.sleep(self._seconds_per_token)
            self._computed.append(token.id)
            yield Token(token.id, 0.0 if params.logprobs else None, token.forced)
            if token.id in params.stop_token_ids:
                break
            if count >= room:
                reason = "length"
                break
        seconds = time.perf_counter() - started
        yield Finished(
            "length" if reason == "length" else "stop", len(prompt_ids), cached_tokens=cached, decode_seconds=seconds
        )

    async def aclose(self) -> None:
        self._is_closed = True

    def describe(self) -> dict[str, Any]:
        return {
            "generator": "scripted",
            "name": "script",
            "fingerprint": "script",
            "dtype": None,
            "device": None,
            "max_context": self._max_context,
        }

    def _next_completion(self) -> str:
        for completion in self._script:
            return completion
        raise GeneratorError(
            f"the script has no completion for generation {len(self.prompts)}; script one for every turn of the model"
        )

    def _tokens(self, completion: str, constraint: TokenConstraint | None) -> Iterator[Token]:
        """The tokens of a completion; `GeneratorError` at the first one that the constraint forbids."""
        dialect = self._tokenizer.dialect
        text = completion if completion.endswith(dialect.eos) else completion + dialect.eos
        matcher = constraint.start() if constraint else None
        forced: list[int] = []
        for position, token_id in enumerate(self._tokenizer.encode_segments(dialect.split(text))):
            if matcher is not None:
                forced = forced or matcher.forced_tokens()
                if not matcher.accept(token_id):
                    token = self._tokenizer.decode([token_id])
                    raise GeneratorError(
                        f"the grammar forbids {token!r}, token {position} of generation {len(self.prompts)}: {text!r}"
                    )
            yield Token(token_id, forced=bool(forced) and forced[0] == token_id)
            forced = forced[1:]


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    for position, (a, b) in enumerate(zip(left, right)):
        if a != b:
            return position
    return min(len(left), len(right))
