from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from v32.model_runtime.encoding import (
    V32,
    ChatTokenizer,
    CompletionParser,
    Detokenizer,
    encode_messages,
    encode_segments,
    parse_completion,
)
from v32.model_runtime.encoding.dsml import HOLD_BACK
from v32.model_runtime.messages import (
    ContentDelta,
    Delta,
    ParsedCompletion,
    ReasoningDelta,
    ToolCallArgumentsDelta,
    ToolCallFinished,
    ToolCallMalformed,
    ToolCallStarted,
)

D, EOS = V32.dsml, V32.eos
OPEN, CLOSE = f"\n\n<{D}function_calls>\n", f"</{D}function_calls>"


def invoke(*parameters: str, name: str = "f") -> str:
    return f'<{D}invoke name="{name}">\n' + "\n".join(parameters) + f"\n</{D}invoke>"


def parameter(value: str, name: str = "a", string: str = "true") -> str:
    return f'<{D}parameter name="{name}" string="{string}">{value}</{D}parameter>'


def block(*invokes: str) -> str:
    return OPEN + "\n".join(invokes) + f"\n{CLOSE}"


CALL = invoke(parameter("v"))


def arguments_of(parsed: ParsedCompletion) -> list[dict[str, Any]]:
    return [call.arguments for call in parsed.tool_calls]


# ---- what the encoder writes, the parser reads ---------------------------------------------------------------------

FORBIDDEN = (V32.bos, EOS, V32.think_open, V32.think_close, D)
"""What content and reasoning cannot hold; the official parser refuses it."""


def plain(text: str | None) -> bool:
    return not any(marker in (text or "") for marker in FORBIDDEN)


def written(message: dict[str, Any], mode: str) -> str:
    return encode_messages([message], mode, context=[{"role": "user", "content": "q"}])


def assert_round_trip(message: dict[str, Any], mode: str) -> None:
    text = written(message, mode)
    parsed = parse_completion(text, mode)
    assert parsed.content == (message.get("content") or "")
    assert parsed.reasoning_content == ((message.get("reasoning_content") or "") if mode == "thinking" else "")
    calls = [call["function"] for call in message.get("tool_calls") or []]
    assert [call.name for call in parsed.tool_calls] == [call["name"] for call in calls]
    assert arguments_of(parsed) == [json.loads(call["arguments"]) for call in calls]
    assert (parsed.malformed, parsed.deviations, parsed.finished) == ([], [], True)
    again = {**message, "tool_calls": [call.to_openai() for call in parsed.tool_calls]}
    assert written(again, mode) == text


@pytest.mark.parametrize("num_rows", [150, pytest.param(2000, marks=pytest.mark.slow)])
def test_golden_assistant_messages_round_trip(golden: list[dict[str, Any]], num_rows: int) -> None:
    count = 0
    for row in golden[:num_rows]:
        for message in [*row["context"], *row["messages"]]:
            if message["role"] != "assistant" or not plain(message.get("content")):
                continue
            if not plain(message.get("reasoning_content")):
                continue
            if message.get("reasoning_content") or message.get("tool_calls"):
                assert_round_trip(message, "thinking")
            assert_round_trip(message, "chat")
            count += 1
    assert count > 1.5 * num_rows


TROUBLE = (
    *V32.control_markers,
    "</",
    "<｜",
    "<",
    "\n",
    "\r\n",
    '"',
    "\\",
    ">",
    "</result>",
    f"</{D}invoke>",
    f"<{D}invoke ",
)
text = st.lists(st.one_of(st.text(max_size=6), st.sampled_from(TROUBLE)), max_size=6).map("".join)
json_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
key = st.text(st.characters(blacklist_characters="<"), min_size=1, max_size=8)
arguments = st.dictionaries(key, json_value, max_size=4)


def is_encodable(arguments: dict[str, Any]) -> bool:
    """A value has no way to hold the closing tag, or the opening of another parameter."""
    values = [
        value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in arguments.values()
    ]
    tags = (f"</{D}parameter", f"<{D}parameter ")
    return not any(tag in value for tag in tags for value in values)


