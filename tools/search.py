"""Tools to look things up in documents: `search`, `open_page`, `find`. The index in, tools out.

What the model reads is fixed, because models are trained on it:

    [<id>] <title>: <snippet>          a hit of a document with a title
    [<id>] <snippet>                   and without one; hits are joined by newlines
    No results.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Annotated, Protocol

import anyio.to_thread
from pydantic import Field

from v32.tools.function_tool import FunctionTool
from v32.tools.local_index import Hit, LocalIndex
from v32.tools.page import Page
from v32.tools.tool import Tool, ToolError, ToolOutput

NO_RESULTS = "No results."
MAX_RESULTS = 50


class SearchProvider(Protocol):
    """Whatever finds documents for a query: a web search service, or an index behind one."""

    async def search(self, query: str, topn: int) -> Sequence[Hit]:
        """At most `topn` hits, best first. Raises `ToolError` for what the model may repair or wait out."""


def search_tool(
    index: LocalIndex | SearchProvider,
    *,
    topn: int = 5,
    description: str = "Search the documents.",
    highlight: bool = False,
    timeout: float | None = None,
) -> Tool:
    """The tool `search(query, topn)`; `topn` is what the model gets when it does not ask for a number."""

    async def search(
        query: Annotated[str, Field(description="Words to look for.")],
        topn: Annotated[int, Field(description="Number of results.", ge=1, le=MAX_RESULTS)] = topn,
    ) -> ToolOutput:
        hits = await _search(index, query, topn, highlight)
        return ToolOutput(format_hits(hits), data={"ids": [hit.id for hit in hits]})

    return FunctionTool(search, description=description, timeout=timeout, safe_to_retry=True)


def open_page_tool(index: LocalIndex) -> Tool:
    """The tool `open_page(id, start_line, num_lines)` on the documents of an index."""

    async def open_page(
        id: Annotated[str, Field(description="Document id, as in the search results.")],
        start_line: Annotated[int, Field(ge=1)] = 1,
        num_lines: Annotated[int, Field(ge=1, le=200)] = 40,
    ) -> ToolOutput:
        page = await anyio.to_thread.run_sync(_page, index, id)
        return ToolOutput(page.view(start_line, num_lines), data={"id": page.id, "num_lines": len(page.lines)})

    return FunctionTool(open_page, description="Read a document, line by line.", safe_to_retry=True)


def find_tool(index: LocalIndex) -> Tool:
    """The tool `find(id, pattern)` on the documents of an index."""

    async def find(
        id: Annotated[str, Field(description="Document id, as in the search results.")],
        pattern: Annotated[str, Field(description="Text to look for; upper and lower case are the same.")],
    ) -> ToolOutput:
        page = await anyio.to_thread.run_sync(_page, index, id)
        return ToolOutput(page.find(pattern), data={"id": page.id})

    return FunctionTool(find, description="Find the lines of a document that contain a text.", safe_to_retry=True)


def document_tools(index: LocalIndex, *, topn: int = 5) -> list[Tool]:
    """`search`, `open_page` and `find` on one index."""
    return [search_tool(index, topn=topn), open_page_tool(index), find_tool(index)]


def format_hits(hits: Sequence[Hit]) -> str:
    return "\n".join(_line(hit) for hit in hits) or NO_RESULTS


def _line(hit: Hit) -> str:
    title, snippet = " ".join(hit.title.split()), " ".join(hit.snippet.split())
    return f"[{hit.id}] {title}: {snippet}" if title else f"[{hit.id}] {snippet}"


async def _search(index: LocalIndex | SearchProvider, query: str, topn: int, highlight: bool) -> Sequence[Hit]:
    if isinstance(index, LocalIndex):
        return await anyio.to_thread.run_sync(lambda: index.search(query, topn, highlight=highlight))
    found = index.search(query, topn)
    return await found if inspect.isawaitable(found) else found


def _page(index: LocalIndex, id: str) -> Page:
    document = index.get(id) or index.get(id.strip().strip("[]"))
    if document is None:
        closest = index.closest_id(id)
        hint = f"; did you mean {closest!r}?" if closest else "; use an id from the search results"
        raise ToolError(f"unknown document {id[:200]!r}{hint}")
    return Page.of(document.id, document.title, document.text)
