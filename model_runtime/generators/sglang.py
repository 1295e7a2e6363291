"""SGLang as a `TokenGenerator`: `POST /generate` with `input_ids`, `output_ids` back."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from v32.model_runtime.errors import ContextOverflowError, GeneratorError
from v32.model_runtime.generators.generator import Finished, SamplingParams, Token, TokenConstraint
from v32.model_runtime.generators.server import Server
from v32.model_runtime.grammar.server import ebnf_of

_PATH = "/generate"


class SGLangGenerator:
    """The model of an SGLang server."""

    def __init__(self, server: Server, model: str, max_context: int) -> None:
        self.model = model
        self._server = server
        self._max_context = max_context
        self._is_closed = False

    @classmethod
    def connect(cls, server: Server, model: str | None = None, max_context: int | None = None) -> SGLangGenerator:
        """Ask the server for its model and context; `GeneratorError` if it does not answer or has another model."""
        served = str(server.get("/get_model_info")["model_path"])
        if model is not None and model != served:
            raise GeneratorError(f"{server.url} has no model {model!r}; it serves {served}")
        info = server.get("/get_server_info")
        bounds = [info.get("context_length"), info.get("max_req_input_len"), max_context]
        bounds = [bound for bound in bounds if isinstance(bound, int)]
        if not bounds:
            raise GeneratorError(f"{server.url} does not say how long its context is; give max_context")
        return cls(server, served, min(bounds))

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
        output = _Output(params.logprobs)
        started, first = time.perf_counter(), None
        async with aclosing(self._server.stream(_PATH, self._request(prompt_ids, params, constraint))) as events:
            async for event in events:
                for token in output.tokens(event):
                    first = first or time.perf_counter()
                    yield token
        reason = output.finish_reason
        stop_id = reason.get("matched")
        if reason.get("type") == "stop" and isinstance(stop_id, int) and output.ids[-1:] != [stop_id]:
            yield Token(stop_id)
        if reason.get("type") not in ("stop", "length"):
            message = reason.get("message") or f"finish_reason {reason or None!r}"
            raise GeneratorError(f"{self._server.url}{_PATH} gave up: {message}")
        now = time.perf_counter()
        yield Finished(
            "stop" if reason["type"] == "stop" else "length",
            prompt_tokens=len(prompt_ids),
            cached_tokens=output.meta.get("cached_tokens") or 0,
            prefill_seconds=(first or now) - started,
            decode_seconds=now - (first or now),
        )

    async def aclose(self) -> None:
        self._is_closed = True

    def describe(self) -> dict[str, Any]:
        return {
            "generator": "sglang",
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
        sampling: dict[str, Any] = {
            "max_new_tokens": room if params.max_new_tokens is None else min(room, params.max_new_tokens),
            "temperature": params.temperature,
            "top_p": params.top_p,
            "stop_token_ids": list(params.stop_token_ids),
            "skip_special_tokens": False,
            "no_stop_trim": True,
        }
        if params.seed is not None:
            sampling["sampling_seed"] = params.seed
        if constraint is not None:
            sampling["ebnf"] = ebnf_of(constraint)
        return {
            "rid": uuid.uuid4().hex,
            "input_ids": list(prompt_ids),
            "sampling_params": sampling,
            "return_logprob": params.logprobs,
            "stream": True,
        }


class _Output:
    """What has come so far. Servers send either all ids again with every event, or only the new ones."""

    def __init__(self, with_logprobs: bool) -> None:
        self.ids: list[int] = []
        self.meta: Mapping[str, Any] = {}
        self._with_logprobs = with_logprobs

    @property
    def finish_reason(self) -> Mapping[str, Any]:
        return self.meta.get("finish_reason") or {}

    def tokens(self, event: Mapping[str, Any]) -> list[Token]:
        """The new tokens of an event."""
        ids = event.get("output_ids")
        self.meta = event.get("meta_info") or self.meta
        if ids is None:
            raise GeneratorError("the server sends no output_ids; it needs SGLang 0.4.4 or newer")
        total = self.meta.get("completion_tokens")
        is_cumulative = len(ids) == total if isinstance(total, int) else ids[: len(self.ids)] == self.ids
        new = ids[len(self.ids) :] if is_cumulative else ids
        logprobs = [entry[0] for entry in self.meta.get("output_token_logprobs") or ()] if self._with_logprobs else []
        logprobs = logprobs[-len(new) :] if new and len(logprobs) >= len(new) else [None] * len(new)
        self.ids += new
        return [Token(token_id, logprob) for token_id, logprob in zip(new, logprobs)]
