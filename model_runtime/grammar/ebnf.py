"""Grammar text: named rules, and the rules for canonical JSON. Shapes in, EBNF (as xgrammar reads it) out.

Canonical is what `json.dumps(value, ensure_ascii=False)` writes: `", "` and `": "`, the shortest escapes, members in
the declared order. Free text is always a `TagDispatch`: its masks cost under 0.1 ms, those of a repeated character
class 100 ms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from v32.model_runtime.errors import UnsupportedSchemaError
from v32.model_runtime.grammar.numbers import ANY_NUMBER, number_expression
from v32.model_runtime.grammar.schema import (
    Array,
    Either,
    Literals,
    Member,
    Number,
    Object,
    Reference,
    SchemaShape,
    Shape,
    Text,
    canonical_json,
)

_CONTROLS = tuple(chr(code) for code in range(0x20))


class Rules:
    """A growing grammar; equal bodies share one rule."""

    def __init__(self) -> None:
        self._bodies: dict[str, str] = {}
        self._names: dict[str, str] = {}

    def add(self, hint: str, body: str) -> str:
        """The name of a rule with this body."""
        if body not in self._names:
            self._names[body] = self.reserve(hint)
            self._bodies[self._names[body]] = body
        return self._names[body]

    def reserve(self, hint: str) -> str:
        """A fresh name whose body `define` gives later; for rules that refer to themselves."""
        name = f"{hint}_{len(self._bodies)}"
        self._bodies[name] = ""
        return name

    def define(self, name: str, body: str) -> None:
        self._bodies[name] = body

    def text(self, hint: str, excludes: Iterable[str], escape: tuple[str, str] | None = None) -> str:
        """A rule for any text without the given parts; `escape`: a mark and the rule for what must follow it."""
        dispatch = f"({quote(escape[0])}, {escape[1]}), " if escape else ""
        excluded = ", ".join(quote(part) for part in excludes)
        loop = "true" if escape else "false"
        return self.add(hint, f"TagDispatch({dispatch}loop_after_dispatch={loop}, excludes=({excluded}))")

    def render(self, root: str) -> str:
        lines = [f"{name} ::= {body}" for name, body in self._bodies.items()]
        return "\n".join([*lines, f"root ::= {root}"]) + "\n"


def quote(text: str) -> str:
    """A string literal."""
    escapes = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return '"' + "".join(escapes.get(char) or (f"\\x{ord(char):02x}" if char < " " else char) for char in text) + '"'


def any_of(parts: Sequence[str]) -> str:
    """Alternatives in parentheses; a grammar cannot express none at all."""
    return parts[0] if len(parts) == 1 else f"({' | '.join(parts)})"


class JsonRules:
    """Expressions for the JSON of one schema's shapes; `forbidden` never appears, inside strings neither."""

    def __init__(self, rules: Rules, schema: SchemaShape, forbidden: Sequence[str]) -> None:
        self.rules = rules
        self.schema = schema
        self.forbidden = tuple(forbidden)
        self.escape = rules.add("escape", '["\\\\bfnrt] | "u00" ("0" [0-7be-f] | "1" [0-9a-f])')
        self.string_body = rules.text("chars", ('"', *self.forbidden, *_CONTROLS), escape=("\\", self.escape))
        self.string = f'"\\"" {self.string_body} "\\""'
        self._references: dict[str, str] = {}

    def value(self, shape: Shape) -> str:
        """An expression for the JSON of a shape."""
        if isinstance(shape, Reference):
            return self.reference(shape)
        options = shape.options if isinstance(shape, Either) else (shape,)
        options = tuple(option for option in options if self.schema.alternatives(option))
        if not options:
            raise UnsupportedSchemaError("a required value has a schema that nothing can satisfy; loosen the schema")
        return any_of([self.reference(o) if isinstance(o, Reference) else self.alternative(o) for o in options])

    def alternative(self, shape: Shape) -> str:
        match shape:
            case Text():
                return self.string
            case Literals(texts):
                return any_of([quote(self.checked(text)) for text in texts])
            case Number():
                expression = number_expression(shape)
                if expression is None:
                    raise UnsupportedSchemaError("no number lies between the bounds of a required value; widen them")
                return expression if expression.startswith("(") else f"({expression})"
            case Array():
                return self.rules.add("array", self.array(shape))
            case Object():
                return self.rules.add("object", self.object(shape))
        return any_of([self.string, self.not_a_string()])

    def reference(self, shape: Reference) -> str:
        if shape.pointer not in self._references:
            name = self.rules.reserve("def")
            self._references[shape.pointer] = name
            options = self.schema.alternatives(shape)
            if not options:
                raise UnsupportedSchemaError(f"$ref {shape.pointer!r} leads only to itself; give it a type")
            self.rules.define(name, any_of([self.alternative(option) for option in options]))
        return self._references[shape.pointer]

    def not_a_string(self) -> str:
        """Any JSON value but a string."""
        if "" not in self._references:
            name = self.rules.reserve("json")
            self._references[""] = name
            value = f"({self.string} | {name})"
            items, members = f'{value} (", " {value})*', f'{self.string} ": " {value}'
            containers = f'"[" ({items})? "]" | "{{" ({members} (", " {members})*)? "}}"'
            self.rules.define(name, f'"true" | "false" | "null" | {ANY_NUMBER} | {containers}')
        return self._references[""]

    def array(self, shape: Array) -> str:
        rest = "" if shape.items is None else self.value(shape.items)
        tail = _repeat(f'", " {rest}', *_remaining(shape, len(shape.prefix))) if rest else ""
        for index in range(len(shape.prefix) - 1, 0, -1):
            item = f'", " {self.value(shape.prefix[index])} {tail}'.rstrip()
            tail = item if index < shape.min_items else f"({item})?"
        if shape.prefix:
            body = f"{self.value(shape.prefix[0])} {tail}".rstrip()
        elif not rest or shape.max_items == 0:
            return '"[]"'
        else:
            more = _repeat(f'", " {rest}', *_remaining(shape, 1))
            body = f"{rest} {more}".rstrip()
        return f'"[" {body} "]"' if shape.min_items else f'"[" ({body})? "]"'

    def object(self, shape: Object) -> str:
        extra = "" if shape.extra is None else f'{self.other_key(shape.members)} ": " {self.value(shape.extra)}'
        keys = [quote(self.checked(canonical_json(member.name)) + ": ") for member in shape.members]
        parts = [(f"{key} {self.value(member.shape)}", member.is_required) for key, member in zip(keys, shape.members)]
        body = sequence(parts, extra, quote(", "), lambda part: self.rules.add("members", part))
        if not body:
            return '"{}"'
        return f'"{{" {body} "}}"' if any(m.is_required for m in shape.members) else f'"{{" ({body})? "}}"'

    def other_key(self, members: Sequence[Member]) -> str:
        """A JSON key that is none of the members'."""
        if not members:
            return self.string
        names = [canonical_json(m.name)[1:-1] for m in members]
        escaped = f'"\\\\" {self.escape} {self.string_body}'
        words = [name for name in names if "\\" not in name]
        stop = _JSON_CHAR + "".join(part[0] for part in self.forbidden)
        other = other_text(self.rules, words, stop, self.string_body, [escaped])
        return f'"\\"" {other if "" in names else any_of([other, EMPTY])} "\\""'

    def checked(self, text: str) -> str:
        for part in self.forbidden:
            if part in text:
                raise UnsupportedSchemaError(f"{text!r} holds {part!r}, which the model cannot write; rename it")
        return text


