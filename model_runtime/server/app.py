"""The web application: `GET /v1/models`, `GET /health`, `POST /v1/chat/completions`, whole or as server-sent events.

A request is refused before anything is generated, with the status and the words of what is wrong with it. A client
that goes away stops its generation. Every request is a sequence of the same engine, so that they are batched.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from v32.model_runtime.chat import ChatModel
from v32.model_runtime.errors import (
    ContextOverflowError,
    EncodingError,
    GeneratorError,
    ModelRuntimeError,
    ToolsNotSupportedError,
    UnsupportedSchemaError,
)
from v32.model_runtime.messages import Completion, Delta
from v32.model_runtime.server.reply import Reply
from v32.model_runtime.server.request import ChatRequest

Items = AsyncGenerator[Delta | Completion, None]
_REFUSALS = (EncodingError, UnsupportedSchemaError, ToolsNotSupportedError, ContextOverflowError, ValueError)
_DISCONNECT_POLL_SECONDS = 0.5


def create_app(model: ChatModel, *, name: str, api_key: str | None = None) -> Starlette:
    """`name` is what clients ask for as `model`; with `api_key` they have to send it as their bearer token."""
    service = _Service(model, name)
    routes = [
        Route("/health", service.health),
        Route("/v1/models", _guarded(service.models, api_key)),
        Route("/v1/chat/completions", _guarded(service.complete, api_key), methods=["POST"]),
    ]
    return Starlette(routes=routes)


class _Service:
    def __init__(self, model: ChatModel, name: str) -> None:
        self.model = model
        self.name = name

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(self, _: Request) -> Response:
        card = {"id": self.name, "object": "model", "created": 0, "owned_by": "v32"}
        return JSONResponse({"object": "list", "data": [{**card, "max_model_len": self.model.max_context}]})

    async def complete(self, http: Request) -> Response:
        try:
            request = ChatRequest.read(await http.body())
            if request.model != self.name:
                return _error(
                    404, f"no model {request.model!r} here; this server serves {self.name!r}", "model_not_found"
                )
            prompt = request.prompt(self.model)
            items = self.model.complete(
                prompt,
                tool_choice=request.choice(),
                params=request.sampling(self.model),
                parallel_calls=request.parallel_tool_calls,
            )
            reply = Reply(self.name, prompt.next_call_index)
            if not request.stream:
                return await self._whole(http, items, reply)
            # The first item is waited for, so that what is refused gets its status and not a stream that breaks.
            first = await anext(items)
            events = _events(_chained(first, items), reply, with_usage=request.includes_usage)
            return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        except ContextOverflowError as error:
            return _error(400, str(error), "context_length_exceeded")
        except _REFUSALS as error:
            return _error(400, str(error))
        except GeneratorError as error:
            return _error(500, str(error), kind="server_error")

    async def _whole(self, http: Request, items: Items, reply: Reply) -> Response:
        """The completion at its end; `499` to nobody if the client has gone away by then."""
        completion, failure = None, None
        async with anyio.create_task_group() as group:
            group.start_soon(_cancel_when_gone, http, group.cancel_scope)
            try:
                completion = await _last(items)
            except Exception as error:  # raised below, not as a member of a group
                failure = error
            group.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return Response(status_code=499) if completion is None else JSONResponse(reply.whole(completion))


async def _last(items: Items) -> Completion:
    async with aclosing(items):
        async for item in items:
            if isinstance(item, Completion):
                return item
    raise AssertionError("a chat model ends its stream with a Completion")


async def _cancel_when_gone(http: Request, scope: anyio.CancelScope) -> None:
    while not await http.is_disconnected():
        await anyio.sleep(_DISCONNECT_POLL_SECONDS)
    scope.cancel()


async def _chained(first: Delta | Completion, rest: Items) -> Items:
    async with aclosing(rest):
        yield first
        async for item in rest:
            yield item


async def _events(items: Items, reply: Reply, *, with_usage: bool) -> AsyncIterator[str]:
    """Server-sent events; a failure in the middle is an event too, for the status has long been sent."""
    yield _event(reply.opening())
    try:
        async with aclosing(items):
            async for item in items:
                if isinstance(item, Completion):
                    yield _event(reply.closing(item))
                    if with_usage:
                        yield _event(reply.usage(item))
                elif (piece := reply.piece(item)) is not None:
                    yield _event(piece)
    except ModelRuntimeError as error:
        yield _event({"error": {"message": str(error), "type": "server_error"}})
        return
    yield "data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _error(status: int, message: str, code: str | None = None, kind: str = "invalid_request_error") -> Response:
    return JSONResponse({"error": {"message": message, "type": kind, "code": code}}, status_code=status)


def _guarded(
    endpoint: Callable[[Request], Awaitable[Response]], api_key: str | None
) -> Callable[[Request], Awaitable[Response]]:
    async def checked(http: Request) -> Response:
        if api_key is not None:
            sent = http.headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(sent.encode(), api_key.encode()):
                return _error(
                    401, "the API key is missing or wrong; send it as `Authorization: Bearer …`", "invalid_api_key"
                )
        return await endpoint(http)

    return checked
