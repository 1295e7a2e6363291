"""Status, state and words follow from what the host measured, never from what code printed."""

from __future__ import annotations

import pytest

from v32.sandboxes.sandbox import SandboxPolicy
from v32.sandboxes.verdict import Measured, judge

POLICY = SandboxPolicy()


@pytest.mark.parametrize(
    ("call", "status", "state", "words"),
    [
        (Measured("python", "value"), "ok", "kept", ""),
        (Measured("python", "error"), "error", "kept", ""),
        (Measured("exec", "exit", b"0"), "ok", "kept", ""),
        (Measured("exec", "exit", b"1"), "error", "kept", ""),
        (Measured("python", "error", was_interrupted=True), "timeout", "kept", "Variables are kept"),
        (
            Measured("python", "died", was_interrupted=True, was_killed=True, lost_variables=True),
            "timeout",
            "lost",
            "did not react to the interrupt",
        ),
        (Measured("python", "died", b"exit 0"), "died", "lost", "ended by itself (exit 0)"),
        (Measured("exec", "exit", b"0", is_over_memory=True), "memory_limit", "kept", "1 GiB"),
        (Measured("python", "died", is_over_memory=True), "memory_limit", "lost", "files in /workspace are kept"),
        (Measured("exec", "exit", b"1", hit_process_limit=True), "process_limit", "kept", "128 processes"),
        (Measured("exec", "exit", b"0", hit_process_limit=True), "ok", "kept", ""),
        (Measured("python", "error", disk_is_full=True), "disk_limit", "kept", "512 MiB"),
        (Measured("exec", "signal", b"9", has_overflowed=True, was_interrupted=True), "output_limit", "kept", "64 MiB"),
        (Measured("python", "error", is_cancelled=True, was_interrupted=True), "cancelled", "kept", "Cancelled"),
        (Measured("python"), "session_dead", "lost", "gone with its variables and files"),
        (Measured("python", is_nonsense=True), "protocol_violation", "lost", "nonsense"),
        (Measured("python", "value", late_bytes=1234, anomalies=2), "ok", "kept", "1,234 bytes"),
    ],
)
def test_verdict(call: Measured, status: str, state: str, words: str) -> None:
    verdict = judge(call, POLICY)
    assert (verdict.status, verdict.state) == (status, state)
    assert words in verdict.notice
    if not words:
        assert verdict.notice == ""


def test_state_is_lost_whenever_variables_were_lost() -> None:
    assert judge(Measured("exec", "exit", b"0", lost_variables=True), POLICY).state == "lost"