@given(
    content=text.filter(plain),
    reasoning=text.filter(plain),
    calls=st.lists(arguments.filter(is_encodable), max_size=3),
    mode=st.sampled_from(["thinking", "chat"]),
)
def test_any_message_round_trips(content: str, reasoning: str, calls: list[dict[str, Any]], mode: str) -> None:
    assume(calls or reasoning)
    assume(not re.search("[｜|‖](?i:dsml)|(?i:dsml)[｜|‖]", content + reasoning))
    tool_calls = [{"function": {"name": "f", "arguments": json.dumps(one)}} for one in calls]
    assert_round_trip(
        {"content": content, "role": "assistant", "reasoning_content": reasoning, "tool_calls": tool_calls}, mode
    )


def test_json_values_are_kept_as_the_model_wrote_them() -> None:
    parsed = parse_completion(block(invoke(parameter('[1,2, 1e3,"\\u4e2d"]', string="false"))), "chat")
    assert parsed.tool_calls[0].raw_arguments == '{"a": [1,2, 1e3,"\\u4e2d"]}'
    assert parsed.tool_calls[0].arguments == {"a": [1, 2, 1000.0, "中"]}


# ---- any text, at any chunking -------------------------------------------------------------------------------------

FRAGMENTS = (
    *V32.role_markers,
    *(
        D,
        "DSML",
        "|DSML|",
        "‖DSML‖",
        "｜｜DSML｜｜",
        "<",
        "</",
        "<｜",
        "</｜DSML",
        "\n\n",
        "\n",
        "\r\n",
        " ",
        ">",
        '"',
        '">',
        '"/>',
    ),
    *("a", 'x"y', '{"a": 1}', "[1, 2]", "NaN", "😀", "\ud800", "invoke", "parameter", "function_calls", f"<{D}foo"),
    *(' name="f">', ' name="a" string="true">', ' name="b" string="false">', ' name="a">', ' string="true" name="a">'),
    *(OPEN, CLOSE, CALL, block(CALL), f'<{D}invoke name="f">\n', f"</{D}invoke>\n", f"</{D}parameter>\n"),
    *(f'<{D}parameter name="a" string="true">', f'<{D}parameter name="b" string="false">', f"<{D}tool_calls>"),
    *("<function_calls>\n", "</function_calls>", '<invoke name="f">', "</invoke>", "</parameter>", f"<{D}/invoke>"),
    *('<parameter name="q" string="true">', '<|DSML|invoke name="f">', "</|DSML|parameter>", f'{D}invoke name="z">'),
)
soup = st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join)
WELL_FORMED = "t</think>c" + block(invoke(parameter('x"\n'), parameter("[1]", "b", "false")), invoke(name="g")) + EOS


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A well-formed completion with pieces deleted, doubled or put in."""
    text = WELL_FORMED
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.sampled_from([0, 1, 1, 3, 10, 30])))
        fragment = draw(st.sampled_from(FRAGMENTS))
        text = draw(
            st.sampled_from(
                [text[:start] + text[end:], text[:end] + text[start:], text[:start] + fragment + text[end:]]
            )
        )
    return text


completion = st.one_of(soup, mutated(), st.text())
mode = st.sampled_from(["thinking", "chat"])


def stream(text: str, mode: str, cuts: list[int], *, ids_known: bool = False) -> tuple[list[Delta], ParsedCompletion]:
    parser = CompletionParser(mode, ids_known=ids_known)
    deltas: list[Delta] = []
    for start, end in zip([0, *cuts], [*cuts, len(text)]):
        deltas += parser.feed(text[start:end])
    deltas += parser.close()
    return list(joined(deltas)), parser.finish()


def joined(deltas: list[Delta]) -> Iterator[Delta]:
    """Neighbouring pieces of the same text as one."""
    held: Any = None
    for delta in deltas:
        if held is not None and type(held) is type(delta) and getattr(held, "index", 0) == getattr(delta, "index", 0):
            assert isinstance(delta, ReasoningDelta | ContentDelta | ToolCallArgumentsDelta)
            text = held.text + delta.text
            held = (
                ToolCallArgumentsDelta(held.index, text)
                if isinstance(held, ToolCallArgumentsDelta)
                else type(held)(text)
            )
            continue
        if held is not None:
            yield held
        held = delta
    if held is not None:
        yield held


@given(text=completion, mode=mode, ids_known=st.booleans(), data=st.data())
def test_streaming_equals_whole_text_at_every_chunking(
    text: str, mode: str, ids_known: bool, data: st.DataObject
) -> None:
    whole = stream(text, mode, [], ids_known=ids_known)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    assert stream(text, mode, cuts, ids_known=ids_known) == whole
    assert stream(text, mode, list(range(1, len(text))), ids_known=ids_known) == whole


def test_a_completion_splits_in_two_anywhere() -> None:
    whole = stream(WELL_FORMED, "thinking", [])
    for cut in range(len(WELL_FORMED) + 1):
        assert stream(WELL_FORMED, "thinking", [cut]) == whole


@given(text=completion, mode=mode)
def test_deltas_add_up_to_the_completion(text: str, mode: str) -> None:
    deltas, parsed = stream(text, mode, list(range(2, len(text), 2)))
    assert "".join(d.text for d in deltas if isinstance(d, ReasoningDelta)) == parsed.reasoning_content
    assert "".join(d.text for d in deltas if isinstance(d, ContentDelta)) == parsed.content
    assert [d.call for d in deltas if isinstance(d, ToolCallFinished)] == parsed.tool_calls
    assert [d.call for d in deltas if isinstance(d, ToolCallMalformed)] == parsed.malformed
    ends = [d for d in deltas if isinstance(d, ToolCallFinished | ToolCallMalformed)]
    assert [d.index for d in ends] == list(range(len(ends)))
    assert [d.call.id for d in ends] == [f"call_{i}" for i in range(len(ends))]
    for end in ends:
        pieces = "".join(d.text for d in deltas if isinstance(d, ToolCallArgumentsDelta) and d.index == end.index)
        if isinstance(end, ToolCallFinished):
            assert pieces == end.call.raw_arguments
            assert json.loads(pieces) == end.call.arguments
            assert ToolCallStarted(end.index, end.call.name) in deltas


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("b<｜<think>DSML｜function_calls>x", "b<｜>x"),
        ("b<</｜DSML｜>｜DSML｜x>y", "b<>y"),
        (f"b<｜{block(CALL)}DSML｜invoke name=", "b<｜ name="),
        ("x <<think> y", "x < y"),
        ("<｜<think> DSML｜invoke", "<｜ DSML｜invoke"),
    ],
)
def test_the_halves_of_a_tag_do_not_join_where_something_was_taken_out(text: str, content: str) -> None:
    assert parse_completion(text, "chat").content == content


@given(text=completion, mode=mode)
def test_no_tag_leaks(text: str, mode: str) -> None:
    parsed = parse_completion(text, mode)
    for part in (parsed.reasoning_content, parsed.content):
        assert not re.search("</?[｜|‖]{1,4}DSML[｜|‖]", part)


@given(text=completion, mode=mode, where=st.lists(st.integers(0, 400), max_size=6))
def test_no_character_is_lost(text: str, mode: str, where: list[int]) -> None:
    for position in where:
        text = text[:position] + "😀" + text[position:]
    parsed = parse_completion(text, mode)
    kept = [parsed.reasoning_content, parsed.content, *parsed.deviations]
    kept += [call.raw for call in parsed.malformed]
    kept += [call.name + call.raw_arguments for call in parsed.tool_calls]
    assert sum(part.count("😀") for part in kept) >= text.count("😀")


@pytest.mark.parametrize("begun", ["<｜D", "</｜DS", "<｜｜DSML", "<|DSML"])
@pytest.mark.parametrize("follower", ["", EOS, "</think>", block(CALL).strip(), f"</｜DSML｜invoke>{EOS}"])
def test_a_tag_that_was_only_begun_is_not_content(begun: str, follower: str) -> None:
    text = f"So.{begun}{follower}"
    parser = CompletionParser("chat")
    for character in text:
        parser.feed(character)
    parsed = parser.finish()
    assert parsed == parse_completion(text, "chat")
    assert parsed.content == "So."
    assert any("only begun" in deviation for deviation in parsed.deviations)


@given(text=st.text(st.characters(blacklist_characters="\n\r")), mode=mode)
def test_plain_text_is_kept_whole_and_flows(text: str, mode: str) -> None:
    assume(not re.search("dsml|function_calls|tool_calls", text, re.IGNORECASE))
    parser = CompletionParser(mode)
    shown = 0
    for fed, character in enumerate(text, start=1):
        shown += sum(len(d.text) for d in parser.feed(character) if isinstance(d, ReasoningDelta | ContentDelta))
        assert fed - shown <= HOLD_BACK
    parsed = parser.finish()
    assert parsed.reasoning_content + parsed.content == text


@pytest.mark.parametrize(
    "prose", ["a < b", "x <｜ y", "1 <| 2", "<｜DSM some text", "a\n\nb", "</thinking", "f(<T>) | g"]
)
def test_prose_that_begins_like_a_marker_flows_on(prose: str) -> None:
    parser = CompletionParser("chat")
    deltas = [delta for character in prose + "." for delta in parser.feed(character)]
    assert "".join(d.text for d in deltas if isinstance(d, ContentDelta)) == prose + "."


# ---- shapes that models slip into: still understood ----------------------------------------------------------------

UNMARKED = block(CALL).replace(D, "")
TOLERATED: dict[str, tuple[str, str]] = {
    "no newline before the block": (block(CALL).lstrip(), "not two newlines before the calls"),
    "one newline before the block": (block(CALL)[1:], "not two newlines before the calls"),
    "CRLF": (block(CALL).replace("\n", "\r\n"), "not two newlines before the calls"),
    "indentation": (block("  " + CALL), "not one newline before a call"),
    "space before >": (block(CALL.replace(f"{D}parameter>", f"{D}parameter >")), "white space at the end of a tag"),
    "missing string": (block(CALL.replace(' string="true"', "")), "the string attribute is missing"),
    "string first": (
        block(CALL.replace('name="a" string="true"', 'string="true" name="a"')),
        "the string attribute stands first",
    ),
    "string capitalised": (block(CALL.replace('"true"', '"True"')), "a parameter tag written loosely"),
    "missing outer close": (OPEN + CALL + "\n", "the block of calls is not closed"),
    "bare invoke": ("\n\n" + CALL, "a call without a block around it"),
    "JSON body": (block(invoke('{"a": "v"}')), "arguments written as a JSON object"),
    "tool_calls": (block(CALL).replace("function_calls", "tool_calls"), "tag spelled"),
    "toolcalls": (block(CALL).replace("function_calls", "toolcalls"), "tag spelled"),
    "tool": (block(CALL).replace("function_calls", "tool"), "tag spelled"),
    "_tool_calls": (block(CALL).replace("function_calls", "_tool_calls"), "tag spelled"),
    "double bars": (block(CALL).replace("｜", "｜｜"), "tag spelled"),
    "ASCII bars": (block(CALL).replace("｜", "|"), "tag spelled"),
    "other bars": (block(CALL).replace("｜", "‖"), "tag spelled"),
    "late slash": (block(CALL).replace(f"</{D}invoke", f"<{D}/invoke"), "tag spelled"),
    "no marker": (UNMARKED, "tag spelled"),
    "marker on the block only": (OPEN + CALL.replace(D, "") + f"\n{CLOSE}", "tag spelled"),
    "lower case": (block(CALL).replace("DSML", "dsml"), "tag spelled"),
    "text after the block": (block(CALL) + "done", "text after the calls"),
    "newline after the block": (block(CALL) + "\n", "white space after the calls"),
    "stray closing tag": (block(CALL) + CLOSE, "stray closing tag"),
    "two openings": (OPEN + OPEN.strip() + "\n" + CALL + f"\n{CLOSE}", "stray tag in the block"),
}


@pytest.mark.parametrize("shape", TOLERATED)
def test_a_tolerated_shape_is_a_call_and_its_deviation_is_named(shape: str) -> None:
    text, deviation = TOLERATED[shape]
    parsed = parse_completion(text + EOS, "chat")
    assert [(call.name, call.arguments) for call in parsed.tool_calls] == [("f", {"a": "v"})]
    assert any(deviation in one for one in parsed.deviations), parsed.deviations
    assert parsed.malformed == []
    assert parsed.content == ("done" if shape == "text after the block" else "")


@pytest.mark.parametrize("gap", ["\n", "\n\n"])
def test_a_call_without_parameters(gap: str) -> None:
    parsed = parse_completion(block(f'<{D}invoke name="f">{gap}</{D}invoke>') + EOS, "chat")
    assert arguments_of(parsed) == [{}]
    assert parsed.tool_calls[0].raw_arguments == "{}"
    assert parsed.deviations == []


def test_a_self_closing_call_and_the_next() -> None:
    for text in (block(f'<{D}invoke name="now"/>', CALL), f'\n\n<{D}invoke name="now"/>\n{CALL}'):
        parsed = parse_completion(text + EOS, "chat")
        assert [(call.name, call.arguments) for call in parsed.tool_calls] == [("now", {}), ("f", {"a": "v"})]
        assert parsed.deviations


def test_a_second_block_is_read() -> None:
    parsed = parse_completion(block(CALL) + block(invoke(name="g")) + EOS, "chat")
    assert [call.name for call in parsed.tool_calls] == ["f", "g"]
    assert any("another block" in one for one in parsed.deviations)


def test_a_call_inside_the_thinking_ends_it() -> None:
    parsed = parse_completion("I should call" + block(CALL) + EOS, "thinking")
    assert parsed.reasoning_content == "I should call"
    assert arguments_of(parsed) == [{"a": "v"}]
    assert any("</think> is missing" in one for one in parsed.deviations)


@pytest.mark.parametrize("mode", ["thinking", "chat"])
def test_a_completion_may_open_the_thinking_again(mode: str) -> None:
    parsed = parse_completion("<think>r</think>c" + EOS, mode)
    assert (parsed.reasoning_content, parsed.content) == ("r", "c")
    assert parsed.deviations


def test_text_before_and_after_a_block_left_open_is_kept() -> None:
    parsed = parse_completion("pre" + OPEN + CALL + "\nNow I know." + EOS, "chat")
    assert parsed.content == "preNow I know."
    assert len(parsed.tool_calls) == 1
    assert "the block of calls is not closed" in parsed.deviations


def test_an_empty_block_does_not_swallow_the_answer() -> None:
    parsed = parse_completion(f"{OPEN}{CLOSE}The answer is 4." + EOS, "chat")
    assert parsed.content == "The answer is 4."
    assert (parsed.tool_calls, parsed.malformed) == ([], [])
    assert parsed.deviations


def test_a_value_is_kept_to_the_character() -> None:
    value = f'  indent\n\t"q" \\ {EOS} </think> </{D}invoke> <{D}function_calls> ｜DSML｜ </parameter>\n\n'
    parsed = parse_completion(block(invoke(parameter(value))) + EOS, "chat")
    assert arguments_of(parsed) == [{"a": value}]
    assert parsed.deviations == []


# ---- shapes that are not executed ----------------------------------------------------------------------------------

MALFORMED: dict[str, tuple[str, str]] = {
    "JSON that is none": (block(invoke(parameter("{oops", string="false"))), "its value is no JSON"),
    "empty JSON": (block(invoke(parameter("", string="false"))), "its value is no JSON"),
    "text as JSON": (block(invoke(parameter("hello world", string="false"))), "its value is no JSON"),
    "Python literal": (block(invoke(parameter("True", string="false"))), "its value is no JSON"),
    "NaN": (block(invoke(parameter("NaN", string="false"))), "NaN is not a JSON value"),
    "infinite number": (block(invoke(parameter("1e999", string="false"))), "too large"),
    "deep nesting": (block(invoke(parameter("[" * 100_000, string="false"))), "nested too deeply"),
    "argument injection": (block(invoke(parameter('1, "admin": true', string="false"))), "its value is no JSON"),
    "duplicate parameter": (block(invoke(parameter("1"), parameter("2"))), "given twice"),
    "unclosed parameter": (
        block(invoke(parameter("1").replace(f"</{D}parameter>", ""), parameter("2", "b"))),
        "'a' is not closed before the next one",
    ),
    "unclosed invoke": (OPEN + CALL.removesuffix(f"\n</{D}invoke>") + f"\n{CLOSE}", "the call is not closed before"),
    "no name": (block(CALL.replace(' name="f"', "")), "the invoke tag is not complete"),
    "unquoted name": (block(CALL.replace('"f"', "f")), "the invoke tag is not complete"),
    "wrong attribute": (block(CALL.replace('name="f"', 'tool="f"')), "no name that can be read"),
    "bad string attribute": (block(CALL.replace('"true"', '"yes"')), "a parameter tag cannot be read"),
    "unnamed parameter": (block(CALL.replace('name="a" ', "")), "a parameter tag cannot be read"),
    "prose in the call": (block(invoke("let me see", parameter("1"))), "text stands between the parameters"),
    "JSON body that is none": (block(invoke('{"a": ')), "not a JSON object"),
    "JSON body and parameters": (block(invoke(parameter("1"), '{"b": 2}')), "text stands between the parameters"),
    "JSON in the block": (block('{"name": "f", "arguments": {}}'), "the block holds text"),
    "parameter alone": (block(parameter("1")), "outside of an invoke"),
    "misspelt invoke": (block(CALL.replace("invoke", "invok")), "unknown tag"),
    "unknown tag": (f"\n\n<{D}think>", "unknown tag"),
}


@pytest.mark.parametrize("shape", MALFORMED)
def test_a_malformed_call_is_not_executed_and_comes_with_a_reason_and_a_hint(shape: str) -> None:
    text, reason = MALFORMED[shape]
    parsed = parse_completion("pre" + text + EOS, "chat")
    assert parsed.tool_calls == []
    assert [reason in call.reason for call in parsed.malformed] == [True], parsed.malformed
    assert parsed.malformed[0].repair_hint
    assert parsed.content == "pre"


def test_a_malformed_call_leaves_its_neighbours_alone() -> None:
    bad = invoke(parameter("{oops", string="false"), name="bad")
    parsed = parse_completion(block(CALL, bad, invoke(name="g")) + EOS, "chat")
    assert [(call.id, call.name) for call in parsed.tool_calls] == [("call_0", "f"), ("call_2", "g")]
    assert [(call.id, call.name, call.raw) for call in parsed.malformed] == [("call_1", "bad", bad)]


def test_no_prefix_of_a_call_is_executed() -> None:
    text = block(invoke(parameter("value"), parameter("[1, 2]", "b", "false")))
    complete = text.index(f"</{D}invoke>") + len(f"</{D}invoke>")
    for end in range(len(text)):
        parsed = parse_completion(text[:end], "chat")
        assert len(parsed.tool_calls) == (end >= complete)
        assert not parsed.finished
        assert D not in parsed.content
    assert "ended before the call was closed" in parse_completion(text[:90], "chat").malformed[0].reason


def test_a_value_that_never_ends_is_a_malformed_call_even_after_the_end_of_sentence() -> None:
    parsed = parse_completion(OPEN + f'<{D}invoke name="f">\n<{D}parameter name="a" string="true">x' + EOS, "chat")
    assert (parsed.tool_calls, len(parsed.malformed)) == ([], 1)


def test_calls_are_numbered_on_from_the_conversation() -> None:
    parsed = parse_completion(block(CALL, invoke("?"), CALL), "chat", first_call_index=7)
    assert [call.id for call in parsed.tool_calls] == ["call_7", "call_9"]
    assert [call.id for call in parsed.malformed] == ["call_8"]


# ---- streaming -----------------------------------------------------------------------------------------------------


def test_string_values_stream_character_by_character() -> None:
    parser = CompletionParser("chat")
    parser.feed(OPEN + f'<{D}invoke name="f">\n<{D}parameter name="a" string="true">')
    for character in "x = 1 > 0\n":
        assert parser.feed(character) == [ToolCallArgumentsDelta(0, json.dumps(character)[1:-1])]


def test_a_call_is_finished_with_its_closing_tag() -> None:
    parser = CompletionParser("chat")
    deltas = parser.feed(OPEN + CALL)
    assert isinstance(deltas[-1], ToolCallFinished)


def test_text_after_the_end_is_recorded() -> None:
    parsed = parse_completion(f"a{EOS}b{EOS}", "chat")
    assert (parsed.content, parsed.finished) == ("a", True)
    assert parsed.deviations == [f"text after the end: {'b' + EOS!r}"]


def test_feeding_after_the_end_is_the_callers_mistake() -> None:
    parser = CompletionParser("chat")
    assert parser.finish() == parser.finish()
    with pytest.raises(RuntimeError, match="start a new CompletionParser"):
        parser.feed("x")


# ---- with token ids ------------------------------------------------------------------------------------------------


def test_with_known_ids_a_spelled_marker_is_text() -> None:
    parser = CompletionParser("thinking", ids_known=True)
    parser.feed(f"say </think> and {EOS}")
    parser.feed_control(V32.think_close)
    parser.feed("the tag <think> opens")
    parser.feed_control(EOS)
    parsed = parser.finish()
    assert parsed.reasoning_content == f"say </think> and {EOS}"
    assert parsed.content == "the tag <think> opens"
    assert (parsed.finished, parsed.deviations) == (True, [])


def test_the_end_token_cuts_a_call_short() -> None:
    parser = CompletionParser("chat", ids_known=True)
    parser.feed(OPEN + f'<{D}invoke name="f">\n<{D}parameter name="a" string="true">x</')
    parser.feed_control(EOS)
    parsed = parser.finish()
    assert (parsed.finished, parsed.tool_calls) == (True, [])
    assert parsed.malformed[0].raw.endswith(">x</")


@given(
    content=text.filter(plain),
    reasoning=text.filter(plain),
    calls=st.lists(arguments.filter(is_encodable), max_size=2),
)
@settings(max_examples=settings.default.max_examples // 5)
def test_token_by_token_equals_whole_text(
    tokenizer: ChatTokenizer, content: str, reasoning: str, calls: list[dict[str, Any]]
) -> None:
    assume(calls or reasoning)
    assume(not re.search("[｜|‖](?i:dsml)|(?i:dsml)[｜|‖]", content + reasoning))
    tool_calls = [{"function": {"name": "f", "arguments": json.dumps(one)}} for one in calls]
    message = {"role": "assistant", "content": content, "reasoning_content": reasoning, "tool_calls": tool_calls}
    segments = encode_segments([message], "thinking", context=[{"role": "user", "content": "q"}])
    assume(not any("\ud800" <= character <= "\udfff" for segment in segments for character in segment.text))
    parser, detokenizer = CompletionParser("thinking", ids_known=True), Detokenizer(tokenizer)
    for token_id in tokenizer.encode_segments(segments):
        marker = tokenizer.marker_of(token_id)
        parser.feed_control(marker) if marker else parser.feed(detokenizer.feed(token_id))
    assert parser.finish() == parse_completion("".join(segment.text for segment in segments), "thinking")


# ---- cost ----------------------------------------------------------------------------------------------------------


def repeat(piece: str) -> Callable[[int], str]:
    return lambda length: piece * (length // len(piece))


LONG: dict[str, Callable[[int], str]] = {
    "prose": repeat('hello world, a<b and c|d "x" '),
    "newlines": repeat("\n"),
    "angle brackets": repeat("<"),
    "broken markers": repeat("<｜DSML"),
    "stray closing tags": repeat(f"</{D}invoke>"),
    "think tags": repeat("<think>"),
    "bare calls": repeat(CALL + "hi"),
    "white space in a tag": lambda length: f"</{D}invoke" + " " * length,
    "one string": lambda length: block(invoke(parameter('<p class="x">hello</p>\n' * (length // 23)))),
    "one JSON value": lambda length: block(invoke(parameter("[" + '"abc", ' * (length // 7) + "1]", string="false"))),
    "calls": lambda length: block(*[CALL] * (length // len(CALL))),
    "calls without string": lambda length: block(*[CALL.replace(' string="true"', "")] * (length // len(CALL))),
    "broken calls": lambda length: block(*[f'<{D}invoke name="f'] * (length // 20)),
}


@pytest.mark.parametrize("shape", LONG)
@pytest.mark.parametrize("size", [4, 1 << 30])
def test_parsing_is_linear(shape: str, size: int) -> None:
    def seconds(length: int) -> float:
        text = LONG[shape](length)
        start = time.thread_time()
        parser = CompletionParser("thinking")
        for position in range(0, len(text), size):
            parser.feed(text[position : position + size])
        parser.finish()
        return time.thread_time() - start

    # A busy machine may spoil one measurement; quadratic cost, 16 times as much, spoils all.
    pairs = ((seconds(4_000), seconds(16_000)) for _ in range(8))
    assert any(long < min(6 * short, 16_000 * 20e-6) for short, long in pairs)


def test_text_of_a_failed_call_is_not_read_again_in_the_block_that_follows() -> None:
    """The block's opening tag is not complete when the completion ends."""
    parsed = parse_completion('<｜DSML｜invoke name="f">3<｜DSML｜function_calls', "chat")
    assert [call.raw for call in parsed.malformed] == ['<｜DSML｜invoke name="f">3']