EMPTY = '""'
_JSON_CHAR = '"\\\\\\x00-\\x1f'


def sequence(parts: Sequence[tuple[str, bool]], extra: str, separator: str, add: Callable[[str], str]) -> str:
    """One or more parts in order, required ones always, then any number of `extra`, with separators between.

    Built from the back, so that its size is linear:  rest(i) follows a part,  first(i) may be the first part.
    """
    rest = f"({separator} {extra})*" if extra else ""
    first = [f"{extra} {rest}"] if extra else []
    for text, is_required in reversed(parts):
        here = f"{text} {rest}".rstrip()
        first = [here] if is_required else [here, *([add(any_of(first))] if first else [])]
        after = f"{separator} {here}"
        rest = add(after) if is_required else add(f"({after})?" if not rest else f"({after} | {rest})")
    return any_of(first) if first else ""


def other_text(rules: Rules, words: Sequence[str], stop: str, body: str, starts: Sequence[str]) -> str:
    """Non-empty text that is none of `words`: a walk down their tree that leaves it or ends between them.

    `stop` are the characters (as in a class) that text cannot hold, `body` is the rule for text without condition,
    `starts` are further expressions that leave the tree, such as an escape.
    """

    def node(prefix: str) -> str:
        following = sorted({word[len(prefix)] for word in words if word.startswith(prefix) and word != prefix})
        if prefix and not following and prefix not in words:
            return body
        children = [f"{quote(char)} {node(prefix + char)}" for char in following]
        leaving = f"[^{stop}{''.join(map(_class_char, following))}] {body}"
        ending = ['""'] if prefix and prefix not in words else []
        return rules.add("other", " | ".join([*ending, leaving, *starts, *children]))

    return node("")


def _class_char(char: str) -> str:
    return f"\\{char}" if char in "\\]^-[" else char


def _remaining(shape: Array, given: int) -> tuple[int, int | None]:
    maximum = None if shape.max_items is None else max(shape.max_items - given, 0)
    return max(shape.min_items - given, 0), maximum


def _repeat(expression: str, minimum: int, maximum: int | None) -> str:
    if maximum == 0:
        return ""
    if maximum is None:
        return f"({expression})*" if minimum == 0 else f"({expression}){{{minimum},}}"
    return f"({expression}){{{minimum},{maximum}}}"
