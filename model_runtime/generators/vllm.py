"""vLLM as a `TokenGenerator`: `POST /v1/completions` with a prompt of token ids, token ids back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from v32.model_runtime.errors import GeneratorError
from v32.model_runtime.generators.generator import SamplingParams, Token, TokenConstraint
from v32.model_runtime.generators.remote import Ending, RemoteGenerator, served_context
from v32.model_runtime.generators.server import Server
from v32.model_runtime.grammar.server import ebnf_of


class VLLMGenerator(RemoteGenerator):
    """One model of a vLLM server. The server has to return token ids (vLLM 0.10.2 or newer)."""

    kind = "vllm"
    path = "/v1/completions"

    @classmethod
    def connect(cls, server: Server, model: str | None = None, max_context: int | None = None) -> VLLMGenerator:
        """Ask the server for its model and context; `GeneratorError` if it does not answer or has no such model."""
        offered: dict[str, Any] = {card["id"]: card for card in server.get("/v1/models")["data"]}
        model = model or next(iter(offered), "")
        if model not in offered:
            raise GeneratorError(f"{server.url} has no model {model!r}; it serves {', '.join(offered) or 'none'}")
        return cls(server, model, served_context(server, [offered[model].get("max_model_len")], max_context))

    def _request(
        self, prompt_ids: Sequence[int], params: SamplingParams, constraint: TokenConstraint | None, num_new: int
    ) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": self.model,
            "prompt": list(prompt_ids),
            "max_tokens": num_new,
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

    def _reply(self, params: SamplingParams) -> _Reply:
        return _Reply(params.logprobs)


class _Reply:
    """Every event holds the new ids; the last choice says how it ended, the last event what was cached."""

    def __init__(self, with_logprobs: bool) -> None:
        self._with_logprobs = with_logprobs
        self._choice: Mapping[str, Any] = {}
        self._usage: Mapping[str, Any] = {}

    def tokens(self, event: Mapping[str, Any]) -> list[Token]:
        self._usage = event.get("usage") or self._usage
        tokens = []
        for self._choice in event.get("choices", ()):
            tokens += self._tokens_of(self._choice)
        return tokens

    def ending(self) -> Ending:
        reason, stop_id = self._choice.get("finish_reason"), self._choice.get("stop_reason")
        if reason not in ("stop", "length"):
            return Ending(None, failure=f"ended with finish_reason {reason!r}; look at its log")
        cached = (self._usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return Ending(reason, stop_id if isinstance(stop_id, int) else None, cached)

    def _tokens_of(self, choice: Mapping[str, Any]) -> list[Token]:
        ids = choice.get("token_ids")
        if ids is None:
            if choice.get("text"):
                raise GeneratorError("the server sends text without token ids; it needs vLLM 0.10.2 or newer")
            return []
        logprobs = (choice.get("logprobs") or {}).get("token_logprobs") or [None] * len(ids)
        return [Token(token_id, logprob if self._with_logprobs else None) for token_id, logprob in zip(ids, logprobs)]
