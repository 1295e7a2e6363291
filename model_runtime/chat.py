"""A model that one talks to: transcript in, deltas and a completion out.

    transcript.ids ─▶ generator (under the grammar of the offered tools) ─▶ detokenizer ─▶ parser ─▶ deltas

Ids go in as they stand and come out as they were sampled; no text is rendered here. Knows no tools beyond their
specifications and runs none.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Hashable, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import anyio.to_thread

from v32.model_runtime.checkpoint.variant import VariantInfo
from v32.model_runtime.encoding import ChatTokenizer, CompletionParser, Detokenizer
from v32.model_runtime.errors import EncodingError, ToolsNotSupportedError
from v32.model_runtime.generators.generator import (
    Finished,
    KeepsKV,
    PrefillsAhead,
    SamplingParams,
    Token,
    TokenConstraint,
    TokenGenerator,
)
from v32.model_runtime.grammar.compiler import ConstraintCompiler
from v32.model_runtime.messages import (
    Completion,
    Delta,
    FinishReason,
    ParsedCompletion,
    ReasoningDelta,
    ThinkingMode,
    ToolChoice,
    ToolSpec,
    Usage,
)
from v32.model_runtime.prompt import Prompt
from v32.model_runtime.response_format import ResponseFormat, answer_schema
from v32.model_runtime.transcript import Transcript

if TYPE_CHECKING:
    from v32.model_runtime.grammar.server import ServerConstraintCompiler

_ENCODER_VERSION = 1
"""Another one for ids that another encoder makes of the same conversation."""


class ChatModel:
    """A generator with the tokenizer, the grammar and the parser of its model."""

    def __init__(
        self,
        generator: TokenGenerator,
        tokenizer: ChatTokenizer,
        *,
        variant: VariantInfo | None = None,
        thinking_mode: ThinkingMode = "thinking",
        grammar: bool = True,
        compiler: ConstraintCompiler | ServerConstraintCompiler | None = None,
        sampling: SamplingParams | None = None,
        vocab_size: int | None = None,
        settle_ahead: bool = True,
        keep_kv: bool = False,
    ) -> None:
        """`sampling` holds where a completion gets no parameters; `vocab_size` is the model's, which may be padded.

        `settle_ahead`: see the method; False switches it off. `keep_kv`: whether `save_kv` writes anything.

        `compiler` makes the constraints that the generator understands; by default those of this process.
        """
        self.generator = generator
        self.tokenizer = tokenizer
        self.variant = variant or VariantInfo("v3.2", "taken for granted")
        self.thinking_mode = thinking_mode
        self.sampling = sampling or SamplingParams()
        self._settles_ahead = settle_ahead
        self.keep_kv = keep_kv
        self._compiler = (compiler or ConstraintCompiler(tokenizer, vocab_size)) if grammar else None

    @property
    def max_context(self) -> int:
        """Positions that prompt and completion may fill together."""
        return self.generator.max_context

    def check_tools_supported(self) -> None:
        """Raises `ToolsNotSupportedError` if the variant was not trained to call tools."""
        if not self.variant.supports_tools:
            raise ToolsNotSupportedError(
                f"this model is V3.2-{self.variant.name.capitalize()} (evidence: {self.variant.how}), "
                "which was not trained to call tools; use it without tools, or load DeepSeek-V3.2. "
                "If it was recognised wrongly, load it with variant='v3.2'"
            )

    def start_transcript(
        self,
        *,
        instructions: str | None = None,
        tools: Sequence[ToolSpec] = (),
        role: Literal["system", "developer"] = "system",
        response_format: ResponseFormat | None = None,
    ) -> Transcript:
        """An empty conversation; tools that this model cannot be offered are refused here.

        `response_format`: every answer is JSON of this schema, also while it is sampled; see `response_format.py`.
        """
        if tools:
            self.check_tools_supported()
        return Transcript(
            self.tokenizer,
            instructions=instructions,
            tools=tuple(tools),
            thinking_mode=self.thinking_mode,
            role=role,
            response_format=answer_schema(response_format),
        )

    async def complete(
        self,
        transcript: Transcript | Prompt,
        *,
        tool_choice: ToolChoice = "auto",
        params: SamplingParams | None = None,
        parallel_calls: bool = True,
    ) -> AsyncGenerator[Delta | Completion, None]:
        """Deltas as the model writes, then the completion, which the caller appends to the transcript.

        `parallel_calls=False`: at most one call. Leaving the iterator early stops the generation. Raises
        `EncodingError` if it is not the model's turn, `ContextOverflowError` if there is no room,
        `ToolsNotSupportedError`, `GeneratorError`.
        """
        if transcript.tools:
            self.check_tools_supported()
        if not transcript.is_models_turn:
            raise EncodingError("it is not the model's turn; append a user message or the results of its calls first")
        reader = _CompletionReader(self.tokenizer, transcript.thinking_mode, transcript.next_call_index)
        constraint = await self._constraint(transcript, tool_choice, parallel_calls)
        params = self._with_end(params or self.sampling)
        finished = None
        async with aclosing(self.generator.generate(transcript.ids, params, constraint)) as events:
            async for event in events:
                if isinstance(event, Finished):
                    finished = event
                else:
                    for delta in reader.feed(event):
                        yield delta
        assert finished is not None, "a generator ends its stream with Finished"
        for delta in reader.close():
            yield delta
        yield reader.completion(finished)

    def settle_ahead(self, transcript: Transcript, owner: Hashable = None) -> None:
        """The conversation `owner` waits for its user: compute the history that the next message will see (without
        reasoning) while nothing else runs. The message then costs its own tokens only; its answer stays the same."""
        waits = not transcript.is_models_turn and not transcript.pending_calls and transcript.entries
        if self._settles_ahead and waits and isinstance(self.generator, PrefillsAhead):
            self.generator.prefill_ahead(owner, transcript.settled_ids())

    def forget_ahead(self, owner: Hashable = None) -> None:
        """The conversation has ended: nothing more is computed for it."""
        if self._settles_ahead and isinstance(self.generator, PrefillsAhead):
            self.generator.prefill_ahead(owner, [])

    async def save_kv(self, transcript: Transcript, path: Path, owner: Hashable = None) -> None:
        """With `keep_kv`: write what has been computed of a conversation, so that another process need not."""
        if self.keep_kv and isinstance(self.generator, KeepsKV):
            goes_on = transcript.is_models_turn or transcript.pending_calls
            ids = transcript.ids if goes_on else transcript.settled_ids()
            await self.generator.save_kv(path, owner, ids, self._encoder)

    def load_kv(self, path: Path) -> None:
        """Use a file of `save_kv`, if there is one; a damaged or foreign one is logged and computed again."""
        if isinstance(self.generator, KeepsKV):
            self.generator.load_kv(path, self._encoder)

    @property
    def _encoder(self) -> str:
        return f"{self.tokenizer.fingerprint}/{_ENCODER_VERSION}"

    async def aclose(self) -> None:
        """Release the model."""
        await self.generator.aclose()

    def describe(self) -> dict[str, Any]:
        """What a trace records about the model."""
        return {
            **self.generator.describe(),
            "tokenizer": self.tokenizer.fingerprint,
            "variant": self.variant.name,
            "variant_recognised_by": self.variant.how,
            "thinking_mode": self.thinking_mode,
            "grammar": self._compiler is not None,
        }

    def prepare(
        self,
        tools: Sequence[ToolSpec] = (),
        tool_choice: ToolChoice = "auto",
        response_format: ResponseFormat | None = None,
    ) -> None:
        """Compile the grammar of what will be offered, so that the first completion finds it; takes up to seconds.

        Raises `ToolsNotSupportedError`, or `UnsupportedSchemaError` for a schema that cannot be offered.
        """
        if tools:
            self.check_tools_supported()
        schema = answer_schema(response_format)
        if self._compiler is not None and (tools or schema):
            self._compiler.compile(tuple(tools), tool_choice, self.thinking_mode, answer_schema=schema)

    async def _constraint(
        self, transcript: Transcript | Prompt, tool_choice: ToolChoice, parallel_calls: bool
    ) -> TokenConstraint | None:
        if self._compiler is None:
            if tool_choice not in ("auto", "none"):
                raise ValueError(f"tool_choice is {tool_choice!r}, which needs the grammar; load with grammar=True")
            return None
        tools, schema = tuple(transcript.tools), answer_schema(transcript.response_format)
        if not tools and schema is None and tool_choice in ("auto", "none"):
            return None
        offer = (tools, tool_choice, transcript.thinking_mode)
        compiled = self._compiler.compiled(*offer, parallel_calls=parallel_calls, answer_schema=schema)
        if compiled is not None:
            return compiled
        # Compiling takes a tenth of a second, the first time a few seconds: not in the event loop.
        compile = partial(self._compiler.compile, parallel_calls=parallel_calls, answer_schema=schema)
        return await anyio.to_thread.run_sync(compile, *offer)

    def _with_end(self, params: SamplingParams) -> SamplingParams:
        if self.tokenizer.eos_id in params.stop_token_ids:
            return params
        return replace(params, stop_token_ids=(*params.stop_token_ids, self.tokenizer.eos_id))


class _CompletionReader:
    """Tokens of one completion to deltas; keeps the ids as they came and counts them."""

    def __init__(self, tokenizer: ChatTokenizer, thinking_mode: ThinkingMode, first_call_index: int) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer)
        self._parser = CompletionParser(thinking_mode, first_call_index, ids_known=True, dialect=tokenizer.dialect)
        self._token_ids: list[int] = []
        self._logprobs: list[float] = []
        self._num_forced = 0
        self._num_reasoning = 0
        self._is_reasoning = thinking_mode == "thinking"
        self._started = time.perf_counter()

    def feed(self, token: Token) -> list[Delta]:
        self._token_ids.append(token.id)
        self._num_forced += token.forced
        if token.logprob is not None:
            self._logprobs.append(token.logprob)
        marker = self._tokenizer.marker_of(token.id)
        text = self._detokenizer.feed(token.id) if marker is None else self._detokenizer.finish()
        deltas = self._parser.feed(text) if text else []
        if marker is not None:
            deltas += self._parser.feed_control(marker)
        self._count_reasoning(marker, deltas)
        return deltas

    def close(self) -> list[Delta]:
        """What was held back."""
        text = self._detokenizer.finish()
        return [*(self._parser.feed(text) if text else []), *self._parser.close()]

    def completion(self, finished: Finished) -> Completion:
        parsed = self._parser.finish()
        return Completion(
            token_ids=tuple(self._token_ids),
            parsed=parsed,
            finish_reason=_finish_reason(finished, parsed),
            usage=self._usage(finished, parsed),
            logprobs=tuple(self._logprobs) if len(self._logprobs) == len(self._token_ids) > 0 else None,
        )

    def _count_reasoning(self, marker: str | None, deltas: Sequence[Delta]) -> None:
        """Every token before the end of the thinking, however it ended, counts as reasoning."""
        ends = (self._tokenizer.dialect.think_close, self._tokenizer.dialect.eos)
        is_past = any(not isinstance(delta, ReasoningDelta) for delta in deltas)
        self._is_reasoning = self._is_reasoning and marker not in ends and not is_past
        self._num_reasoning += self._is_reasoning

    def _usage(self, finished: Finished, parsed: ParsedCompletion) -> Usage:
        seconds = {"prefill": finished.prefill_seconds, "decode": finished.decode_seconds}
        return Usage(
            prompt_tokens=finished.prompt_tokens,
            cached_tokens=finished.cached_tokens,
            prefilled_tokens=finished.prompt_tokens - finished.cached_tokens,
            completion_tokens=len(self._token_ids),
            reasoning_tokens=self._num_reasoning,
            forced_tokens=self._num_forced,
            ahead_tokens=finished.ahead_tokens,
            drafted_tokens=finished.drafted_tokens,
            accepted_tokens=finished.accepted_tokens,
            tool_calls=len(parsed.tool_calls) + len(parsed.malformed),
            seconds={**seconds, "total": time.perf_counter() - self._started},
        )


def _finish_reason(finished: Finished, parsed: ParsedCompletion) -> FinishReason:
    if finished.reason != "stop":
        return finished.reason
    return "tool_calls" if parsed.tool_calls or parsed.malformed else "stop"
