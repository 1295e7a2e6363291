from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from v32.model_runtime.checkpoint.source import embedded_checkpoint
from v32.model_runtime.encoding import V32, ChatTokenizer, Detokenizer, Segment, encode_segments
from v32.model_runtime.errors import CheckpointError

STRUCTURAL = (*V32.control_markers, "<｜▁pad▁｜>", "<｜tool▁calls▁begin｜>", "<|EOT|>", "<｜fim▁hole｜>")
FRAGMENTS = (
    *STRUCTURAL,
    *(piece for m in STRUCTURAL for piece in (m[:-1], m[1:])),
    "</result>",
    " ",
    "\n",
    "x",
    "é",
    "東",
    "😀",
)
nasty_text = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=8)), max_size=12).map("".join)


@pytest.fixture(scope="module")
def specification() -> dict[str, Any]:
    """Of the embedded checkpoint's small tokenizer."""
    loaded: dict[str, Any] = json.loads((embedded_checkpoint() / "tokenizer.json").read_text(encoding="utf-8"))
    return loaded


def with_token(specification: dict[str, Any], text: str, token_id: int) -> ChatTokenizer:
    token = {**specification["added_tokens"][-1], "content": text, "id": token_id}
    return ChatTokenizer(json.dumps({**specification, "added_tokens": [*specification["added_tokens"], token]}))


def test_the_example_of_the_model_card_has_its_ids(tokenizer: ChatTokenizer) -> None:
    messages = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "Hello! I am DeepSeek."},
        {"role": "user", "content": "1+1=?"},
    ]
    ids = tokenizer.encode_segments(encode_segments(messages, "thinking"))
    assert ids == [
        *(0, 128803, 33310, 128804, 128799, 19923, 3, 342, 1030, 22651, 4374, 1465, 16, 1),
        *(128803, 19, 13, 19, 127252, 128804, 128798),
    ]


def test_ids_of_the_markers_are_looked_up(tokenizer: ChatTokenizer) -> None:
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.user_id, tokenizer.assistant_id) == (0, 1, 128803, 128804)
    assert (tokenizer.think_open_id, tokenizer.think_close_id, tokenizer.vocab_size) == (128798, 128799, 128815)
    assert tokenizer.marker_of(128799) == "</think>"
    assert tokenizer.marker_of(33310) is None
    assert tokenizer.encode_control("</think>") == [128799]
    assert tokenizer.encode_control(V32.dsml) == [28217, 10525, 7398, 28217]


@given(text=nasty_text)
def test_no_text_yields_a_structural_id(tokenizer: ChatTokenizer, text: str) -> None:
    ids = tokenizer.encode_text(text)
    assert not any(map(tokenizer.is_structural, ids))
    assert tokenizer.decode(ids) == text


@given(text=nasty_text, result=nasty_text)
def test_only_the_runtime_writes_structural_ids(tokenizer: ChatTokenizer, text: str, result: str) -> None:
    arguments = json.dumps({text or "k": text, "n": [text]})
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": text, "tools": [{"function": {"name": "f", "description": text}}]},
        {"role": "user", "content": text},
        {
            "role": "assistant",
            "reasoning_content": text + ".",
            "tool_calls": [{"function": {"name": "f", "arguments": arguments}}],
        },
        {"role": "tool", "content": result},
    ]
    segments = encode_segments(messages, "thinking")
    ids = tokenizer.encode_segments(segments)
    expected = [s.text for s in segments if s.is_control and s.text != V32.dsml]
    assert [tokenizer.decode([i]) for i in ids if tokenizer.is_structural(i)] == expected
    assert tokenizer.decode(ids) == "".join(segment.text for segment in segments)


def test_without_markers_in_the_text_the_ids_are_those_of_the_whole_string(
    tokenizer: ChatTokenizer, golden: list[dict[str, Any]]
) -> None:
    contents = [token.content for token in tokenizer.backend.get_added_tokens_decoder().values()]
    added = re.compile("|".join(map(re.escape, contents)))
    compared = 0
    for row in golden:
        if "output" not in row or compared == 100:
            continue
        segments = encode_segments(
            row["messages"], row["thinking_mode"], row["context"], row["drop_thinking"], row["add_default_bos_token"]
        )
        if any(added.search(segment.text) for segment in segments if not segment.is_control):
            continue
        compared += 1
        whole = tokenizer.backend.encode(row["output"], add_special_tokens=False).ids
        assert tokenizer.encode_segments(segments) == whole
    assert compared == 100


