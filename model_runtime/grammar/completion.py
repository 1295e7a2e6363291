"""The grammar of one completion: offered tools and a tool choice in, EBNF out; no tokenizer, no matcher here.

    thinking   reasoning </think> answer          chat   answer
    auto       answer = text, or text block       none   answer = text
    required   answer = block                     NAME   answer = a block with one call of that tool

With a response format the text of the answer is JSON of that schema, and nothing stands before a block.
The block is what the encoder writes, byte for byte, and nothing but the end of the sentence may follow it. Text and
reasoning are free, except that tags of the dialect stand only where they mean something.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from v32.model_runtime.encoding.dialect import V32, Dialect
from v32.model_runtime.errors import UnsupportedSchemaError
from v32.model_runtime.grammar.ebnf import JsonRules, Rules, any_of, other_text, quote, sequence
from v32.model_runtime.grammar.schema import (
    AnyValue,
    ArgumentsShape,
    Literals,
    Member,
    Object,
    SchemaShape,
    Shape,
    Text,
    canonical_json,
    read_answer,
    read_arguments,
)
from v32.model_runtime.messages import ThinkingMode, ToolChoice, ToolSpec

CONTROL_CHARACTER = "\U0010ffff"
"""Stands in the grammar's vocabulary for a control token, so that text which spells the token is not the token."""


@dataclass(frozen=True, slots=True)
class CompletionGrammar:
    """EBNF with the root rule `root`, and what it leaves to the validator, per tool and of the answer."""

    ebnf: str
    loosened: dict[str, tuple[str, ...]]
    loosened_answer: tuple[str, ...] = ()


def completion_grammar(
    tools: Sequence[ToolSpec],
    tool_choice: ToolChoice,
    thinking_mode: ThinkingMode,
    think_close: str,
    *,
    parallel_calls: bool = True,
    answer_schema: Mapping[str, Any] | None = None,
    forbidden: Sequence[str] = (),
    dialect: Dialect = V32,
) -> CompletionGrammar:
    """`think_close` is the EBNF of the token that ends reasoning; `answer_schema` holds the answer to JSON; `forbidden`
    are more texts that never appear."""
    chosen = choose(tools, tool_choice)
    rules = Rules()
    block = _Block(rules, dialect, (dialect.dsml, CONTROL_CHARACTER, *forbidden))
    shapes = {tool.name: read_arguments(tool.name, tool.parameters) for tool in chosen}
    control = (CONTROL_CHARACTER, dialect.think_open, dialect.think_close, *misspelt_markers(dialect), *forbidden)
    markers = tuple(dict.fromkeys(control))
    text = rules.text("text", markers)
    answer_shape = None if answer_schema is None else read_answer(answer_schema)
    final = text if answer_shape is None else _json(rules, answer_shape, markers)
    calls = block.calls(shapes, several=parallel_calls and tool_choice in ("auto", "required")) if shapes else ""
    if not calls:
        answer = final
    elif tool_choice == "auto":
        answer = f'{text} ({calls} | "")' if answer_shape is None else f"({final} | {calls})"
    else:
        answer = calls
    root = f"{text} {think_close} {answer}" if thinking_mode == "thinking" else answer
    loosened = {name: shape.loosened for name, shape in shapes.items()}
    return CompletionGrammar(rules.render(root), loosened, answer_shape.loosened if answer_shape else ())


def _json(rules: Rules, shape: SchemaShape, forbidden: Sequence[str]) -> str:
    """An answer in JSON; inside its strings, too, markers stay out."""
    json = JsonRules(rules, shape, forbidden)
    return rules.add("answer", any_of([json.alternative(option) for option in shape.options]))


def misspelt_markers(dialect: Dialect) -> list[str]:
    """Halves of the marker, also as models misspell it: kept out of free text, they leave only the exact block."""
    word = dialect.dsml.strip("｜")
    return [half for name in (word, word.lower()) for bar in "｜|‖" for half in (f"{bar}{name}", f"{name}{bar}")]


def choose(tools: Sequence[ToolSpec], tool_choice: ToolChoice) -> list[ToolSpec]:
    """The tools that may be called under a tool choice."""
    names = [tool.name for tool in tools]
    if len(set(names)) < len(names):
        raise UnsupportedSchemaError(f"two tools share a name: {', '.join(names)}; names must differ")
    if tool_choice == "none":
        return []
    if tool_choice == "auto":
        return list(tools)
    if not tools:
        raise UnsupportedSchemaError(f"tool_choice is {tool_choice!r}, but no tools are offered")
    if tool_choice == "required":
        return list(tools)
    if tool_choice not in names:
        raise UnsupportedSchemaError(f"tool_choice is {tool_choice!r}; offered: {', '.join(names)}")
    return [tool for tool in tools if tool.name == tool_choice]


