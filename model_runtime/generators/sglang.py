"""SGLang as a `TokenGenerator`: `POST /generate` with `input_ids`, `output_ids` back."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from v32.model_runtime.errors import GeneratorError
from v32.model_runtime.generators.generator import SamplingParams, Token, TokenConstraint
from v32.model_runtime.generators.remote import Ending, RemoteGenerator, served_context
from v32.model_runtime.generators.server import Server
from v32.model_runtime.grammar.server import ebnf_of


class SGLangGenerator(RemoteGenerator):
    """The model of an SGLang server."""

    kind = "sglang"
    path = "/generate"

    @classmethod
    def connect(cls, server: Server, model: str | None = None, max_context: int | None = None) -> SGLangGenerator:
        """Ask the server for its model and context; `GeneratorError` if it does not answer or has another model."""
        served = str(server.get("/get_model_info")["model_path"])
        if model is not None and model != served:
            raise GeneratorError(f"{server.url} has no model {model!r}; it serves {served}")
        info = server.get("/get_server_info")
        bounds = [info.get("context_length"), info.get("max_req_input_len")]
        return cls(server, served, served_context(server, bounds, max_context))

    def _request(
        self, prompt_ids: Sequence[int], params: SamplingParams, constraint: TokenConstraint | None, num_new: int
    ) -> dict[str, Any]:
        sampling: dict[str, Any] = {
            "max_new_tokens": num_new,
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

    def _reply(self, params: SamplingParams) -> _Reply:
        return _Reply(params.logprobs)


class _Reply:
    """What has come so far. Servers send either all ids again with every event, or only the new ones."""

    def __init__(self, with_logprobs: bool) -> None:
        self._ids: list[int] = []
        self._meta: Mapping[str, Any] = {}
        self._with_logprobs = with_logprobs

    def tokens(self, event: Mapping[str, Any]) -> list[Token]:
        ids = event.get("output_ids")
        self._meta = event.get("meta_info") or self._meta
        if ids is None:
            raise GeneratorError("the server sends no output_ids; it needs SGLang 0.4.4 or newer")
        new = ids[len(self._ids) :] if self._is_cumulative(ids) else ids
        self._ids += new
        return [Token(token_id, logprob) for token_id, logprob in zip(new, self._logprobs(len(new)))]

    def ending(self) -> Ending:
        reason: Mapping[str, Any] = self._meta.get("finish_reason") or {}
        kind, stop_id = reason.get("type"), reason.get("matched")
        if kind not in ("stop", "length"):
            return Ending(None, failure=f"gave up: {reason.get('message') or f'finish_reason {reason or None!r}'}")
        cached = self._meta.get("cached_tokens") or 0
        return Ending(kind, stop_id if isinstance(stop_id, int) else None, cached)

    def _is_cumulative(self, ids: Sequence[int]) -> bool:
        total = self._meta.get("completion_tokens")
        return len(ids) == total if isinstance(total, int) else ids[: len(self._ids)] == self._ids

    def _logprobs(self, count: int) -> Sequence[float | None]:
        """Those of the newest tokens."""
        entries = self._meta.get("output_token_logprobs") or () if self._with_logprobs else ()
        logprobs = [entry[0] for entry in entries]
        return logprobs[-count:] if count and len(logprobs) >= count else [None] * count
