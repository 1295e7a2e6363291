from __future__ import annotations

import contextlib
import copy
import json
import re
import time
from typing import Any

import pytest

from v32.model_runtime.encoding import V32, EncodingError, encode_messages, encode_segments

Message = dict[str, Any]
BOS, EOS, USER, ASSISTANT = V32.bos, V32.eos, V32.user, V32.assistant


def encode(row: dict[str, Any]) -> str:
    return encode_messages(
        row["messages"], row["thinking_mode"], row["context"], row["drop_thinking"], row["add_default_bos_token"]
    )


def call(name: str = "f", call_id: str = "c0", **arguments: Any) -> Message:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


# ---- against DeepSeek's own encoder --------------------------------------------------------------------------------


def test_equal_byte_for_byte_wherever_the_official_encoder_accepts(golden: list[dict[str, Any]]) -> None:
    accepted = [row for row in golden if "output" in row]
    assert len(accepted) == 1694
    assert [index for index, row in enumerate(accepted) if encode(row) != row["output"]] == []


def test_what_the_official_encoder_refuses_is_a_typed_error_with_its_message(golden: list[dict[str, Any]]) -> None:
    refused = [row for row in golden if "error" in row and "out of range" not in row["error"]]
    assert len(refused) > 100
    for row in refused:
        with pytest.raises(EncodingError) as caught:
            encode(row)
        if "thinking_mode" in row["error"]:
            assert caught.value.index is None
        else:
            conversation = [*row["context"], *row["messages"]]
            assert caught.value.index is not None
            assert conversation[caught.value.index]["role"] in ("critic", "developer", "assistant", "tool")


def test_a_developer_message_before_the_last_question_stays(golden: list[dict[str, Any]]) -> None:
    """The official encoder deletes it and then runs out of messages; ours is the same with and without dropping."""
    rows = [row for row in golden if "error" in row and "out of range" in row["error"]]
    accepted = 0
    for row in rows:
        try:
            output = encode(row)
        except EncodingError:
            continue
        accepted += 1
        assert output == encode({**row, "drop_thinking": not row["drop_thinking"]})
        for message in row["messages"]:
            if message["role"] == "developer":
                assert f"{V32.developer_question}{message['content']}{ASSISTANT}" in output
    assert accepted > 150


def test_segments_mark_as_control_what_the_runtime_itself_writes_and_nothing_else(golden: list[dict[str, Any]]) -> None:
    for row in golden[:300]:
        if "output" not in row:
            continue
        segments = encode_segments(
            row["messages"], row["thinking_mode"], row["context"], row["drop_thinking"], row["add_default_bos_token"]
        )
        assert "".join(segment.text for segment in segments) == row["output"]
        turns = sum(message["role"] in ("user", "developer") for message in row["messages"])
        assert sum(segment == (USER, True) for segment in segments) == turns
        ends = sum(message["role"] == "assistant" for message in row["messages"])
        assert sum(segment == (EOS, True) for segment in segments) == ends


def test_inputs_are_left_alone(golden: list[dict[str, Any]]) -> None:
    for row in golden[:200]:
        before = copy.deepcopy(row)
        with contextlib.suppress(EncodingError):
            encode(row)
        assert row == before


# ---- the format in small -------------------------------------------------------------------------------------------

HISTORY: list[Message] = [
    {"role": "user", "content": "u"},
    {"role": "assistant", "content": "a", "reasoning_content": "r"},
    {"role": "user", "content": "u2"},
]


