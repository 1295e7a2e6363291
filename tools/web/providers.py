"""Web search services behind one interface: a query in, hits out. SearXNG, Brave, Tavily, Exa, Serper.

A service is a row of a table: where it listens, which variable holds its key, how a request is written and where in
the answer the results are. Busy services are asked again; what remains is a `ToolError` for the model, and a key that
is missing or refused a `ProviderError` for the operator.
"""

from __future__ import annotations

import html
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import anyio
import httpx

from v32.tools.errors import ProviderError
from v32.tools.gate import clean
from v32.tools.local_index import Hit
from v32.tools.tool import ToolError
from v32.tools.web.cassette import Cassette

MAX_ANSWER_BYTES = 4 << 20
MAX_PAUSE_SECONDS = 10.0
MAX_QUERY_CHARS, MAX_QUERY_WORDS = 400, 50
# Whose key, credit or settings they are: not what the model can do something about. 432 and 433 are Tavily's.
_FOR_THE_OPERATOR = {401, 402, 403, 432, 433}
_OF_THE_ACCOUNT = re.compile(r"subscription token|api.?key|credits", re.IGNORECASE)  # 422 of Brave, 400 of Serper
_TAG = re.compile(r"<[^<>]{0,200}>")


@dataclass(frozen=True, slots=True)
class Provider:
    """How one service is spoken to. `request(base_url, key, query, topn)` gives the arguments of an httpx request."""

    base_url: str
    variable: str
    request: Callable[[str, str, str, int], dict[str, Any]]
    results: tuple[str, ...]
    url: str = "url"
    snippet: str = "content"
    needs_key: bool = True
    remedy: str = ""


def _searxng(base: str, key: str, query: str, topn: int) -> dict[str, Any]:
    return {"method": "GET", "url": f"{base}/search", "params": {"q": query, "format": "json"}}


def _brave(base: str, key: str, query: str, topn: int) -> dict[str, Any]:
    headers = {"X-Subscription-Token": key, "Accept": "application/json"}
    params = {"q": _short(query), "count": min(topn, 20)}
    return {"method": "GET", "url": f"{base}/res/v1/web/search", "params": params, "headers": headers}


def _tavily(base: str, key: str, query: str, topn: int) -> dict[str, Any]:
    body = {"query": _short(query), "max_results": min(topn, 20)}
    return {"method": "POST", "url": f"{base}/search", "json": body, "headers": {"Authorization": f"Bearer {key}"}}


def _exa(base: str, key: str, query: str, topn: int) -> dict[str, Any]:
    body = {"query": query, "numResults": topn, "contents": {"text": {"maxCharacters": 300}}}
    return {"method": "POST", "url": f"{base}/search", "json": body, "headers": {"x-api-key": key}}


def _serper(base: str, key: str, query: str, topn: int) -> dict[str, Any]:
    body = {"q": query, "num": topn}
    return {"method": "POST", "url": f"{base}/search", "json": body, "headers": {"X-API-KEY": key}}


def _short(query: str) -> str:
    """A query that is too long would be refused."""
    return " ".join(query.split()[:MAX_QUERY_WORDS])[:MAX_QUERY_CHARS]


PROVIDERS: Mapping[str, Provider] = {
    "searxng": Provider(
        "",
        "SEARXNG_URL",
        _searxng,
        ("results",),
        needs_key=False,
        remedy="add json to search.formats in its settings.yml, and let its limiter pass this host",
    ),
    "brave": Provider(
        "https://api.search.brave.com", "BRAVE_API_KEY", _brave, ("web", "results"), snippet="description"
    ),
    "tavily": Provider("https://api.tavily.com", "TAVILY_API_KEY", _tavily, ("results",)),
    "exa": Provider("https://api.exa.ai", "EXA_API_KEY", _exa, ("results",), snippet="text"),
    "serper": Provider(
        "https://google.serper.dev", "SERPER_API_KEY", _serper, ("organic",), url="link", snippet="snippet"
    ),
}