def test_plain_segments_are_tokenised_in_one_piece(tokenizer: ChatTokenizer) -> None:
    split = [Segment("Hello wor"), Segment("ld."), Segment("\n\n<"), Segment(V32.dsml, True), Segment("invoke")]
    assert tokenizer.encode_segments(split) == tokenizer.encode_text(f"Hello world.\n\n<{V32.dsml}invoke")


def test_a_lone_surrogate_becomes_the_replacement_character(tokenizer: ChatTokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode_text("a\ud800b \ud83d\ude00")) == "a\ufffdb 😀"


# ---- detokenizer ---------------------------------------------------------------------------------------------------


@given(ids=st.lists(st.integers(0, 128_814), max_size=40))
def test_any_ids_decode_as_the_library_decodes_them(tokenizer: ChatTokenizer, ids: list[int]) -> None:
    runs: list[list[int]] = [[]]
    for token_id in ids:
        runs += [[token_id], []] if tokenizer.is_structural(token_id) else []
        if not tokenizer.is_structural(token_id):
            runs[-1].append(token_id)
    expected = "".join(tokenizer.backend.decode(run, skip_special_tokens=False) for run in runs)
    assert tokenizer.decode(ids) == expected


@given(text=st.text())
def test_a_character_appears_whole_or_not_yet(tokenizer: ChatTokenizer, text: str) -> None:
    detokenizer = Detokenizer(tokenizer)
    seen = ""
    for token_id in tokenizer.encode_text(text):
        seen += detokenizer.feed(token_id)
        assert text.startswith(seen)
    assert seen + detokenizer.finish() == text


def test_an_id_beyond_the_vocabulary_decodes_to_nothing(tokenizer: ChatTokenizer) -> None:
    assert tokenizer.decode([129_000]) == ""
    assert tokenizer.token_bytes(129_000) == b""


# ---- other tokenizers ----------------------------------------------------------------------------------------------


def test_dsml_is_one_control_token_where_the_tokenizer_has_it(specification: dict[str, Any]) -> None:
    tokenizer = with_token(specification, V32.dsml, 5_000)
    call = {"function": {"name": "f", "arguments": json.dumps({"a": "｜DSML｜"})}}
    segments = encode_segments([{"role": "assistant", "tool_calls": [call]}], "thinking", [{"role": "user"}])
    ids = tokenizer.encode_segments(segments)
    assert tokenizer.encode_control(V32.dsml) == [5_000]
    assert ids.count(5_000) == 6  # block, invoke and parameter, each opened and closed; not the one in the value
    assert tokenizer.decode(ids).count(V32.dsml) == 7


def test_a_tokenizer_without_the_role_markers_is_refused_by_name(specification: dict[str, Any]) -> None:
    kept = [token for token in specification["added_tokens"] if token["content"] not in ("<think>", "<｜User｜>")]
    with pytest.raises(CheckpointError, match="lacks the tokens <｜User｜>, <think>"):
        ChatTokenizer(json.dumps({**specification, "added_tokens": kept}))


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", '{"model": {}, "decoder": {}, "added_tokens": []}'])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(damage)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        ChatTokenizer.from_dir(tmp_path)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read the tokenizer .*tokenizer\.json"):
        ChatTokenizer.from_dir(tmp_path)


def test_a_tokenizer_that_is_not_byte_level_is_refused(specification: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="not a byte-level BPE tokenizer"):
        ChatTokenizer(json.dumps({**specification, "decoder": {"type": "WordPiece"}}))


def test_the_fingerprint_tells_tokenizers_apart(specification: dict[str, Any]) -> None:
    one, other = with_token(specification, "<one>", 5_000), with_token(specification, "<other>", 5_000)
    assert one.fingerprint != other.fingerprint
    assert one.fingerprint == with_token(specification, "<one>", 5_000).fingerprint