class _Block:
    """Expressions for the block of calls."""

    def __init__(self, rules: Rules, dialect: Dialect, forbidden: Sequence[str]) -> None:
        self.rules = rules
        self.dialect = dialect
        self.forbidden = tuple(forbidden)
        self.raw_text = rules.text("raw", self.forbidden)

    def calls(self, shapes: dict[str, ArgumentsShape], *, several: bool) -> str:
        call = self.rules.add("call", any_of([self.call(name, shape) for name, shape in shapes.items()]))
        more = f' ("\\n" {call})*' if several else ""
        opening, closing = quote(self.dialect.block_open), quote("\n" + self.dialect.block_close)
        return self.rules.add("block", f"{opening} {call}{more} {closing}")

    def call(self, name: str, shape: ArgumentsShape) -> str:
        opening = quote(self.dialect.invoke_open(self.attribute(name, f"tool name {name!r}")).removesuffix("\n"))
        closing = quote("\n" + self.dialect.invoke_close)
        json = JsonRules(self.rules, shape, self.forbidden)
        bodies = [self.parameters(option, json) for option in shape.options]
        return self.rules.add("invoke", f"{opening} {any_of(bodies)} {closing}")

    def parameters(self, shape: Object, json: JsonRules) -> str:
        """The lines between the tags of a call; one empty line if there are none."""
        extra = "" if shape.extra is None else self.other_parameter(shape, json)
        parts = [(self.parameter(member, json), member.is_required) for member in shape.members]
        # Each parameter brings the newline before it, so the separator is empty.
        body = sequence(parts, extra, "", lambda part: self.rules.add("parameters", part))
        if any(is_required for _, is_required in parts):
            return body
        return any_of([*([body] if body else []), '"\\n"'])

    def parameter(self, member: Member, json: JsonRules) -> str:
        name = self.attribute(member.name, f"parameter name {member.name!r}")
        head = self.dialect.parameter_open(name, is_string=True).removesuffix('true">')
        return self.rules.add("parameter", f"{quote(chr(10) + head)} {self.value(member.shape, json)}")

    def other_parameter(self, shape: Object, json: JsonRules) -> str:
        """A parameter whose name is none of the declared ones."""
        before, after = self.dialect.parameter_open("\n", is_string=True).removesuffix('true">').split("\n")
        name_text = self.rules.text("name", ('"', "\n", *self.forbidden))
        stop = '"\\n' + "".join(part[0] for part in self.forbidden)
        name = other_text(self.rules, [member.name for member in shape.members], stop, name_text, [])
        assert shape.extra is not None
        body = f"{quote(chr(10) + before)} {name} {quote(after)} {self.value(shape.extra, json)}"
        return self.rules.add("parameter", body)

    def value(self, shape: Shape, json: JsonRules) -> str:
        """From the string attribute's value to the closing tag: `true">raw</...>` or `false">json</...>`."""
        raw, others = [], []
        options = json.schema.alternatives(shape)
        if not options:
            raise UnsupportedSchemaError("a parameter has a schema that nothing can satisfy; loosen the schema")
        for option in options:
            match option:
                case Text():
                    raw.append(self.raw_text)
                case AnyValue():
                    raw.append(self.raw_text)
                    others.append(json.not_a_string())
                case Literals(texts):
                    strings = [text for text in texts if text.startswith('"')]
                    raw += [quote(json.checked(_decoded(text))) for text in strings]
                    others += [quote(json.checked(text)) for text in texts if text not in strings]
                case _:
                    others.append(json.alternative(option))
        closing = quote(self.dialect.parameter_close)
        parts = [f'"true\\">" {any_of(raw)} {closing}'] if raw else []
        parts += [f'"false\\">" {any_of(others)} {closing}'] if others else []
        return any_of(parts)

    def attribute(self, text: str, what: str) -> str:
        for part in ('"', "\n", *self.forbidden):
            if part in text:
                raise UnsupportedSchemaError(
                    f"{what} holds {canonical_json(part)}, which a tag cannot carry; rename it"
                )
        return text


def _decoded(text: str) -> str:
    import json

    value: str = json.loads(text)
    return value