class WebSearch:
    """A `SearchProvider` on one service. `per_second` spaces requests out; `attempts` counts the first one too."""

    def __init__(
        self,
        provider: Provider,
        *,
        key: str = "",
        base_url: str = "",
        cassette: Cassette | None = None,
        seconds: float = 15.0,
        attempts: int = 3,
        per_second: float | None = None,
    ) -> None:
        self._provider, self._key = provider, key
        self._base_url = (base_url or provider.base_url).rstrip("/")
        self._cassette = cassette or Cassette()
        self._seconds, self._attempts = seconds, attempts
        self._interval = 1 / per_second if per_second else 0.0
        self._next_start = 0.0

    async def search(self, query: str, topn: int) -> Sequence[Hit]:
        request = self._provider.request(self._base_url, self._key, query, topn)
        answer = await self._cassette.answer(self._described(query, topn), lambda: self._ask(request))
        return self._hits(answer)[:topn]

    def _described(self, query: str, topn: int) -> str:
        """The request in a recording: without its key, and the same wherever an instance stands."""
        request = self._provider.request(self._provider.base_url, "", query, topn)
        return json.dumps([request["method"], request["url"], request.get("params") or request.get("json")])

    async def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer as JSON, asked for again while the service is busy or out of reach."""
        problem = ""
        async with httpx.AsyncClient(timeout=self._seconds) as client:
            for attempt in range(self._attempts):
                await self._wait_for_turn()
                pause = min(0.5 * 2**attempt, MAX_PAUSE_SECONDS)
                try:
                    response = await _received(client, request)
                except httpx.HTTPError as error:
                    problem = f"cannot be reached ({error or type(error).__name__})"
                else:
                    if response.status_code < 400:
                        return _parsed(response)
                    problem = self._problem(response)
                    pause = _pause(response.headers.get("retry-after"), pause)
                if pause > MAX_PAUSE_SECONDS:
                    raise ToolError(f"the search service {problem}; it is busy for another {pause:.0f} s")
                if attempt + 1 < self._attempts:
                    await anyio.sleep(pause)
        raise ToolError(f"the search service {problem}; try again later")

    def _problem(self, response: httpx.Response) -> str:
        """What a refusal says. Raises `ProviderError` for the operator, `ToolError` where asking again is no use."""
        status, words = response.status_code, _words(response)
        problem = f"answered {status}{words and f' ({words})'}"
        if status in _FOR_THE_OPERATOR or (status in (400, 422) and _OF_THE_ACCOUNT.search(words)):
            remedy = self._provider.remedy or f"check {self._provider.variable} and what its account may do"
            raise ProviderError(f"{self._base_url} {problem}: {remedy}")
        if status != 429 and status < 500:
            raise ToolError(f"the search service {problem}; try other words")
        return problem

    async def _wait_for_turn(self) -> None:
        now = anyio.current_time()
        start = max(now, self._next_start)
        self._next_start = start + self._interval
        await anyio.sleep(start - now)

    def _hits(self, answer: Any) -> list[Hit]:
        for name in self._provider.results:
            answer = answer.get(name) if isinstance(answer, dict) else None
        rows = [row for row in answer or [] if isinstance(row, dict)] if isinstance(answer, list) else []
        hits = []
        for row in rows:
            url = _plain(row.get(self._provider.url))
            if url.startswith(("http://", "https://")):
                hits.append(Hit(url, _plain(row.get("title")), _plain(row.get(self._provider.snippet))[:300], url=url))
        return hits


def web_search(
    name: str, *, environment: Mapping[str, str] | None = None, cassette: Cassette | None = None, **options: Any
) -> WebSearch:
    """The service of that name, with its key (for SearXNG: its address) from the environment.

    Raises `ProviderError` for an unknown name and where the variable is not set, unless `cassette` only replays.
    """
    provider = PROVIDERS.get(name)
    if provider is None:
        raise ProviderError(f"unknown search service {name!r}; offered: {', '.join(PROVIDERS)}")
    value = (os.environ if environment is None else environment).get(provider.variable, "").strip()
    is_asked = cassette is None or cassette.mode != "replay"
    if not value and is_asked:
        what = "your key" if provider.needs_key else "the address of an instance, such as http://localhost:8080"
        raise ProviderError(f"search with {name} needs the environment variable {provider.variable}: set it to {what}")
    if provider.needs_key:
        return WebSearch(provider, key=value, cassette=cassette, **options)
    return WebSearch(provider, base_url=value, cassette=cassette, **options)


async def _received(client: httpx.AsyncClient, request: Mapping[str, Any]) -> httpx.Response:
    """The response, with no more of its body than is allowed, and a little."""
    async with client.stream(**request) as response:
        body = bytearray()
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) > MAX_ANSWER_BYTES:
                break
        headers = {name: value for name, value in response.headers.items() if name == "retry-after" and value.isascii()}
        return httpx.Response(response.status_code, headers=headers, content=bytes(body))


def _parsed(response: httpx.Response) -> dict[str, Any]:
    try:
        if len(response.content) > MAX_ANSWER_BYTES:
            raise ValueError("too long")
        answer = response.json()
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise ToolError("the search service answered with something that is no JSON object; try again later")
    return answer


def _words(response: httpx.Response) -> str:
    """Why the service refuses, wherever in its answer it says so."""
    try:
        answer = response.json()
        for key in ("error", "detail", "error", "message"):
            if isinstance(answer, dict):
                answer = answer.get(key, answer)
    except (ValueError, RecursionError):
        return ""
    return clean(answer[:200]) if isinstance(answer, str) else ""


def _pause(retry_after: str | None, otherwise: float) -> float:
    """Seconds, or a date, as HTTP has it."""
    text = (retry_after or "").strip()
    if text.replace(".", "", 1).isdecimal():
        return float(text)
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return otherwise


def _plain(value: Any) -> str:
    """Text without the markup that services put around found words."""
    return html.unescape(_TAG.sub("", value)).strip() if isinstance(value, str) else ""
