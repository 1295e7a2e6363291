"""Docstring in, description of a function and of its parameters out. Reads Google, NumPy and reST style."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_SECTION = re.compile(
    r"(?:args|arguments|parameters|params|other parameters|keyword args|keyword arguments|returns?|yields?|raises|"
    r"attributes|examples?|notes?|references|see also|warnings?|todo)",
    re.IGNORECASE,
)
_PARAMETER_SECTIONS = {
    "args", "arguments", "parameters", "params", "other parameters", "keyword args", "keyword arguments",
}  # fmt: skip
_GOOGLE_ENTRY = re.compile(r"\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)")
_NUMPY_ENTRY = re.compile(r"(\*{0,2}\w+(?:\s*,\s*\*{0,2}\w+)*)\s*(?::.*)?$")
_REST_FIELD = re.compile(r":(\w+)(?:\s+([^:]*))?:\s*(.*)")
_LIST_ITEM = re.compile(r"\s|[-*+•]\s|\d+[.)]\s|>>>")


@dataclass(frozen=True, slots=True)
class Docstring:
    """`description` is the text above the first section; `parameters` maps names to one line each."""

    description: str = ""
    parameters: dict[str, str] = field(default_factory=dict)


def parse_docstring(text: str | None) -> Docstring:
    """Never fails: what is in no known style is part of the description."""
    lines = inspect.cleandoc(text or "").splitlines()
    first = next((i for i in range(len(lines)) if _section_at(lines, i) or _REST_FIELD.match(lines[i])), len(lines))
    parameters = dict(_rest_parameters(lines[first:]))
    for title, is_numpy, body in _sections(lines[first:]):
        if title in _PARAMETER_SECTIONS:
            parameters.update(_numpy_parameters(body) if is_numpy else _google_parameters(body))
    return Docstring(_flow(lines[:first]), {name: text for name, text in parameters.items() if text})


def _section_at(lines: list[str], i: int) -> tuple[str, bool] | None:
    """The title of the section that starts at line i, and whether it is underlined as in NumPy style."""
    line = lines[i].rstrip()
    underline = lines[i + 1].strip() if i + 1 < len(lines) else ""
    if len(underline) >= 3 and set(underline) == {"-"} and _SECTION.fullmatch(line):
        return line.lower(), True
    if line.endswith(":") and _SECTION.fullmatch(line[:-1]):
        return line[:-1].lower(), False
    return None


def _sections(lines: list[str]) -> Iterator[tuple[str, bool, list[str]]]:
    starts = [(i, found) for i in range(len(lines)) if (found := _section_at(lines, i))]
    if not starts:
        return
    ends = [*(i for i, _ in starts), len(lines)][1:]
    for (start, (title, is_numpy)), end in zip(starts, ends, strict=True):
        yield title, is_numpy, lines[start + (2 if is_numpy else 1) : end]


def _google_parameters(body: list[str]) -> Iterator[tuple[str, str]]:
    for head, rest in _entries(inspect.cleandoc("\n" + "\n".join(body)).splitlines()):
        if match := _GOOGLE_ENTRY.match(head):
            yield match[1], _one_line([match[2], *rest])


def _numpy_parameters(body: list[str]) -> Iterator[tuple[str, str]]:
    for head, rest in _entries(body):
        if match := _NUMPY_ENTRY.match(head):
            for name in match[1].split(","):
                yield name.strip(" *"), _one_line(rest)


def _rest_parameters(lines: list[str]) -> Iterator[tuple[str, str]]:
    for head, rest in _entries(lines):
        match = _REST_FIELD.match(head)
        if match and match[1] in {"param", "parameter", "arg", "argument", "key", "keyword"} and match[2]:
            yield match[2].split()[-1].lstrip("*"), _one_line([match[3], *rest])


def _entries(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Each unindented line with the indented lines below it."""
    head = ""
    rest: list[str] = []
    for line in lines:
        if line.strip() and not line[0].isspace():
            if head:
                yield head, rest
            head, rest = line, []
        else:
            rest.append(line)
    if head:
        yield head, rest


def _one_line(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split())


def _flow(lines: list[str]) -> str:
    """Wrapped lines of a paragraph become one; lists, indented lines and blank lines stay."""
    out: list[str] = []
    for line in lines:
        joins = out and out[-1] and line and not _LIST_ITEM.match(line) and not out[-1][0].isspace()
        if joins:
            out[-1] += " " + line.strip()
        else:
            out.append(line.rstrip())
    return "\n".join(out).strip()
