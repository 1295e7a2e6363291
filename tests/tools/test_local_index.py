from __future__ import annotations

import itertools
import math
import os
import random
import sqlite3
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from v32.tools import Document, DocumentError, LocalIndex
from v32.tools.local_index import Changes, match_expression, snippet

WORDS = ["ash", "birch", "cedar", "elm", "fir", "hazel", "larch", "maple", "oak", "pine"]


def bm25(documents: list[Document], query: list[str]) -> list[tuple[float, int]]:
    """The published formula, with term frequencies weighted by column, written without a database."""
    tokens = [(document.title.split(), document.text.split()) for document in documents]
    lengths = [len(title) + len(text) for title, text in tokens]
    average = sum(lengths) / len(lengths)
    scores = [0.0] * len(documents)
    for word in dict.fromkeys(query):
        holders = sum(word in title or word in text for title, text in tokens)
        idf = max(math.log((len(documents) - holders + 0.5) / (holders + 0.5)), 1e-6)
        for i, (title, text) in enumerate(tokens):
            frequency = 2 * title.count(word) + text.count(word)
            scores[i] += idf * frequency * 2.2 / (frequency + 1.2 * (0.25 + 0.75 * lengths[i] / average))
    return sorted(((score, -i) for i, score in enumerate(scores) if score > 0), reverse=True)


@pytest.mark.parametrize("seed", range(10))
def test_ranking_is_bm25_with_ties_in_order_of_insertion(seed: int) -> None:
    draw = random.Random(seed)

    def words(least: int, most: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(least, most)))

    documents = [Document(f"d{i}", words(1, 8), words(0, 2)) for i in range(30)]
    query = draw.sample(WORDS, draw.randint(1, 3))
    hits = LocalIndex(documents).search(" ".join(query), 30)
    expected = bm25(documents, query)
    assert [hit.score for hit in hits] == pytest.approx([score for score, _ in expected])
    # sums of floats may tie here and not there: compare the order where scores differ clearly
    order = {hit.id: i for i, hit in enumerate(hits)}
    for (high, i), (low, j) in itertools.pairwise(expected):
        first, second = documents[-i], documents[-j]
        if high - low > 1e-9 or (first.text, first.title) == (second.text, second.title):
            assert order[first.id] < order[second.id]


@given(st.text(max_size=60))
def test_no_query_is_a_syntax_error(query: str) -> None:
    index = LocalIndex([Document("a", 'NEAR AND "quoted" text* ^col: (x)'), Document("b", query or "x")])
    for hit in index.search(query, 5):
        assert hit.id in ("a", "b")


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("capital", ["zub", "den"]),
        ("What is the CAPITAL of Zubrovia?", ["zub", "den"]),
        ("the of", ["zub", "den"]),
        ("inhabitant", ["lutz"]),
        ("münchen", ["muc"]),
        ("munchen", ["muc"]),
        ("北京", ["cn"]),
        ("京大", ["cn"]),
        ("大北", []),
        ("東", ["jp"]),
        ("NOT capital", ["zub", "den"]),
        ("snake_case", ["code"]),
        ("", []),
        ("!?", []),
        ("absent", []),
    ],
)
def test_what_a_query_finds(query: str, found: list[str]) -> None:
    index = LocalIndex(
        [
            Document("zub", "The capital of Zubrovia is Lutz."),
            Document("den", "Copenhagen is the capital of Denmark, as everybody knows."),
            Document("lutz", "300 inhabitants"),
            Document("muc", "München liegt an der Isar"),
            Document("cn", "北京大学位于北京", "北大"),
            Document("jp", "東京"),
            Document("code", "a snake_case name"),
        ]
    )
    assert [hit.id for hit in index.search(query)] == found


def test_titles_weigh_double() -> None:
    index = LocalIndex([Document("text", "elm pine", "fir"), Document("title", "fir pine", "elm")])
    assert [hit.id for hit in index.search("elm")] == ["title", "text"]


def test_documents_can_be_replaced_and_removed() -> None:
    index = LocalIndex([Document("a", "elm"), Document("b", "elm")])
    index.add([Document("a", "pine")])
    assert [hit.id for hit in index.search("elm")] == ["b"]
    assert [hit.id for hit in index.search("pine")] == ["a"]
    assert index.get("a") == Document("a", "pine")
    assert index.remove(["a", "c"]) == 1
    assert len(index) == 1
    assert index.get("a") is None
    assert [document.id for document in index] == ["b"]


def test_adding_is_all_or_nothing() -> None:
    index = LocalIndex([Document("a", "elm")])

    def broken():  # type: ignore[no-untyped-def]
        yield Document("b", "elm")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        index.add(broken())
    assert [document.id for document in index] == ["a"]