@pytest.mark.parametrize(
    ("messages", "mode", "expected"),
    [
        ([], "thinking", BOS),
        (HISTORY[:1], "chat", f"{BOS}{USER}u{ASSISTANT}</think>"),
        (HISTORY[:1], "thinking", f"{BOS}{USER}u{ASSISTANT}<think>"),
        (HISTORY[:2], "thinking", f"{BOS}{USER}u{ASSISTANT}<think>r</think>a{EOS}"),
        (HISTORY, "thinking", f"{BOS}{USER}u{ASSISTANT}</think>a{EOS}{USER}u2{ASSISTANT}<think>"),
        (
            [{"role": "developer", "content": "d"}],
            "thinking",
            f"{BOS}{USER}\n\n# The user's message is: d{ASSISTANT}<think>",
        ),
        (HISTORY[1:2], "thinking", f"{BOS}r</think>a{EOS}"),
    ],
)
def test_small_conversations(messages: list[Message], mode: str, expected: str) -> None:
    assert encode_messages(messages, mode) == expected


def test_braces_and_percent_signs_are_text() -> None:
    assert "{x} %s {}" in encode_messages([{"role": "user", "content": "{x} %s {}"}], "chat")


def test_the_prompt_only_grows_between_user_messages(golden: list[dict[str, Any]]) -> None:
    for row in golden[:300]:
        messages = [*row["context"], *row["messages"]]
        last = max((i for i, m in enumerate(messages) if m["role"] in ("user", "developer")), default=0)
        prompt = ""
        for end in range(last + 1, len(messages) + 1):
            try:
                longer = encode_messages(messages[:end], "thinking")
            except EncodingError:
                break
            assert longer.startswith(prompt)
            prompt = longer


def test_context_and_rest_join_to_the_whole() -> None:
    loop: list[Message] = [
        HISTORY[0],
        {"role": "assistant", "content": "", "reasoning_content": "r", "tool_calls": [call("f"), call("g", "c1")]},
        {"role": "tool", "tool_call_id": "c0", "content": "x"},
        {"role": "tool", "tool_call_id": "c1", "content": "y"},
        {"role": "assistant", "content": "done", "reasoning_content": "r2"},
    ]
    whole = encode_messages(loop, "thinking")
    for split in range(1, len(loop)):
        head, tail = loop[:split], loop[split:]
        assert encode_messages(head, "thinking") + encode_messages(tail, "thinking", context=head) == whole


# ---- results -------------------------------------------------------------------------------------------------------


def batch(*results: tuple[str, str]) -> list[Message]:
    calls = [call("f", "one"), call("g", "two"), call("h", "three")]
    tools = [{"role": "tool", "tool_call_id": call_id, "content": content} for call_id, content in results]
    return [HISTORY[0], {"role": "assistant", "reasoning_content": "r", "tool_calls": calls}, *tools]


def order(messages: list[Message], context: list[Message] | None = None) -> list[str]:
    return re.findall(r"<result>(.*?)</result>", encode_messages(messages, "thinking", context))


def test_swapped_results_stand_in_the_order_of_their_calls() -> None:
    assert order(batch(("three", "3"), ("one", "1"), ("two", "2"))) == ["1", "2", "3"]


def test_results_whose_ids_are_not_those_of_the_calls_stand_as_given() -> None:
    assert order(batch(("three", "3"), ("c1", "1"), ("two", "2"))) == ["3", "1", "2"]
    assert order(batch(("three", "a"), ("three", "b"), ("one", "c"))) == ["a", "b", "c"]


@pytest.mark.parametrize("odd", [None, 5, ["one"], {"id": "one"}])
def test_ids_that_are_no_text_pair_nothing(odd: object) -> None:
    messages = batch(("three", "3"), ("one", "1"), ("two", "2"))
    messages[2]["tool_call_id"] = odd
    assert order(messages) == ["3", "1", "2"]
    messages[1]["tool_calls"][0]["id"] = odd
    assert order(messages) == ["3", "1", "2"]
    messages[1]["tool_calls"] = odd
    with pytest.raises(EncodingError):
        encode_messages(messages[2:], "thinking", context=messages[:2])


def test_a_result_that_stands_in_the_context_is_not_moved() -> None:
    messages = batch(("three", "3"), ("two", "2"), ("one", "1"))
    assert order(messages[3:], context=messages[:3]) == ["1", "2"]


