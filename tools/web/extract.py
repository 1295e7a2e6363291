"""A fetched page in, readable text out: the main part of HTML with its links, the text of a PDF, text as it is."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from html.parser import HTMLParser
from urllib.parse import urljoin

from v32.tools.tool import ToolError
from v32.tools.web.fetch import Fetched

MAX_LINKS = 200
MAX_DEPTH = 200

_SKIPPED = {
    "script", "style", "noscript", "template", "svg", "math", "iframe", "object", "canvas", "select", "button", "form",
    "dialog",
}  # fmt: skip
_FURNITURE = {"nav", "header", "footer", "aside"}
_BLOCKS = {
    "p", "div", "section", "article", "main", "ul", "ol", "dl", "dt", "dd", "table", "tr", "blockquote", "figure",
    "figcaption", "pre", "hr", "address", "details", "summary", "caption", "body", "html",
}  # fmt: skip
_HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
_ROWS = {"tr", "dt", "dd", "li"}
_CELLS = {"td", "th"}
_VOID = {"br", "hr", "img", "input", "meta", "link", "wbr", "source", "track", "area", "base", "col", "embed", "param"}
_HIDDEN, _FURNISHED, _MAIN = "#hidden", "#furniture", "#main"
_SPACE = re.compile(r"\s+")
_META_CHARSET = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?([A-Za-z0-9_-]{1,40})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class PageText:
    """`links[n]` is where `[n]` in the text leads."""

    title: str
    text: str
    links: list[str] = field(default_factory=list)


def extract(page: Fetched) -> PageText:
    """Raises `ToolError` for a PDF that cannot be read."""
    if page.content_type == "application/pdf":
        return PageText("", _pdf_text(page.body))
    text = _decoded(page)
    if page.content_type in ("text/html", "application/xhtml+xml"):
        return html_text(text, page.url)
    return PageText("", text)


def html_text(html: str, url: str = "") -> PageText:
    """The text of `<main>` or `<article>` if there is a good one, else of the body without its furniture."""
    reader = _Reader(url)
    reader.feed(html)
    reader.close()
    parts = reader.main if sum(map(len, reader.main)) >= 200 else reader.body
    text = "".join(parts)
    text = re.sub(r"[ \t\r\f\v\xa0]+\n", "\n", text)
    return PageText(" ".join(reader.title.split()), re.sub(r"\n{3,}", "\n\n", text).strip(), reader.links)


class _Reader(HTMLParser):
    """Collects text twice: everything of the body, and what stands in the main part."""

    def __init__(self, url: str) -> None:
        super().__init__(convert_charrefs=True)
        self.title = ""
        self.body: list[str] = []
        self.main: list[str] = []
        self.links: list[str] = []
        self._url = url
        self._numbers: dict[str, int] = {}
        self._open: list[str] = []
        self._inside: Counter[str] = Counter()
        self._link: int | None = None

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = dict(attributes)
        if tag not in _VOID and len(self._open) < MAX_DEPTH:
            is_hidden = "hidden" in named or named.get("aria-hidden") == "true"
            self._enter(f"{tag} {_HIDDEN}" if is_hidden else tag)
        self.handle_startendtag(tag, attributes)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = dict(attributes)
        if tag == "base" and named.get("href"):
            self._url = _joined(self._url, named["href"] or "") or self._url
        elif tag == "a" and named.get("href"):
            self._start_link(named["href"] or "")
        elif tag == "img" and named.get("alt"):
            self._add(f"(image: {named['alt']})")
        elif tag == "br":
            self._add("\n")
        elif tag == "li":
            self._add("\n- ")
        elif tag in _HEADINGS:
            self._add("\n\n" + "#" * int(tag[1]) + " ")
        elif tag in _BLOCKS:
            self._add("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag == "a" and self._link is not None:
            self._add(f" [{self._link}]")
            self._link = None
        elif tag in _CELLS:
            self._add(" | ")
        elif tag in _ROWS:
            self._add("\n")
        elif tag in _BLOCKS or tag in _HEADINGS:
            self._add("\n\n")
        self._leave(tag)

    def handle_data(self, data: str) -> None:
        if self._inside["title"] and not self._inside["svg"]:
            self.title += data
        else:
            self._add(data if self._inside["pre"] else _SPACE.sub(" ", data))

    def parse_marked_section(self, i: int, report: bool = True) -> int:
        """`<![` with a word that means nothing, over which the parser would fall, is skipped to the next `>`."""
        try:
            return super().parse_marked_section(i, report)
        except AssertionError:
            return self.parse_bogus_comment(i)

    def _enter(self, tag: str) -> None:
        self._open.append(tag)
        self._inside.update(_roles(tag))

    def _leave(self, tag: str) -> None:
        """Close the nearest open tag of that name, and what was left open inside it."""
        if not self._inside[tag]:
            return
        for i in range(len(self._open) - 1, -1, -1):
            if self._open[i].split(" ")[0] == tag:
                for left in self._open[i:]:
                    self._inside.subtract(_roles(left))
                del self._open[i:]
                return

    def _start_link(self, target: str) -> None:
        url = _joined(self._url, target)
        if not url or self._inside[_HIDDEN] or (url not in self._numbers and len(self.links) >= MAX_LINKS):
            return
        if url not in self._numbers:
            self._numbers[url] = len(self.links)
            self.links.append(url)
        self._link = self._numbers[url]

    def _add(self, text: str) -> None:
        if self._inside[_HIDDEN]:
            return
        if self._inside[_MAIN]:
            self._append(self.main, text)
        if not self._inside[_FURNISHED]:
            self._append(self.body, text)

    def _append(self, parts: list[str], text: str) -> None:
        at_start = not parts or parts[-1].endswith(("\n", " "))
        text = text.lstrip(" ") if at_start and not self._inside["pre"] else text
        if text:
            parts.append(text)


def _roles(tag: str) -> list[str]:
    """What an open tag means for the text inside it."""
    name, _, mark = tag.partition(" ")
    roles = [name]
    if mark or name in _SKIPPED:
        roles.append(_HIDDEN)
    if name in _FURNITURE:
        roles.append(_FURNISHED)
    if name in ("main", "article"):
        roles.append(_MAIN)
    return roles


def _joined(base: str, target: str) -> str:
    try:
        joined = urljoin(base, target.strip())
    except ValueError:
        return ""
    return joined.partition("#")[0] if joined.startswith(("http://", "https://")) else ""


def _decoded(page: Fetched) -> str:
    """By byte order mark, HTTP header, `<meta>`, in this order; else UTF-8."""
    if page.body.startswith((b"\xff\xfe", b"\xfe\xff")):
        return page.body.decode("utf-16", errors="replace")
    meta = _META_CHARSET.search(page.body[:4096])
    for charset in (page.charset, meta[1].decode() if meta else None):
        try:
            if charset:
                return page.body.decode(charset, errors="replace")
        except (LookupError, ValueError):  # unknown, or a codec that is not for text
            continue
    return page.body.decode("utf-8-sig", errors="replace")


def _pdf_text(data: bytes) -> str:
    try:
        import pypdf
    except ImportError:
        raise ToolError("PDF text needs pypdf, which is not installed here; open an HTML version of the page") from None
    import io

    try:
        pages = [page.extract_text() for page in pypdf.PdfReader(io.BytesIO(data)).pages]
    except MemoryError:
        raise
    except Exception as error:
        raise ToolError(f"the PDF cannot be read: {type(error).__name__}: {error}") from error
    return "\n\n".join(f"(page {number})\n{text.strip()}" for number, text in enumerate(pages, 1))
