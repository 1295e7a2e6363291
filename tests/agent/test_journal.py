"""The journal: what was appended is there after any crash, and damage is named."""

from __future__ import annotations

import os
import resource
import signal
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from v32.agent.errors import JournalError
from v32.agent.journal import Journal, read_journal

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def write(path: Path, *records: dict[str, object]) -> Path:
    journal = Journal(path)
    journal.create({"session_id": "s"})
    for record in records:
        journal.append(record)
    journal.close()
    return path


@given(payloads=st.lists(JSON, max_size=5))
@settings(max_examples=settings.default.max_examples // 5)
def test_records_come_back_as_they_were_appended(
    tmp_path_factory: pytest.TempPathFactory, payloads: list[object]
) -> None:
    path = write(tmp_path_factory.mktemp("j") / "a.jsonl", *({"type": "x", "payload": payload} for payload in payloads))
    contents = read_journal(path)
    assert [record["payload"] for record in contents.records] == payloads
    assert contents.header["session_id"] == "s"


def test_a_lone_surrogate_survives(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"type": "x", "text": "\ud800"})
    assert read_journal(path).records[0]["text"] == "\ud800"


def test_a_file_cut_anywhere_gives_the_whole_lines_before_the_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"type": "x", "text": "é"}, {"type": "y"})
    data = path.read_bytes()
    header_end = data.index(b"\n") + 1
    for length in range(header_end, len(data) + 1):
        path.write_bytes(data[:length])
        journal = Journal(path)
        contents = journal.open()
        assert len(contents.records) == data[header_end:length].count(b"\n")
        journal.append({"type": "z"})
        journal.close()
        assert [record["type"] for record in read_journal(path).records][-1] == "z"


def test_a_file_without_a_whole_header_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"type":"header"')
    with pytest.raises(JournalError, match="nothing was recorded in it; delete it"):
        Journal(path).open()


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl")
    before = path.read_bytes()
    with pytest.raises(JournalError, match=r"a\.jsonl exists; continue it with Session\.resume"):
        Journal(path).create({})
    assert path.read_bytes() == before


def test_one_journal_belongs_to_one_session(tmp_path: Path) -> None:
    first = Journal(tmp_path / "a.jsonl")
    first.create({})
    with pytest.raises(JournalError, match="in use by another session"):
        Journal(first.path).open()
    first.append({"type": "x"})
    first.close()
    assert len(Journal(first.path).open().records) == 1


def test_a_worker_that_outlives_the_session_does_not_keep_its_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "s.jsonl")
    journal.create({})
    if (worker := os.fork()) == 0:
        time.sleep(60)
        os._exit(0)
    try:
        journal.close()
        again = Journal(journal.path)
        again.open()
        again.close()
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: [lines[0], b"{oops", lines[2]], "line 2 is damaged"),
        (lambda lines: [lines[0], b"[1]", lines[2]], "line 2 is damaged: no JSON object"),
        (lambda lines: [lines[0], lines[2]], "line 2: record 2 where 1 was expected"),
        (lambda lines: [b'{"format":"other"}', *lines[1:]], "is no v32 journal"),
        (lambda lines: [lines[0].replace(b'"version":1', b'"version":99'), *lines[1:]], "journal version 99"),
    ],
)
def test_damage_is_named_with_its_line(tmp_path: Path, damage: object, message: str) -> None:
    path = write(tmp_path / "a.jsonl", {"type": "x"}, {"type": "y"})
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join(damage(lines)) + b"\n")  # type: ignore[operator]
    with pytest.raises(JournalError, match=message):
        Journal(path).open()


def test_a_missing_file_or_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match=r"cannot open the journal .*nowhere\.jsonl"):
        Journal(tmp_path / "nowhere.jsonl").open()
    with pytest.raises(JournalError, match="cannot create the journal"):
        Journal(tmp_path / "no" / "folder.jsonl").create({})


def test_a_failed_write_leaves_whole_lines(tmp_path: Path) -> None:
    """A full disk in the middle of a line: the record is refused, the journal can be read and continued."""
    journal = Journal(tmp_path / "a.jsonl")
    journal.create({})
    journal.append({"type": "x"})
    size = journal.path.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))
    try:
        with pytest.raises(JournalError, match=r"cannot write to the journal .*File too large"):
            journal.append({"type": "y", "text": "long enough"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    journal.append({"type": "z"})
    assert [record["type"] for record in read_journal(journal.path).records] == ["x", "z"]
