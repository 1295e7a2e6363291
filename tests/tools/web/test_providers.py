from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from v32.tools import Hit, ProviderError, ToolContext, ToolError, Toolset, search_tool
from v32.tools.web import PROVIDERS, Cassette, WebSearch, web_search

pytestmark = pytest.mark.anyio

ROW = {"title": "A <b>title</b>", "url": "https://a.test/", "content": "x &amp; y"}
# What each service answers, in its own format, and the path it listens on.
SERVICES: dict[str, tuple[str, Any]] = {
    "searxng": ("/search", {"query": "q", "results": [ROW, {"title": "no url"}, "nonsense", ROW]}),
    "brave": (
        "/res/v1/web/search",
        {"type": "search", "web": {"results": [{**ROW, "description": "x &amp; <strong>y</strong>"}]}},
    ),
    "tavily": ("/search", {"query": "q", "answer": None, "results": [{**ROW, "score": 0.9}]}),
    "exa": ("/search", {"requestId": "1", "results": [{**ROW, "id": "1", "text": "x & y"}]}),
    "serper": (
        "/search",
        {"organic": [{"title": "A title", "link": "https://a.test/", "snippet": "x & y", "position": 1}]},
    ),
}


def answers(site: Any, path: str, body: Any, status: int = 200, **headers: str) -> None:
    site.page(path, json.dumps(body), status, Content_Type="application/json", **headers)


def client(site: Any, name: str, **options: Any) -> WebSearch:
    return WebSearch(PROVIDERS[name], key="secret-key", base_url=site.url, **options)


@pytest.mark.parametrize("name", list(PROVIDERS))
async def test_each_service_is_asked_in_its_own_way(site: Any, name: str) -> None:
    path, body = SERVICES[name]
    answers(site, path, body)
    hits = await client(site, name).search("what is é?", 1)
    assert hits == [Hit("https://a.test/", "A title", "x & y", url="https://a.test/")]
    request = site.requests[0]
    sent = {key: values[0] for key, values in parse_qs(urlsplit(request.path).query).items()}
    sent |= json.loads(request.body or b"{}")
    assert sent.get("q", sent.get("query")) == "what is é?"
    if name == "searxng":
        assert sent["format"] == "json"
    else:
        keys = ("x-subscription-token", "authorization", "x-api-key")
        assert next(request.headers[key] for key in keys if key in request.headers).endswith("secret-key")
        assert int(next(sent[key] for key in ("count", "max_results", "numResults", "num") if key in sent)) == 1


async def test_the_model_sees_hits_as_everywhere(site: Any, context: ToolContext) -> None:
    answers(site, *SERVICES["tavily"])
    tools = Toolset([search_tool(client(site, "tavily"), description="Search the web.")])
    assert (await tools.run("search", {"query": "q"}, context)).text == "[https://a.test/] A title: x & y"


async def test_a_busy_service_is_asked_again(site: Any) -> None:
    path, body = SERVICES["serper"]
    answers(site, path, body)
    well = site.answers[path]
    answers(site, path, {}, 429, Retry_After="0.01")
    busy = site.answers[path]
    site.answers[path] = lambda request: (busy if len(site.requests) < 3 else well)(request)
    assert len(await client(site, "serper").search("q", 5)) == 1
    assert len(site.requests) == 3


@pytest.mark.parametrize(
    ("status", "body", "error", "message"),
    [
        (500, {}, ToolError, "the search service answered 500; try again later"),
        (400, {}, ToolError, "the search service answered 400; try other words"),
        (401, {}, ProviderError, "answered 401: check BRAVE_API_KEY and what its account may do"),
        (200, [1], ToolError, "no JSON object"),
        (200, {"x": "y" * (5 << 20)}, ToolError, "no JSON object"),
    ],
)
async def test_failures_are_told(site: Any, status: int, body: Any, error: type[Exception], message: str) -> None:
    answers(site, "/res/v1/web/search", body, status, Retry_After="0.01")
    with pytest.raises(error, match=message):
        await client(site, "brave", attempts=2).search("q", 5)
    assert len(site.requests) == (2 if status == 500 else 1)


# What each service says where it refuses, in its own format.
REFUSALS: list[tuple[str, int, Any, type[Exception], str]] = [
    ("brave", 422, {"error": {"code": "SUBSCRIPTION_TOKEN_INVALID", "detail": "The subscription token is invalid."}},
     ProviderError, r"answered 422 \(The subscription token is invalid\.\): check BRAVE_API_KEY"),
    ("brave", 422, {"type": "ErrorResponse", "error": {"detail": "Unable to validate request parameter(s)"}},
     ToolError, r"answered 422 \(Unable to validate request parameter\(s\)\); try other words"),
    ("tavily", 401, {"detail": {"error": "Unauthorized: invalid API key."}}, ProviderError, "TAVILY_API_KEY"),
    ("tavily", 432, {"detail": {"error": "This request exceeds your plan's set usage limit."}},
     ProviderError, "exceeds your plan's set usage limit"),
    ("tavily", 400, {"detail": {"error": "Query is too long."}}, ToolError, r"answered 400 \(Query is too long\.\)"),
    ("exa", 402, {"requestId": "1", "error": "You have no credits left.", "tag": "NO_MORE_CREDITS"},
     ProviderError, r"\(You have no credits left\.\): check EXA_API_KEY"),
    ("serper", 403, {"message": "Unauthorized.", "statusCode": 403}, ProviderError, r"403 \(Unauthorized\.\)"),
    ("tavily", 401, {"detail": {"error": "\x1b[31mno\x1b[0m"}}, ProviderError, r"answered 401 \(no\): check"),
    ("serper", 400, {"message": "Not enough credits", "statusCode": 400}, ProviderError, "SERPER_API_KEY"),
    ("searxng", 403, "<title>403 Forbidden</title>", ProviderError, "add json to search.formats in its settings.yml"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "status", "body", "error", "message"), REFUSALS)
