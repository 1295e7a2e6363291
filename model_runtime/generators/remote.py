"""A `TokenGenerator` whose tokens a server makes. What differs between servers is a request and how its reply reads."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Literal, NamedTuple, Protocol

from v32.model_runtime.errors import ContextOverflowError, GeneratorError
from v32.model_runtime.generators.generator import Finished, SamplingParams, Token, TokenConstraint, context_within
from v32.model_runtime.generators.server import Server


class Ending(NamedTuple):
    """How a reply ended: why, with which stop token, and how much of the prompt the server had cached."""

    reason: Literal["stop", "length"] | None
    stop_id: int | None = None
    cached_tokens: int = 0
    failure: str = ""
    """In words, where there is no reason."""


class Reply(Protocol):
    """One reply while it comes."""

    def tokens(self, event: Mapping[str, Any]) -> list[Token]:
        """The new tokens of an event."""

    def ending(self) -> Ending:
        """After the last event."""


class RemoteGenerator(ABC):
    """The model of a server. Each kind of server says how a request is written and how its reply is read."""

    kind: str
    path: str

    def __init__(self, server: Server, model: str, max_context: int) -> None:
        self.model = model
        self._server = server
        self._max_context = max_context
        self._is_closed = False

    @property
    def max_context(self) -> int:
        return self._max_context

    async def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, constraint: TokenConstraint | None = None
    ) -> AsyncGenerator[Token | Finished, None]:
        num_new = self._num_new(prompt_ids, params)
        request, reply = self._request(prompt_ids, params, constraint, num_new), self._reply(params)
        started, first, last_id = time.perf_counter(), None, None
        async with aclosing(self._server.stream(self.path, request)) as events:
            async for event in events:
                for token in reply.tokens(event):
                    first, last_id = first or time.perf_counter(), token.id
                    yield token
        ending = reply.ending()
        if ending.reason is None:
            raise GeneratorError(f"{self._server.url}{self.path} {ending.failure}")
        if ending.reason == "stop" and ending.stop_id not in (None, last_id):
            yield Token(ending.stop_id)  # servers keep the token that they stop at to themselves
        now = time.perf_counter()
        yield Finished(
            ending.reason,
            prompt_tokens=len(prompt_ids),
            cached_tokens=ending.cached_tokens,
            prefill_seconds=(first or now) - started,
            decode_seconds=now - (first or now),
        )

    async def aclose(self) -> None:
        self._is_closed = True

    def describe(self) -> dict[str, Any]:
        return {
            "generator": self.kind,
            "name": self.model,
            "fingerprint": None,
            "dtype": None,
            "device": self._server.url,
            "max_context": self._max_context,
        }

    def _num_new(self, prompt_ids: Sequence[int], params: SamplingParams) -> int:
        """How many tokens may be produced."""
        if self._is_closed:
            raise RuntimeError("the generator is closed; load the model again")
        if len(prompt_ids) >= self._max_context:
            raise ContextOverflowError(len(prompt_ids), self._max_context)
        room = self._max_context - len(prompt_ids)
        return room if params.max_new_tokens is None else min(room, params.max_new_tokens)

    @abstractmethod
    def _request(
        self, prompt_ids: Sequence[int], params: SamplingParams, constraint: TokenConstraint | None, num_new: int
    ) -> dict[str, Any]:
        """What is sent."""

    @abstractmethod
    def _reply(self, params: SamplingParams) -> Reply:
        """What reads the answer."""


def served_context(server: Server, bounds: Sequence[Any], asked: int | None) -> int:
    """The context to use, given what the server says of its own; `GeneratorError` if nobody says."""
    known = [bound for bound in bounds if isinstance(bound, int)]
    if not known and asked is None:
        raise GeneratorError(f"{server.url} does not say how long its context is; give max_context")
    return context_within({f"the context of {server.url}": min(known)} if known else {}, asked)
