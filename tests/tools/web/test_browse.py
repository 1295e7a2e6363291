from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from v32.tools import Hit, ToolContext, ToolError, Toolset
from v32.tools.web import Fetched, Fetcher, FetchPolicy, web_tools
from v32.tools.web.extract import extract, html_text

pytestmark = pytest.mark.anyio

LOCAL = FetchPolicy(allowed_networks=("127.0.0.0/8",), seconds=5.0)
ARTICLE = f"""<!doctype html><html><head><title>Zubrovia &amp; its towns</title>
<style>p {{ color: red }}</style><script>alert("no")</script></head>
<body><nav><a href="/home">Home</a> <a href="/shop">Shop</a></nav>
<main><h1>Zubrovia</h1><p>The capital of <b>Zubrovia</b> is
<a href="lutz.html#top">Lutz</a>.</p><p hidden>secret</p>
<ul><li>One</li><li>Two <a href="lutz.html">again</a></li></ul>
<table><tr><th>Town</th><th>People</th></tr><tr><td>Lutz</td><td>300</td></tr></table>
<pre>def f():
    return 1</pre><p>{"More text about it. " * 20}</p></main>
<footer>Copyright</footer></body></html>"""


def fetched(body: bytes | str, content_type: str = "text/html", charset: str | None = None) -> Fetched:
    data = body.encode() if isinstance(body, str) else body
    return Fetched("http://x.test/a/", 200, content_type, charset, data)


def test_the_main_text_with_its_links() -> None:
    page = extract(fetched(ARTICLE))
    assert page.title == "Zubrovia & its towns"
    assert page.links == ["http://x.test/home", "http://x.test/shop", "http://x.test/a/lutz.html"]
    assert page.text.startswith("# Zubrovia\n\nThe capital of Zubrovia is Lutz [2].\n")
    assert "- One\n" in page.text
    assert "- Two again [2]" in page.text
    assert "Town | People" in page.text
    assert "Lutz | 300" in page.text
    assert "def f():\n    return 1" in page.text
    for absent in ("alert", "color", "secret", "Copyright", "Home"):
        assert absent not in page.text


def test_without_a_main_part_the_body_is_read_without_its_furniture() -> None:
    page = html_text("<body><header>Top</header><p>Text</p>more<br>lines<footer>End</footer>")
    assert page.text == "Text\n\nmore\nlines"


@pytest.mark.parametrize(
    ("body", "charset"),
    [
        ("<p>é</p>".encode(), None),
        ("<p>é</p>".encode("latin-1"), "latin-1"),
        ('<meta charset="iso-8859-1"><p>é</p>'.encode("latin-1"), None),
        ("<p>é</p>".encode("utf-16"), None),
        ("\ufeff<p>é</p>".encode(), "nonsense"),
        ("<p>é</p>".encode(), "hex"),
    ],
)
def test_character_sets(body: bytes, charset: str | None) -> None:
    assert extract(fetched(body, charset=charset)).text == "é"


def test_text_and_json_are_left_alone() -> None:
    assert extract(fetched("<p>as is</p>", "text/plain")).text == "<p>as is</p>"
    assert extract(fetched('{"a": 1}', "application/json")).text == '{"a": 1}'


TAGS = st.sampled_from(
    [
        "<p>", "</p>", "<a href=x>", "</a>", "<div", "<!--", "-->", "<![CDATA[", "<main>", "</main>", "<pre>", "<li>",
        "&amp", "&#x110000;", "<script>", "</script>", "<title>", "\x00", "text", "<a href='http://[::1'>",
        "<base href='//['>", "<![", "<![if x]>", "<!x", "<td>", "<br/>", "<p hidden>", "<nav>", "</nav>",
    ]
)  # fmt: skip


@given(st.lists(TAGS, max_size=40).map("".join))
def test_any_html_can_be_read(html: str) -> None:
    html_text(html, "http://x.test/")


def test_a_pdf_gives_its_text_or_says_why_not() -> None:
    pypdf = pytest.importorskip("pypdf")
    del pypdf
    assert extract(fetched(minimal_pdf("Hello PDF"), "application/pdf")).text == "(page 1)\nHello PDF"
    with pytest.raises(ToolError, match="the PDF cannot be read"):
        extract(fetched(b"%PDF-1.7 nonsense", "application/pdf"))


async def test_reading_a_page_takes_a_limited_amount_of_memory(site: Any, context: ToolContext) -> None:
    """The limit is a low one: pypdf has limits of its own, which are tens of megabytes and not promised.
    The stream is longer than what malloc may keep in a heap that is already there, and which no limit counts."""
    pytest.importorskip("pypdf")
    site.page("/bomb", minimal_pdf("x" * (48 << 20), b"/FlateDecode"), Content_Type="application/pdf")
    site.page("/page", minimal_pdf("x"), Content_Type="application/pdf")
    tools = Toolset(web_tools(OneHit(""), Fetcher(replace(LOCAL, reading_bytes=32 << 20))))
    bomb = await tools.run("open_page", {"id": f"{site.url}/bomb"}, context)
    assert bomb.text == "Error: reading it takes more than 32 MiB of memory; it was stopped"
    assert "L2: x" in (await tools.run("open_page", {"id": f"{site.url}/page"}, context)).text


def minimal_pdf(text: str, packed: bytes = b"") -> bytes:
    stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()
    stream = zlib.compress(stream) if packed else stream
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(stream), b"/Filter " + packed if packed else b"", stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    out, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(objects) + 1
    end = b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (size, len(out))
    return out + b"xref\n0 %d\n0000000000 65535 f \n%s%s" % (size, table, end)


class OneHit:
    def __init__(self, url: str) -> None:
        self.url = url

    async def search(self, query: str, topn: int) -> list[Hit]:
        return [Hit(self.url, "Zubrovia", "its capital")]


async def test_search_open_find(site: Any, context: ToolContext) -> None:
    site.page("/z/", ARTICLE)
    url = f"{site.url}/z/"
    tools = Toolset(web_tools(OneHit(url), Fetcher(LOCAL)))
    assert (await tools.run("search", {"query": "capital"}, context)).text == f"[{url}] Zubrovia: its capital"
    opened = (await tools.run("open_page", {"id": url, "num_lines": 3}, context)).text
    assert opened.startswith(f"[{url}] Zubrovia & its towns\nlines 1-3 of ")
    assert "L3: The capital of Zubrovia is Lutz [2].\n(more: start_line=4)" in opened
    found = (await tools.run("find", {"id": url, "pattern": "lutz.html"}, context)).text
    assert found.endswith(f"[2] {site.url}/z/lutz.html")
    assert len(site.requests) == 1
    missing = await tools.run("open_page", {"id": f"{site.url}/absent"}, context)
    assert missing.text == f"Error: {site.url}/absent answered 404 Not Found"
    private = await tools.run("open_page", {"id": "http://169.254.169.254/"}, context)
    assert private.text.startswith("Error: 169.254.169.254 is at 169.254.169.254, which is not a public address")


@pytest.mark.slow
async def test_a_page_made_to_keep_the_parser_busy_is_stopped(site: Any, context: ToolContext) -> None:
    site.page("/deep", "<div>" * 200_000 + "end")
    tools = Toolset(web_tools(OneHit(""), Fetcher(LOCAL)), timeout=20)
    output = await tools.run("open_page", {"id": f"{site.url}/deep"}, context)
    assert "end" in output.text or "took longer than" in output.text
