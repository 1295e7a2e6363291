"""A connection to an inference server: JSON out, a stream of JSON events in. Knows neither tokens nor which server.

A client lives as long as one request, so that a generator works from several event loops; closing the connection is
how a request is cancelled.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from v32.model_runtime.errors import GeneratorError

if TYPE_CHECKING:
    from collections.abc import Iterator

_CONNECT_SECONDS = 10.0


class Server:
    """An HTTP server; everything that goes wrong with it is a `GeneratorError` that names it."""

    def __init__(self, url: str, *, silence_seconds: float = 600.0, headers: Mapping[str, str] | None = None) -> None:
        """`silence_seconds`: how long the server may send nothing before a request counts as failed."""
        self.url = url.rstrip("/")
        self._silence_seconds = silence_seconds
        self._headers = dict(headers or {})

    def get(self, path: str) -> Any:
        """A JSON document; waits for it."""
        import httpx

        with self._failures(path), httpx.Client(**self._options()) as client:
            response = client.get(self.url + path)
            if response.is_error:
                raise self._refusal(path, response.status_code, response.text)
            return response.json()

    async def stream(self, path: str, payload: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The events of a server-sent stream until `[DONE]`; leaving early closes the connection."""
        import httpx

        with self._failures(path):
            async with (
                httpx.AsyncClient(**self._options()) as client,
                client.stream("POST", self.url + path, json=payload) as response,
            ):
                if response.is_error:
                    raise self._refusal(path, response.status_code, (await response.aread()).decode(errors="replace"))
                async for line in response.aiter_lines():
                    if not line.startswith("data:"):
                        continue
                    data = line.removeprefix("data:").strip()
                    if data == "[DONE]":
                        return
                    event = json.loads(data)
                    if isinstance(event, dict) and event.get("error"):
                        raise GeneratorError(f"{self.url}{path} failed: {_message(event)}")
                    yield event
        raise GeneratorError(f"{self.url}{path} ended its answer in the middle; look at the server's log")

    @contextmanager
    def _failures(self, path: str) -> Iterator[None]:
        import httpx

        try:
            yield
        except httpx.TimeoutException as error:
            raise GeneratorError(
                f"{self.url}{path} sent nothing for {self._silence_seconds:g} s ({type(error).__name__}); "
                "is the server overloaded?"
            ) from error
        except httpx.HTTPError as error:
            raise GeneratorError(f"cannot reach {self.url}{path}: {error}; is the server running there?") from error
        except ValueError as error:
            raise GeneratorError(
                f"{self.url}{path} did not answer in JSON: {error}; is it the right server?"
            ) from error

    def _refusal(self, path: str, status: int, body: str) -> GeneratorError:
        try:
            reason = _message(json.loads(body))
        except ValueError:
            reason = body[:500]
        return GeneratorError(f"{self.url}{path} answered {status}: {reason}")

    def _options(self) -> dict[str, Any]:
        import httpx

        timeout = httpx.Timeout(self._silence_seconds, connect=_CONNECT_SECONDS)
        verify = self._ssl_context if self.url.startswith("https") else False
        return {"timeout": timeout, "verify": verify, "headers": self._headers, "trust_env": False}

    @cached_property
    def _ssl_context(self) -> ssl.SSLContext:
        return ssl.create_default_context()


def _message(answer: Any) -> str:
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return str(error)[:500]
