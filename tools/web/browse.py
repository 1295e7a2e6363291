"""The tools `search`, `open_page` and `find` on the web: a search service and a fetcher in, tools out."""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated

from pydantic import Field

from v32.tools.function_tool import FunctionTool
from v32.tools.page import Page
from v32.tools.search import SearchProvider, search_tool
from v32.tools.tool import Tool, ToolError, ToolOutput
from v32.tools.web.extract import extract
from v32.tools.web.fetch import Fetched, Fetcher
from v32.tools.worker import run_in_worker

MAX_PAGES_KEPT = 32
MAX_PAGE_CHARS = 4 << 20

WebAddress = Annotated[str, Field(description="Web address, as in the search results.")]


class Browser:
    """Pages by web address, the last ones kept, so that paging and finding fetch nothing again."""

    def __init__(self, fetcher: Fetcher | None = None) -> None:
        self._fetcher = fetcher or Fetcher()
        self._pages: OrderedDict[str, Page] = OrderedDict()

    async def page(self, url: str) -> Page:
        """Raises `ToolError` for what cannot be opened."""
        if url not in self._pages:
            self._pages[url] = await _read(await self._fetcher.fetch(url), self._fetcher.policy.reading_bytes)
            while len(self._pages) > MAX_PAGES_KEPT:
                self._pages.popitem(last=False)
        self._pages.move_to_end(url)
        return self._pages[url]

    def tools(self) -> list[Tool]:
        async def open_page(
            id: WebAddress,
            start_line: Annotated[int, Field(ge=1)] = 1,
            num_lines: Annotated[int, Field(ge=1, le=200)] = 40,
        ) -> ToolOutput:
            page = await self.page(id)
            return ToolOutput(page.view(start_line, num_lines), data={"id": page.id, "num_lines": len(page.lines)})

        async def find(
            id: WebAddress,
            pattern: Annotated[str, Field(description="Text to look for; upper and lower case are the same.")],
        ) -> ToolOutput:
            page = await self.page(id)
            return ToolOutput(page.find(pattern), data={"id": page.id})

        return [
            FunctionTool(open_page, description="Read a web page, line by line.", safe_to_retry=True),
            FunctionTool(find, description="Find the lines of a web page that contain a text.", safe_to_retry=True),
        ]


def web_tools(search: SearchProvider, fetcher: Fetcher | None = None, *, topn: int = 5) -> list[Tool]:
    """`search`, `open_page` and `find` on the web."""
    return [search_tool(search, topn=topn, description="Search the web."), *Browser(fetcher).tools()]


async def _read(fetched: Fetched, memory_bytes: int) -> Page:
    """In a worker: a page made to keep a parser busy is stopped with the call, one made to fill memory at a limit."""

    def read() -> ToolOutput:
        try:
            text = extract(fetched)
        except MemoryError:
            raise ToolError(f"reading it takes more than {memory_bytes >> 20} MiB of memory; it was stopped") from None
        links = [f"[{number}] {link}" for number, link in enumerate(text.links)]
        parts = [text.text[:MAX_PAGE_CHARS], *(["Links:", *links] if links else [])]
        if len(text.text) > MAX_PAGE_CHARS:
            parts.append(f"(the page is longer; its first {MAX_PAGE_CHARS:,} characters are kept)")
        if fetched.truncated:
            parts.append(f"(the page is longer; its first {len(fetched.body):,} bytes were read)")
        page = Page.of(fetched.url, text.title, "\n".join(parts))
        return ToolOutput("\n".join(page.lines), data={"title": page.title})

    output = await run_in_worker(read, memory_bytes=memory_bytes)
    return Page(fetched.url, str(output.data["title"]), tuple(output.text.splitlines()))
