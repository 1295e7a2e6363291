"""vLLM as a `TokenGenerator`: `POST /v1/completions` with a prompt of token ids, token ids back."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from v32.model_runtime.errors import ContextOverflowError, GeneratorError
from v32.model_runtime.generators.generator import Finished, SamplingParams, Token, TokenConstraint
from v32.model_runtime.generators.server import Server
from v32.model_runtime.grammar.server import ebnf_of

_PATH = "/v1/completions"


class VLLMGenerator:
    """One model of a vLLM server. The server has to return token ids (vLLM 0.10.2 or newer)."""

    def __init__(self, server: Server, model: str, max_context: int) -> None:
        self.model = model
        self._server = server
        self._max_context = max_context
        self._is_closed = False

    @classmethod
    def connect(cls, server: Server, model: str | None = None, max_context: int | None = None) -> VLLMGenerator:
        """Ask the server for its model and context; `GeneratorError` if it does not answer or has no such model."""
        offered: dict[str, Any] = {card["id"]: card for card in server.get("/v1/models")["data"]}
        model = model or next(iter(offered), "")
        if model not in offered:
            raise GeneratorError(f"{server.url} has no model {model!r}; it serves {', '.join(offered) or 'none'}")
        served = offered[model].get("max_model_len")
        if served is None and max_context is None:
            raise GeneratorError(f"{server.url} does not say how long its context is; give max_context")
        return cls(server, model, min(bound for bound in (served, max_context) if bound is not None))

    @property
    def max_context(self) -> int:
        return self._max_context

    async def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, constraint: TokenConstraint | None = None
    ) -> AsyncGenerator[Token | Finished, None]:
        if self._is_closed:
            raise RuntimeError("the generator is closed; load the model again")
        if len(prompt_ids) >= self._max_context:
            raise ContextOverflowError(len(prompt_ids), self._max_context)
        started, first, last_id = time.perf_counter(), None, None
        choice: Mapping[str, Any] = {}
        usage: Mapping[str, Any] = {}
        async with aclosing(self._server.stream(_PATH, self._request(prompt_ids, params, constraint))) as events:
            async for event in events:
                usage = event.get("usage") or usage
                for choice in event.get("choices", ()):
                    for token in _tokens(choice, params.logprobs):
                        first, last_id = first or time.perf_counter(), token.id
                        yield token
        reason, stop_id = choice.get("finish_reason"), choice.get("stop_reason")
        if reason == "stop" and isinstance(stop_id, int) and last_id != stop_id:
            yield Token(stop_id)
        if reason not in ("stop", "length"):
            raise GeneratorError(f"{self._server.url}{_PATH} ended with finish_reason {reason!r}; look at its log")
        now = time.perf_counter()
        yield Finished(
            reason,
            prompt_tokens=len(prompt_ids),
            cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
            prefill_seconds=(first or now) - started,
            decode_seconds=now - (first or now),
        )

    async def aclose(self) -> None:
        self._is_closed = True

    def describe(self) -> dict[str, Any]:
        return {
            "generator": "vllm",
            "name": self.model,
            "fingerprint": None,
            "dtype": None,
            "device": self._server.url,
            "max_context": self._max_context,
        }

    def _request(
        self, prompt_ids: Sequence[int], params: SamplingParams, constraint: TokenConstraint | None
    ) -> dict[str, Any]:
        room = self._max_context - len(prompt_ids)
        request: dict[str, Any] = {
            "model": self.model,
            "prompt": list(prompt_ids),
            "max_tokens": room if params.max_new_tokens is None else min(room, params.max_new_tokens),
            "temperature": params.temperature,
            "top_p": params.top_p,
            "stop_token_ids": list(params.stop_token_ids),
            "skip_special_tokens": False,
            "add_special_tokens": False,
            "return_token_ids": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if params.seed is not None:
            request["seed"] = params.seed
        if params.logprobs:
            request["logprobs"] = 0
        if constraint is not None:
            request["structured_outputs"] = {"grammar": ebnf_of(constraint)}
        return request


def _tokens(choice: Mapping[str, Any], with_logprobs: bool) -> list[Token]:
    ids = choice.get("token_ids")
    if ids is None:
        if choice.get("text"):
            raise GeneratorError("the server sends text without token ids; it needs vLLM 0.10.2 or newer")
        return []
    logprobs = (choice.get("logprobs") or {}).get("token_logprobs") or [None] * len(ids)
    return [Token(token_id, logprob if with_logprobs else None) for token_id, logprob in zip(ids, logprobs)]
