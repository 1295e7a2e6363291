"""Documents in, ranked hits out: full-text search in SQLite (FTS5, BM25), in memory or in a file.

A query is plain words, never syntax: a document is found if it holds at least one of them (leaving aside `the`, `of`, …
if there are others). Words match whatever their case, accents or English ending; Chinese and Japanese match by pairs
of characters. Titles weigh double; equal scores keep the order in which documents were added.
"""

from __future__ import annotations

import difflib
import itertools
import re
import sqlite3
import threading
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from v32.tools.document import Document, document_files, read_documents
from v32.tools.errors import DocumentError

MAX_QUERY_TERMS = 64
TITLE_WEIGHT = 2.0

STOP_WORDS = frozenset({
    "a", "an", "and", "are", "as", "at", "be", "by", "did", "do", "does", "for", "from", "had", "has", "have", "how",
    "in", "is", "it", "its", "of", "on", "or", "that", "the", "this", "to", "was", "were", "what", "when", "where",
    "which", "who", "whom", "whose", "why", "will", "with",
})  # fmt: skip

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_TERM = re.compile(rf"[{_CJK}]+|(?:(?![{_CJK}_])[\w\u0900-\u0dff\u0e31-\u0e4e])+")
_WORD = re.compile(rf"[{_CJK}]|(?:(?![{_CJK}_])[\w\u0300-\u036f\u0900-\u0dff\u0e31-\u0e4e])+")
_IS_CJK = re.compile(rf"[{_CJK}]")
_ACCENTS = re.compile("[\u0300-\u036f]")

_FORMAT = 1
_SCHEMA = f"""
CREATE TABLE documents (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, title TEXT NOT NULL, text TEXT NOT NULL, source TEXT);
CREATE INDEX documents_by_source ON documents (source);
CREATE TABLE sources (path TEXT PRIMARY KEY, mtime_ns INTEGER NOT NULL, size INTEGER NOT NULL);
CREATE VIRTUAL TABLE terms USING fts5 (
    title, text, tokenize = "porter unicode61 remove_diacritics 0 categories 'L* N* M* Co'");
PRAGMA user_version = {_FORMAT};
"""


@dataclass(frozen=True, slots=True)
class Hit:
    """One found document; a larger `score` is a better one."""

    id: str
    title: str
    snippet: str
    score: float = 0.0
    url: str = ""


@dataclass(frozen=True, slots=True)
class Changes:
    """What `sync` did, in documents."""

    added: int = 0
    updated: int = 0
    removed: int = 0


