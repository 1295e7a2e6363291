"""Folders of text in, documents out: .txt, .md, and .jsonl with one {"id", "title", "text"} a line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from v32.tools.errors import DocumentError

SUFFIXES = (".txt", ".md", ".jsonl")
MAX_ID_LENGTH = 512

_HEADING = re.compile(r"\s*#\s+(.+?)\s*#*\s*(?:\n|$)")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Document:
    """A text that can be found, opened and cited by its id."""

    id: str
    text: str
    title: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not isinstance(self.text, str) or not isinstance(self.title, str):
            raise DocumentError(f"id, title and text of a document are strings; got {self!r:.200}")
        if not self.id.strip() or len(self.id) > MAX_ID_LENGTH or _UNPRINTABLE.search(self.id):
            raise DocumentError(
                f"document id {self.id!r:.80} must be one line of 1 to {MAX_ID_LENGTH} printable characters"
            )


def document_files(folder: Path) -> list[Path]:
    """The files below `folder` that hold documents, in a stable order. Raises `DocumentError` if there is no folder."""
    if not folder.is_dir():
        raise DocumentError(f"{folder} is not a folder; give one with {', '.join(SUFFIXES)} files")
    return sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file())


def read_documents(path: Path, folder: Path) -> Iterator[Document]:
    """The documents of one file. Texts are named by their path below `folder`, JSONL lines by their `id`."""
    name = path.relative_to(folder).as_posix()
    text = path.read_bytes().decode("utf-8-sig", errors="replace")
    if path.suffix == ".jsonl":
        yield from _read_lines(name, text)
    elif path.suffix == ".md" and (heading := _HEADING.match(text)):
        yield Document(name, text[heading.end() :], heading[1])
    else:
        yield Document(name, text)


def _read_lines(name: str, text: str) -> Iterator[Document]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DocumentError(f"{name}, line {number}: not JSON: {error}") from None
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise DocumentError(f'{name}, line {number}: expected an object with "id", "text" and perhaps "title"')
        try:
            yield Document(str(row.get("id", f"{name}:{number}")), row["text"], row.get("title") or "")
        except DocumentError as error:
            raise DocumentError(f"{name}, line {number}: {error}") from None
