"""One call, from its opening tag to its end: the text of a stream in, a draft that grows, a call or its failure out.

invoke_head ──▶ body ◀──▶ parameter_head ──▶ value
     │           │              │              │
     └───────────┴──── skip ◀───┴──────────────┘         a call that has failed, up to its end
"""

from __future__ import annotations

import re
from collections.abc import Callable

from v32.model_runtime.encoding.call_draft import CallDraft, read_json
from v32.model_runtime.encoding.dsml import Finder, Tag, Tags
from v32.model_runtime.encoding.parts import Parts
from v32.model_runtime.encoding.scanner import Scanner


class CallReader:
    def __init__(
        self, scanner: Scanner, parts: Parts, tags: Tags, first_call_index: int, then: Callable[[], None]
    ) -> None:
        """`then` is called after the end of every call, and says where to read on."""
        self._scanner = scanner
        self._parts = parts
        self._tags = tags
        self._first_call_index = first_call_index
        self._then = then
        self._draft: CallDraft | None = None
        self._pieces: list[str] = []
        """What the present state has read so far: a head, a gap, a value."""
        self._marker = ""
        """How the tag of the present parameter is marked; its closing tag is marked likewise or exactly."""
        self._value_end = tags.value("")
        self._key = ""
        self._is_string = True

    @property
    def is_open(self) -> bool:
        return self._draft is not None

    # ---- begin and end ---------------------------------------------------------------------------------------------

    def open(self, tag: Tag) -> None:
        """A call begins with `tag`, at which the scanner stands."""
        self._begin()
        self._scanner.take_tag(tag)
        self._pieces = []
        if tag.kind == "invoke":
            self._scanner.state = self._invoke_head
        elif tag.kind == "parameter":
            self._skip_call("a parameter stands outside of an invoke tag", FORM)
        else:
            self._skip_call(f"unknown tag {tag.text!r}", FORM)

    def refuse(self, text: str, reason: str) -> None:
        """`text` stands where a call should be."""
        self._begin().raw.append(text)
        self._fail(reason, FORM)
        self._close()

    def break_off(self) -> None:
        """The completion ends here."""
        if self.is_open:
            self._fail("the completion ended before the call was closed", CLOSE)
            self._close()

    def _begin(self) -> CallDraft:
        index = self._parts.num_calls
        self._draft = CallDraft(index, f"call_{self._first_call_index + index}")
        self._scanner.kept = self._draft.raw
        return self._draft

    def _close(self) -> None:
        draft, self._draft = self._current, None
        self._scanner.kept = None
        self._parts.end_call(draft)
        self._then()

    @property
    def _current(self) -> CallDraft:
        assert self._draft is not None
        return self._draft

    # ---- around the parameters -------------------------------------------------------------------------------------

    def _invoke_head(self) -> bool:
        """` name="...">`: the rest of the opening tag."""
        return self._head(self._tags.invoke_head, self._name, self._break_invoke_head)

    def _head(self, finder: Finder, read: Callable[[str], None], read_broken: Callable[[str, Tag], None]) -> bool:
        """The rest of an opening tag: `read` gets it whole, `read_broken` what stands before another tag."""
        match, end = self._scanner.find(finder)
        self._pieces.append(self._scanner.take(end))
        if match is None:
            return False
        if self._scanner.take_end(match):
            return True
        if match["sure"]:
            self._pieces.append(self._scanner.take(match.end()))
            read("".join(self._pieces))
        else:
            read_broken("".join(self._pieces), self._tags.read(match[0]))
        return True

    def _break_invoke_head(self, head: str, tag: Tag) -> None:
        self._skip_call("the invoke tag is not complete", FORM)

    def _name(self, head: str) -> None:
        match = _INVOKE_HEAD.fullmatch(head)
        if match is None:
            self._skip_call(f"the invoke tag has no name that can be read: {_short(head)}", FORM)
            return
        name = match["name"]
        self._parts.start_call(self._current, name)
        if match["slash"]:
            self._parts.deviate("a call closed by", "/>")
            self._close()
            return
        if head != f' name="{name}">':
            self._parts.deviate("an invoke tag written loosely", head)
        self._enter_body()

    def _enter_body(self) -> None:
        self._pieces = []
        self._scanner.state = self._body

    def _body(self) -> bool:
        match, end = self._scanner.find(self._tags.block)
        self._pieces.append(self._scanner.take(end))
        if match is None:
            return False
        if not self._scanner.take_end(match):
            self._read_tag(self._tags.read(match[0]), "".join(self._pieces))
        return True

    def _read_tag(self, tag: Tag, gap: str) -> None:
        closes = tag.kind == "invoke" and tag.is_close
        opens = tag.kind == "parameter" and not tag.is_close
        if gap.strip():
            if closes and self._read_json_body(gap):
                self._take_closing_tag(tag)
            else:
                self._skip_call(f"text stands between the parameters: {_short(gap)}", FORM)
        elif closes:
            self._flag_gap(gap, is_empty=not self._current.num_parameters)
            self._take_closing_tag(tag)
        elif opens:
            self._flag_gap(gap, is_empty=False)
            self._open_parameter(tag)
        else:
            self._skip_call(f"the call is not closed before {tag.text!r}", CLOSE)

    def _take_closing_tag(self, tag: Tag) -> None:
        self._scanner.take_tag(tag)
        self._scanner.expect_tag_end(self._close)

    def _flag_gap(self, gap: str, *, is_empty: bool) -> None:
        if gap != "\n" and not (is_empty and gap == "\n\n"):
            self._parts.deviate("not one newline inside a call", gap)

    def _read_json_body(self, gap: str) -> bool:
        """Arguments as one JSON object in place of parameters."""
        draft, raw = self._current, gap.strip()
        if draft.num_parameters or not raw.startswith("{"):
            return False
        try:
            arguments, repeats = read_json(raw)
        except ValueError as error:
            self._fail(f"the arguments are not a JSON object: {error}", FORM)
            return False
        self._parts.deviate("arguments written as a JSON object")
        self._flag_repeats(repeats)
        self._grow(draft.set_all(arguments, raw))
        return True

    # ---- one parameter ---------------------------------------------------------------------------------------------

    def _open_parameter(self, tag: Tag) -> None:
        self._scanner.take_tag(tag)
        self._marker = tag.marker
        self._value_end = self._tags.value(tag.marker)
        self._pieces = []
        self._scanner.state = self._parameter_head

    def _parameter_head(self) -> bool:
        """` name="..." string="...">`: the rest of the opening tag."""
        return self._head(self._tags.parameter_head, self._read_parameter_head, self._read_loose_parameter)

    def _read_parameter_head(self, head: str) -> None:
        match = _PARAMETER_HEAD.fullmatch(head)
        if match is None or match["flag"].lower() not in ("true", "false"):
            self._skip_call(f"a parameter tag cannot be read: {_short(head)}", FORM)
            return
        self._key, self._is_string = match["name"], match["flag"].lower() == "true"
        if head != f' name="{self._key}" string="{"true" if self._is_string else "false"}">':
            self._parts.deviate("a parameter tag written loosely", head)
        if self._is_new_key():
            self._pieces = []
            self._scanner.state = self._value
            if self._is_string:
                self._grow(self._current.open_string(self._key))

    def _read_loose_parameter(self, text: str, tag: Tag) -> None:
        """Head and value in one, because `string` is missing or stands before `name`."""
        match = _LOOSE_PARAMETER.fullmatch(text)
        is_closed = tag.kind == "parameter" and tag.is_close and (tag.is_exact or tag.marker == self._marker)
        if match is None or not is_closed:
            self._skip_call(f"a parameter tag cannot be read: {_short(text)}", FORM)
            return
        self._key, flag, value = match["name"], match["flag"], match["value"]
        what = "the string attribute stands first" if flag else "the string attribute is missing"
        self._parts.deviate(what, self._key)
        if self._is_new_key():
            self._scanner.take_tag(tag)
            self._add_value(value, {"true": True, "false": False, None: None}[flag])

    def _is_new_key(self) -> bool:
        if not self._current.has(self._key):
            return True
        self._skip_call(f"the parameter {self._key!r} is given twice", "Write every parameter once.")
        return False

    def _value(self) -> bool:
        match, end = self._scanner.find(self._value_end)
        self._read_value(self._scanner.take(end))
        if match is None:
            return False
        if not match[0].startswith("</"):
            self._skip_call(f"the parameter {self._key!r} is not closed before the next one", CLOSE)
            return True
        self._scanner.take_tag(self._tags.read(match[0]))
        value = "".join(self._pieces)
        if self._is_string:
            self._grow(self._current.close_string(self._key, value))
            self._scanner.expect_tag_end(self._enter_body)
        else:
            self._add_value(value, is_string=False)
        return True

    def _read_value(self, text: str) -> None:
        self._pieces.append(text)
        if self._is_string and text:
            self._grow(self._current.write_string(text))

    def _add_value(self, text: str, is_string: bool | None) -> None:
        """A value that could not be streamed; `is_string` None: JSON if it is JSON."""
        draft = self._current
        try:
            if is_string:
                raise ValueError
            value, repeats = read_json(text)
        except ValueError as error:
            if is_string is False:
                reason = f'the parameter {self._key!r} has string="false", but its value is no JSON: {error}'
                self._skip_call(reason, _JSON)
                return
            self._grow(draft.add_string(self._key, text))
        else:
            self._flag_repeats(repeats)
            self._grow(draft.add_json(self._key, value, text))
        self._scanner.expect_tag_end(self._enter_body)

    def _grow(self, text: str) -> None:
        self._parts.grow_call(self._current, text)

    def _flag_repeats(self, repeats: bool) -> None:
        if repeats:
            self._parts.deviate("a JSON object names a key twice; the last one counts")

    # ---- a call that has failed ------------------------------------------------------------------------------------

    def _fail(self, reason: str, hint: str) -> None:
        """The call cannot be saved; the first reason counts."""
        draft = self._current
        if draft.failure is None:
            draft.failure = (reason, hint)

    def _skip_call(self, reason: str, hint: str) -> None:
        self._fail(reason, hint)
        self._scanner.state = self._skip

    def _skip(self) -> bool:
        """Up to the end of the call."""
        match, end = self._scanner.find(self._tags.block)
        self._scanner.take(end)
        if match is None:
            return False
        if self._scanner.take_end(match):
            return True
        tag = self._tags.read(match[0])
        if tag.kind == "invoke" and tag.is_close:
            self._take_closing_tag(tag)
        elif tag.kind in ("invoke", "calls"):
            self._close()
        else:
            self._scanner.take(match.end())
        return True


_INVOKE_HEAD = re.compile(r'\s*name\s*=\s*"(?P<name>.+)"\s*(?P<slash>/?)\s*>', re.DOTALL)
_PARAMETER_HEAD = re.compile(r'\s*name\s*=\s*"(?P<name>.*)"\s+string\s*=\s*"(?P<flag>\w*)"\s*>', re.DOTALL)
_LOOSE_PARAMETER = re.compile(
    r'\s*(?:string\s*=\s*"(?P<flag>true|false)"\s+)?name\s*=\s*"(?P<name>[^"]*)"\s*>(?P<value>.*)', re.DOTALL
)
FORM = (
    "Write the call again in exactly the form that the tools section shows: the function_calls block, in it an invoke "
    "with its name, in that one parameter after another, each with name and string, and every tag closed."
)
CLOSE = "Write the call again and close every parameter, the invoke and the block; shorten long values if need be."
_JSON = (
    'With string="false" write one JSON value (true, false, null, a number, an array or an object with double quotes); '
    'for text use string="true".'
)


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