def test_a_folder_is_read_and_followed(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    (folder / "sub").mkdir(parents=True)
    (folder / "plain.txt").write_text("elm")
    (folder / "sub" / "page.md").write_text("# All about Pines #\n\nThey are green.")
    (folder / "rows.jsonl").write_text(
        '{"id": "r1", "title": "Row", "text": "oak"}\n\n{"id": 2, "text": "fir"}\n{"text": "x"}\n'
    )
    (folder / "ignored.py").write_text("elm")
    index = LocalIndex.from_folder(folder, path=tmp_path / "index.db")
    assert {document.id: (document.title, document.text) for document in index} == {
        "plain.txt": ("", "elm"),
        "sub/page.md": ("All about Pines", "They are green."),
        "r1": ("Row", "oak"),
        "2": ("", "fir"),
        "rows.jsonl:4": ("", "x"),
    }
    assert index.sync(folder) == Changes()
    index.close()

    (folder / "plain.txt").unlink()
    (folder / "rows.jsonl").write_text(
        '{"id": "r1", "title": "Row", "text": "hazel nuts"}\n{"id": "r9", "text": "new"}\n'
    )
    os.utime(folder / "rows.jsonl", ns=(1, 1))
    with LocalIndex(path=tmp_path / "index.db") as again:
        assert len(again) == 5
        assert again.sync(folder) == Changes(added=1, updated=1, removed=3)
        assert [hit.id for hit in again.search("hazel")] == ["r1"]
        assert again.search("elm oak fir") == []
        assert sorted(document.id for document in again) == ["r1", "r9", "sub/page.md"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"id": "x"}', r"a.jsonl, line 1: expected an object with"),
        ("a.jsonl", '{"text": "x"}\n{nonsense', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", '{"id": "a\\nb", "text": "x"}', "a.jsonl, line 1: document id"),
        ("a.jsonl", '{"id": "\\ud800", "text": "x"}', "a.jsonl, line 1: document id"),
        (os.fsdecode(b"caf\xe9.txt"), "x", r"document id 'caf\\udce9.txt'"),
        ("a.jsonl", "[" * 100_000, "a.jsonl, line 1: not JSON"),
        ("a.jsonl", '{"id": "b.txt", "text": "x"}', "document id 'b.txt' stands in a.jsonl and in b.txt"),
    ],
)
def test_bad_documents_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    (tmp_path / "b.txt").write_text("fine")
    index = LocalIndex()
    with pytest.raises(DocumentError, match=message):
        index.sync(tmp_path)
    assert len(index) == 0


def test_bad_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match=r"is not a folder; give one with \.txt, \.md, \.jsonl files"):
        LocalIndex.from_folder(tmp_path / "nowhere")
    with pytest.raises(
        DocumentError, match=r"nowhere/index cannot be opened: .*; is it a file in a folder that exists"
    ):
        LocalIndex(path=tmp_path / "nowhere" / "index")
    (tmp_path / "text").write_text("this is no database, whatever its name says" * 100)
    with pytest.raises(DocumentError, match="is not an index"):
        LocalIndex(path=tmp_path / "text")
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE t (x)")
    other.commit()
    other.close()
    with pytest.raises(DocumentError, match="holds an index of format 0, not 1"):
        LocalIndex(path=tmp_path / "other.db")


def test_a_file_that_is_damaged_or_has_no_room_is_named(tmp_path: Path) -> None:
    path = tmp_path / "index"
    with LocalIndex([Document(str(n), f"word {n} " * 200) for n in range(50)], path=path) as index:
        index._connection.execute(f"PRAGMA max_page_count = {os.stat(path).st_size // 4096}")
        with pytest.raises(DocumentError, match="index cannot be used: database or disk is full"):
            index.add([Document("big", "many other words " * 100_000)])
        assert (index.get("big"), len(index)) == (None, 50)
    data = bytearray(path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    path.write_bytes(data)
    with pytest.raises(DocumentError, match="index cannot be used: "), LocalIndex(path=path) as damaged:
        damaged.search("word")


def test_odd_bytes_in_files_are_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfcaf\xe9 \x00 elm")
    (tmp_path / "b.jsonl").write_text('{"id": "b", "title": "\\udc00", "text": "half a pair: \\ud800 elm"}')
    assert [hit.id for hit in LocalIndex.from_folder(tmp_path).search("elm")] == ["a.txt", "b"]


def test_snippets_of_short_documents_are_whole() -> None:
    assert snippet("one\n\n two\tthree ", "two") == "one two three"
    assert snippet("x" * 300, "y") == "x" * 300
    assert snippet("The elm", "elm the", highlight=True) == "The **elm**"


@given(st.lists(st.sampled_from([*WORDS, "北京", "a" * 400]), min_size=40, max_size=120), st.sampled_from(WORDS))
def test_snippets_are_parts_of_the_text_that_hold_the_words(words: list[str], wanted: str) -> None:
    text = " ".join(words)
    shown = snippet(text, wanted)
    assert shown.strip("…") in text
    assert len(shown) <= 302
    assert (wanted in shown) == (wanted in words)


def test_a_snippet_shows_where_most_words_stand_together() -> None:
    filler = "nothing to see here " * 30
    text = f"elm {filler} elm and pine and oak {filler} pine"
    assert "elm and pine and oak" in snippet(text, "oak pine elm")
    assert snippet(text, "oak").startswith("…")
    assert snippet(text, "absent").startswith("elm nothing")


def test_a_snippet_of_one_word_over_and_over_is_found_quickly() -> None:
    start = time.process_time()
    assert snippet("elm " * 50_000, "elm").startswith("elm elm")
    assert time.process_time() - start < 1


def test_expressions_are_bounded() -> None:
    assert len(match_expression(" ".join(f"w{i}" for i in range(10_000))).split(" OR ")) == 64
    assert match_expression('a "b" OR') == '"b"'


def test_closest_id() -> None:
    index = LocalIndex([Document("Paris.md", "x"), Document("london.md", "x")])
    assert index.closest_id("paris.MD") == "Paris.md"
    assert index.closest_id("zzzzzz") is None


def test_score_counts_every_term_once() -> None:
    index = LocalIndex(Document(str(i), word) for i, word in enumerate(["elm", "oak", "fir", "elm oak"]))
    once, twice = index.search("elm"), index.search("elm elm ELM")
    assert once == twice
    assert Counter(hit.id for hit in once) == {"0": 1, "3": 1}
