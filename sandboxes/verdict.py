"""From what the host measured of a call to its status, its state and the words for the model.

Plain functions: a `Measured` enters, a `Verdict` leaves. Nothing that foreign code printed is looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

from v32.sandboxes.sandbox import SandboxPolicy, State, Status


@dataclass(slots=True)
class Measured:
    """One call, as the host saw it; filled while it runs."""

    kind: str  # python or exec
    how: str = "dead"  # value, none, error, exit, signal, died, ok, failed; dead: the supervisor never answered
    detail: bytes = b""
    limit_seconds: float = 0.0
    seconds: float = 0.0
    was_interrupted: bool = False
    was_killed: bool = False
    is_cancelled: bool = False
    has_overflowed: bool = False
    is_over_memory: bool = False
    hit_process_limit: bool = False
    disk_is_full: bool = False
    is_nonsense: bool = False
    lost_variables: bool = False
    late_bytes: int = 0
    anomalies: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    status: Status
    state: State
    notice: str


def judge(call: Measured, policy: SandboxPolicy) -> Verdict:
    """The verdict on a call that has ended, one way or another."""
    status = _status(call)
    state: State = "lost" if call.lost_variables or call.how in ("dead", "died") else "kept"
    sentences = [_sentence(status, call, policy), _fate(status, state, call), *_remarks(call)]
    return Verdict(status, state, " ".join(sentence for sentence in sentences if sentence))


def _status(call: Measured) -> Status:
    failed = call.how in ("error", "died", "dead", "failed", "signal") or (call.how == "exit" and call.detail != b"0")
    if call.is_nonsense:
        return "protocol_violation"
    if call.has_overflowed:
        return "output_limit"
    if call.is_over_memory:
        return "memory_limit"
    if call.is_cancelled:
        return "cancelled"
    if call.was_interrupted:
        return "timeout"
    if call.how == "dead":
        return "session_dead"
    if call.hit_process_limit and failed:
        return "process_limit"
    if call.disk_is_full and failed:
        return "disk_limit"
    if call.how == "died":
        return "died"
    return "error" if failed else "ok"


def _sentence(status: Status, call: Measured, policy: SandboxPolicy) -> str:
    return {
        "ok": "",
        "error": "",
        "timeout": f"Stopped after {call.seconds:.1f} s (limit {call.limit_seconds:g} s); the output so far is above.",
        "memory_limit": f"Used more than {_size(policy.memory_bytes)} of memory and was stopped; "
        "work on the data in parts.",
        "process_limit": f"Reached the limit of {policy.max_processes} processes and threads; run fewer at a time.",
        "disk_limit": f"The workspace is full ({_size(policy.workspace_bytes)}, {policy.workspace_inodes:,} files); "
        "delete files first.",
        "output_limit": f"Printed more than {_size(policy.output_kill_bytes)} and was stopped; "
        "write large results to a file.",
        "cancelled": "Cancelled; the output so far is above.",
        "died": f"The Python process ended by itself ({_text(call)}) before finishing the cell.",
        "protocol_violation": "The sandbox answered with nonsense and was stopped.",
        "session_dead": "The sandbox ended during the call.",
    }[status]


def _fate(status: Status, state: State, call: Measured) -> str:
    if call.how == "dead":
        return "The sandbox is gone with its variables and files."
    if state == "lost" and call.how in ("value", "none", "error"):  # the interpreter that answered is there
        return "The variables of earlier calls were lost before this one; files in /workspace are kept."
    if state == "lost":
        restarted = "It did not react to the interrupt, so Python was restarted: v" if call.was_killed else "V"
        return f"{restarted}ariables are lost, files in /workspace are kept."
    if call.kind == "python" and status in ("timeout", "cancelled"):
        return "Variables are kept."
    return ""


def _remarks(call: Measured) -> list[str]:
    remarks = []
    if call.late_bytes:
        remarks.append(f"{call.late_bytes:,} bytes that earlier code printed between the calls were dropped.")
    if call.anomalies:
        remarks.append(f"{call.anomalies} messages forged on the runtime's own channel were ignored.")
    return remarks


def _text(call: Measured) -> str:
    return call.detail.decode("ascii", "replace")


def _size(count: int) -> str:
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= factor:
            return f"{count / factor:g} {unit}"
    return f"{count} bytes"