async def test_refusals_are_told_in_the_words_of_the_service(
    site: Any, name: str, status: int, body: Any, error: type[Exception], message: str
) -> None:
    answers(site, SERVICES[name][0], body, status)
    with pytest.raises(error, match=message):
        await client(site, name).search("q", 5)
    assert len(site.requests) == 1


@pytest.mark.parametrize(
    ("retry_after", "requests", "message"),
    [
        ("0", 2, "answered 429; try again later"),
        ("soon", 2, "answered 429; try again later"),
        ("nan", 2, "answered 429; try again later"),
        ("\xb2", 2, "answered 429; try again later"),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 2, "answered 429; try again later"),
        ("Wed, 21 Oct 2199 07:28:00 GMT", 1, r"answered 429; it is busy for another \d+ s"),
        ("3600", 1, "answered 429; it is busy for another 3600 s"),
    ],
)
async def test_a_busy_service_says_how_long_to_wait(site: Any, retry_after: str, requests: int, message: str) -> None:
    answers(site, "/search", {}, 429, Retry_After=retry_after)
    with pytest.raises(ToolError, match=message):
        await client(site, "exa", attempts=2).search("q", 5)
    assert len(site.requests) == requests


@pytest.mark.parametrize("name", ["brave", "tavily"])
async def test_queries_are_kept_to_what_the_service_takes(site: Any, name: str) -> None:
    answers(site, *SERVICES[name])
    await client(site, name).search("word " * 60 + "x" * 500, 1)
    request = site.requests[0]
    sent = parse_qs(urlsplit(request.path).query).get("q") or [json.loads(request.body)["query"]]
    assert len(sent[0]) <= 400
    assert len(sent[0].split()) <= 50


@pytest.mark.parametrize(
    "body", [{}, {"web": None}, {"web": {"results": {"a": 1}}}, {"web": []}, {"web": {"results": [{"url": 3}]}}]
)
async def test_odd_answers_are_no_results(site: Any, body: Any) -> None:
    answers(site, "/res/v1/web/search", body)
    assert await client(site, "brave").search("q", 5) == []


async def test_out_of_reach(site: Any) -> None:
    search = WebSearch(PROVIDERS["searxng"], base_url="http://127.0.0.1:1", attempts=1)
    with pytest.raises(ToolError, match="cannot be reached"):
        await search.search("q", 1)


async def test_requests_are_spaced_out(site: Any) -> None:
    import time

    answers(site, *SERVICES["exa"])
    search = client(site, "exa", per_second=10)
    start = time.perf_counter()
    for _ in range(3):
        await search.search("q", 1)
    assert time.perf_counter() - start >= 0.2


async def test_searches_are_recorded_without_the_key(site: Any, tmp_path: Path) -> None:
    answers(site, *SERVICES["exa"])
    first = await client(site, "exa", cassette=Cassette(tmp_path, "record")).search("q", 1)
    replay = web_search("exa", environment={}, cassette=Cassette(tmp_path, "replay"))
    assert await replay.search("q", 1) == first
    assert all("secret" not in file.read_text() for file in tmp_path.iterdir())
    with pytest.raises(ToolError, match="is not in the recording"):
        await replay.search("other", 1)


async def test_a_recording_holds_wherever_the_instance_stood(site: Any, tmp_path: Path) -> None:
    answers(site, *SERVICES["searxng"])
    first = await client(site, "searxng", cassette=Cassette(tmp_path, "record")).search("q", 1)
    elsewhere = {"SEARXNG_URL": "http://other.test"}
    replay = web_search("searxng", environment=elsewhere, cassette=Cassette(tmp_path, "replay"))
    assert await replay.search("q", 1) == first


def test_what_is_not_configured_says_what_to_set() -> None:
    with pytest.raises(
        ProviderError, match="search with brave needs the environment variable BRAVE_API_KEY: set it to"
    ):
        web_search("brave", environment={})
    with pytest.raises(ProviderError, match="SEARXNG_URL: set it to the address of an instance"):
        web_search("searxng", environment={"SEARXNG_URL": " "})
    with pytest.raises(
        ProviderError, match="unknown search service 'bing'; offered: searxng, brave, tavily, exa, serper"
    ):
        web_search("bing")
    assert isinstance(web_search("exa", environment={"EXA_API_KEY": "k"}, per_second=1), WebSearch)