def test_one_result_too_many_is_an_error_at_its_place() -> None:
    messages = [*batch(("one", "1"), ("two", "2"), ("three", "3")), {"role": "tool", "content": "4"}]
    with pytest.raises(EncodingError, match="message 5: result 4 has no call") as caught:
        encode_messages(messages, "thinking")
    assert caught.value.index == 5


# ---- beyond the official encoder -----------------------------------------------------------------------------------


def test_arguments_may_be_an_object_instead_of_its_text() -> None:
    text = call("f", a=1, b="x")
    data: Message = {"id": "c0", "function": {"name": "f", "arguments": {"a": 1, "b": "x"}}}
    one, two = (
        encode_messages([HISTORY[0], {"role": "assistant", "tool_calls": [c]}], "thinking") for c in (text, data)
    )
    assert one == two


def assistant(*calls: Any) -> Message:
    return {"role": "assistant", "content": "", "tool_calls": list(calls)}


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "critic", "content": "x"}, "unknown role 'critic'"),
        ({"content": "x"}, "unknown role None"),
        ("hello", "unknown role None"),
        ({"role": "developer", "content": ""}, "needs content"),
        ({"role": "assistant", "content": "a"}, "needs reasoning_content or tool_calls"),
        ({"role": "tool", "content": "x"}, "has no call"),
        (assistant({"function": {"name": "f", "arguments": "{oops"}}), "are not JSON"),
        (assistant({"function": {"name": "f", "arguments": "[1]"}}), "are a list; they must be an object"),
        (assistant({"function": {"name": "f", "arguments": "[" * 100_000}}), "are not JSON"),
        (assistant({"function": {"arguments": "{}"}}), "the key 'name' is missing"),
        (assistant({"name": "f"}), "the key 'function' is missing"),
        (assistant({"function": {"name": None, "arguments": "{}"}}), "it must be a string"),
        (assistant("f"), "TypeError"),
        ({"role": "system", "content": "", "tools": [{"type": "function"}]}, "the key 'function' is missing"),
        ({"role": "system", "content": "", "response_format": {"schema": {1, 2}}}, "not JSON serializable"),
    ],
)
def test_bad_messages_are_refused_with_index_and_reason(message: Any, reason: str) -> None:
    with pytest.raises(EncodingError, match=re.escape(reason)) as caught:
        encode_messages([message], "thinking", context=[HISTORY[0], HISTORY[0]])
    assert caught.value.index == 2


def test_an_unknown_thinking_mode_is_refused_with_the_choices() -> None:
    with pytest.raises(EncodingError, match="'fast'; choose 'thinking' or 'chat'"):
        encode_messages([], "fast")


# ---- cost ----------------------------------------------------------------------------------------------------------


def loop(rounds: int) -> list[Message]:
    messages: list[Message] = [{"role": "user", "content": "q"}]
    for i in range(rounds):
        messages.append({"role": "assistant", "reasoning_content": "r", "tool_calls": [call("f", f"c{i}", n=i)]})
        messages.append({"role": "tool", "tool_call_id": f"c{i}", "content": "x" * 200})
    return messages


def seconds(messages: list[Message], context: list[Message] | None = None, repeat: int = 1) -> float:
    start = time.thread_time()
    for _ in range(repeat):
        encode_messages(messages, "thinking", context)
    return time.thread_time() - start


def test_encoding_is_linear_in_the_length_of_an_agent_loop() -> None:
    short, long = loop(300), loop(1200)
    # A busy machine may spoil one measurement; quadratic cost, 16 times as much, spoils all.
    assert any(seconds(long) < 6 * seconds(short) for _ in range(8))


def test_adding_a_message_costs_the_same_after_a_long_history() -> None:
    short, long = loop(5), loop(4000)
    assert any(
        seconds(long[-1:], long[:-1], repeat=100) < 5 * seconds(short[-1:], short[:-1], repeat=100) for _ in range(8)
    )