class LocalIndex:
    """An index of documents; safe to use from several threads.

    `path=None` keeps it in memory; a path makes it a file that later runs open again.
    """

    def __init__(self, documents: Iterable[Document] = (), *, path: str | Path | None = None) -> None:
        self._lock = threading.RLock()
        self._path = path
        self._connection = _connect(path)
        self.add(documents)

    @classmethod
    def from_folder(cls, folder: str | Path, *, path: str | Path | None = None) -> LocalIndex:
        index = cls(path=path)
        index.sync(folder)
        return index

    def add(self, documents: Iterable[Document]) -> None:
        """Add documents; one with a known id takes the place of the old one. All or nothing."""
        with self._transaction():
            for document in documents:
                self._put(document, source=None)

    def remove(self, ids: Iterable[str]) -> int:
        """Forget documents; returns how many there were."""
        with self._transaction():
            return sum(self._delete(id) for id in ids)

    def sync(self, folder: str | Path) -> Changes:
        """Bring the index to the state of the folder; files that have not changed are not read again."""
        folder = Path(folder)
        files = {path.relative_to(folder).as_posix(): path for path in document_files(folder)}
        added = updated = removed = 0
        with self._transaction() as connection:
            known = {path: (mtime, size) for path, mtime, size in connection.execute("SELECT * FROM sources")}
            for gone in known.keys() - files.keys():
                removed += self._drop_source(gone, keep=())
                connection.execute("DELETE FROM sources WHERE path = ?", (gone,))
            for name, path in files.items():
                stat = path.stat()
                if known.get(name) == (stat.st_mtime_ns, stat.st_size):
                    continue
                documents = list(read_documents(path, folder))
                removed += self._drop_source(name, keep={document.id for document in documents})
                outcomes = [self._put(document, source=name) for document in documents]
                added += outcomes.count("added")
                updated += outcomes.count("updated")
                connection.execute(
                    "INSERT OR REPLACE INTO sources VALUES (?, ?, ?)", (name, stat.st_mtime_ns, stat.st_size)
                )
        return Changes(added, updated, removed)

    def search(self, query: str, topn: int = 5, *, highlight: bool = False) -> list[Hit]:
        """The best `topn` documents; empty if no word occurs."""
        expression = match_expression(query)
        if not expression or topn < 1:
            return []
        with self._transaction():
            rows = self._connection.execute(
                "SELECT d.id, d.title, d.text, best.score FROM "
                "(SELECT rowid, -bm25(terms, ?, 1.0) AS score FROM terms WHERE terms MATCH ? "
                "ORDER BY score DESC, rowid LIMIT ?) best "
                "JOIN documents d ON d.number = best.rowid ORDER BY best.score DESC, d.number",
                (TITLE_WEIGHT, expression, topn),
            ).fetchall()
        return [Hit(id, title, snippet(text, query, highlight=highlight), score) for id, title, text, score in rows]

    def get(self, id: str) -> Document | None:
        id = id.encode("utf-8", "replace").decode()  # half a surrogate pair is no text to SQLite
        with self._transaction():
            row = self._connection.execute("SELECT id, text, title FROM documents WHERE id = ?", (id,)).fetchone()
        return Document(*row) if row else None

    def closest_id(self, id: str) -> str | None:
        """The id that someone who wrote `id` may have meant."""
        with self._transaction():
            ids = [row[0] for row in self._connection.execute("SELECT id FROM documents LIMIT 20000")]
        folded = {known.casefold(): known for known in reversed(ids)}
        matches = difflib.get_close_matches(id[:200].casefold(), folded, n=1)
        return folded[matches[0]] if matches else None

    def __len__(self) -> int:
        with self._transaction():
            return int(self._connection.execute("SELECT count(*) FROM documents").fetchone()[0])

    def __iter__(self) -> Iterator[Document]:
        with self._transaction():
            rows = self._connection.execute("SELECT id, text, title FROM documents ORDER BY number").fetchall()
        return (Document(*row) for row in rows)

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def __enter__(self) -> LocalIndex:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one thread at a time; all or nothing."""
        try:
            with self._lock, self._connection as connection:
                yield connection
        except sqlite3.DatabaseError as error:  # such as a full disk or a damaged file
            raise DocumentError(f"the index {self._path} cannot be used: {error}") from error

    def _put(self, document: Document, source: str | None) -> str:
        title, text = (part.encode("utf-8", "replace").decode() for part in (document.title, document.text))
        row = self._connection.execute(
            "SELECT number, title, text, source FROM documents WHERE id = ?", (document.id,)
        ).fetchone()
        if row and source is not None and row[3] not in (source, None):
            raise DocumentError(f"document id {document.id!r} stands in {row[3]} and in {source}; ids must be unique")
        if row:
            number, same = row[0], (row[1], row[2]) == (title, text)
            self._connection.execute(
                "UPDATE documents SET title = ?, text = ?, source = ? WHERE number = ?",
                (title, text, source, number),
            )
            if same:
                return "same"
            self._connection.execute("DELETE FROM terms WHERE rowid = ?", (number,))
        else:
            number = self._connection.execute(
                "INSERT INTO documents (id, title, text, source) VALUES (?, ?, ?, ?)",
                (document.id, title, text, source),
            ).lastrowid
        self._connection.execute(
            "INSERT INTO terms (rowid, title, text) VALUES (?, ?, ?)",
            (number, _indexed(title), _indexed(text)),
        )
        return "updated" if row else "added"

    def _delete(self, id: str) -> bool:
        row = self._connection.execute("SELECT number FROM documents WHERE id = ?", (id,)).fetchone()
        if row:
            self._connection.execute("DELETE FROM terms WHERE rowid = ?", row)
            self._connection.execute("DELETE FROM documents WHERE number = ?", row)
        return bool(row)

    def _drop_source(self, source: str, keep: Iterable[str]) -> int:
        rows = self._connection.execute("SELECT id FROM documents WHERE source = ?", (source,)).fetchall()
        return sum(self._delete(id) for id in {row[0] for row in rows} - set(keep))


def match_expression(query: str) -> str:
    """The query as an FTS5 expression: quoted terms joined by OR, so that nothing in it is syntax."""
    terms = list(dict.fromkeys(_TERM.findall(fold(query))))
    telling = [term for term in terms if term not in STOP_WORDS] or terms
    phrases = [phrase for term in telling for phrase in _phrases(term)]
    return " OR ".join(f'"{phrase}"' for phrase in phrases[:MAX_QUERY_TERMS])


def fold(text: str) -> str:
    """Text as it is compared: without case and accents."""
    return _ACCENTS.sub("", unicodedata.normalize("NFKD", text.casefold()))


def snippet(text: str, query: str, *, highlight: bool = False, limit: int = 300) -> str:
    """A document of up to `limit` characters whole, else the part of it where most of the query's words stand."""
    flat = " ".join(text.split())
    words = {term for term in _TERM.findall(fold(query)) if term not in STOP_WORDS}
    if len(flat) <= limit:
        return _highlighted(flat, words) if highlight else flat
    places = [(place.start(), word) for place in _WORD.finditer(flat[:200_000]) if (word := _matching(place[0], words))]
    found = _best_window(places, limit - 60)
    start = (flat.find(" ", found - 40, found) + 1 or found) if found > 40 else 0
    end = start + limit - 2
    if end < len(flat) and (space := flat.rfind(" ", start + limit // 2, end + 1)) >= 0:
        end = space
    cut = flat[start:end].strip()
    cut = _highlighted(cut, words) if highlight else cut
    return ("…" if start else "") + cut + ("…" if end < len(flat) else "")


def _connect(path: str | Path | None) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(":memory:" if path is None else path, check_same_thread=False)
    except sqlite3.OperationalError as error:
        raise DocumentError(f"{path} cannot be opened: {error}; is it a file in a folder that exists?") from error
    try:
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        is_empty = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    except sqlite3.DatabaseError as error:
        connection.close()
        raise DocumentError(f"{path} is not an index: {error}; choose another path, or delete the file") from error
    if is_empty:
        connection.executescript(_SCHEMA)
    elif found != _FORMAT:
        connection.close()
        raise DocumentError(f"{path} holds an index of format {found}, not {_FORMAT}; delete the file to build it anew")
    return connection


def _indexed(text: str) -> str:
    """The text as it goes into the index: folded words, Chinese and Japanese character by character."""
    return " ".join(" ".join(term) if _IS_CJK.match(term) else term for term in _TERM.findall(fold(text)))


def _phrases(term: str) -> list[str]:
    if not _IS_CJK.match(term) or len(term) == 1:
        return [term]
    return [f"{first} {second}" for first, second in itertools.pairwise(term)]


def _matching(word: str, words: Iterable[str]) -> str | None:
    """The query word that `word` is a form of: equal, or alike but for a short ending."""
    folded = fold(word)
    for wanted in words:
        if _IS_CJK.match(folded):
            if folded in wanted:
                return wanted
            continue
        common = max(4, max(len(folded), len(wanted)) - 3)
        if folded == wanted or (len(folded) >= common and folded[:common] == wanted[:common]):
            return wanted
    return None


def _best_window(places: list[tuple[int, str]], width: int) -> int:
    """Where the window starts that holds the most different words, then the most words, then the earliest."""
    best, best_count = 0, (0, 0)
    inside: Counter[str] = Counter()
    end = 0
    for i, (start, word) in enumerate(places):
        while end < len(places) and places[end][0] < start + width:
            inside[places[end][1]] += 1
            end += 1
        count = (len(inside), end - i)
        if count > best_count:
            best, best_count = start, count
        inside[word] -= 1
        inside += Counter()  # drops what has no count
    return best


def _highlighted(text: str, words: Iterable[str]) -> str:
    return _WORD.sub(lambda place: f"**{place[0]}**" if _matching(place[0], words) else place[0], text)
