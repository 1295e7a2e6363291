"""The attack corpus, run against a sandbox of this machine: what held, what did not, and how that was seen.

`data/attacks.jsonl` holds the snippets with a machine-readable check each; `arena.py` is what they are after. Three
attacks succeed by design, each with its answer. Attacks on what the model reads are judged with the caller's own gate
and tokenizer, for the sandbox only carries bytes.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import anyio

from v32.sandboxes import arena
from v32.sandboxes.arena import Arena, Meter
from v32.sandboxes.backends import Backend, start_sandbox
from v32.sandboxes.errors import SandboxError, SandboxFileError
from v32.sandboxes.sandbox import CellResult, ExecResult, SandboxPolicy
from v32.sandboxes.supervised import SupervisedSandbox

Outcome = Literal["contained", "succeeded", "by design", "not judged"]
OpenSession = Callable[[SandboxPolicy], Awaitable[SupervisedSandbox]]
Render = Callable[[str], str]
SpecialTokens = Callable[[str], Iterable[str]]

POLICY = SandboxPolicy(
    wall_seconds=10.0,
    memory_bytes=512 << 20,
    max_processes=64,
    workspace_bytes=192 << 20,
    workspace_inodes=20_000,
    file_bytes=128 << 20,
    output_kill_bytes=32 << 20,
)
"""Limits that fit the corpus's thresholds: small enough to be hit in seconds."""

NEIGHBOUR = replace(POLICY, background="keep")

BY_DESIGN = {
    "patch-runtime": "one interpreter is one trust domain: reset() or fresh=True gives a new one",
    "late-output-bleed": "a thread of the same interpreter prints when it likes: reset() ends it",
    "fake-notice": "notices of the host stand in a field of their own, never inside the output",
}
PATIENCE = 5.0
"""Seconds that reading a file or a listing may take before it counts as hung."""


@dataclass(frozen=True, slots=True)
class Attack:
    """A snippet and how its success shows."""

    id: str
    category: str
    lang: Literal["py", "bash"]
    code: str
    intent: str
    check: dict[str, Any]
    timeout: float | None = None
    keeps_background: bool = False


@dataclass(frozen=True, slots=True)
class AttackResult:
    """What became of one attack; `evidence` says how that was seen."""

    id: str
    category: str
    intent: str
    outcome: Outcome
    evidence: str
    seconds: float


@dataclass
class _Round:
    """One attack under way: what its check may look at."""

    attack: Attack
    arena: Arena
    meter: Meter
    sandbox: SupervisedSandbox
    open_session: Callable[[], Awaitable[SupervisedSandbox]]
    render: Render | None
    special_tokens: SpecialTokens | None
    results: list[CellResult | ExecResult] = field(default_factory=list)
    memory_before: int = 0

    @property
    def check(self) -> dict[str, Any]:
        return self.attack.check

    def output(self) -> str:
        """Everything that came back, as text."""
        pieces = []
        for result in self.results:
            pieces += [result.stdout.decode("utf-8", "replace"), result.stderr.decode("utf-8", "replace")]
            if isinstance(result, CellResult):
                pieces += [result.value or "", result.error or ""]
        return "\n".join(piece for piece in pieces if piece)


Check = Callable[[_Round], Awaitable[str]]
"""Returns how the success was seen; an empty string if it was not."""


def load_attacks() -> list[Attack]:
    """The corpus."""
    lines = (Path(__file__).parent / "data" / "attacks.jsonl").read_text("utf-8").splitlines()
    return [_attack(json.loads(line)) for line in lines if line]


async def run_attacks(
    backend: Backend = "auto",
    *,
    only: Iterable[str] | None = None,
    render: Render | None = None,
    special_tokens: SpecialTokens | None = None,
    on_result: Callable[[AttackResult], None] | None = None,
    open_session: OpenSession | None = None,
) -> list[AttackResult]:
    """Each attack in a sandbox of its own; `on_result` hears of each as it ends.

    `only` names some of them. `render` turns output into the text for the model, `special_tokens` names the special
    tokens that encoding such a text as a tool's result yields. `open_session` replaces the backend.
    """
    wanted = None if only is None else set(only)
    opener = open_session or (lambda policy: start_sandbox(policy, backend))
    results = []
    for attack in load_attacks():
        if wanted is None or attack.id in wanted:
            with Arena() as grounds:
                result = await _run(attack, grounds, opener, render, special_tokens)
            results.append(result)
            if on_result is not None:
                on_result(result)
    return results


def _attack(record: dict[str, Any]) -> Attack:
    return Attack(
        record["id"],
        record["category"],
        record["lang"],
        record["code"],
        record["intent"],
        record["success_check"],
        record.get("timeout"),
        record.get("background") == "keep",
    )


async def _run(
    attack: Attack,
    grounds: Arena,
    opener: OpenSession,
    render: Render | None,
    special_tokens: SpecialTokens | None,
) -> AttackResult:
    start = time.monotonic()
    kind = attack.check["kind"]
    if kind == "rendered_contains" and (special_tokens if _is_about_tokens(attack) else render) is None:
        missing = "tokenizer" if _is_about_tokens(attack) else "gate that makes text for the model"
        return _result(attack, "not judged", f"needs the {missing}", start)
    policy = replace(POLICY, background="keep" if attack.keeps_background else "kill")
    async with AsyncExitStack() as stack:

        async def open_session(policy: SandboxPolicy = policy) -> SupervisedSandbox:
            sandbox = await opener(policy)
            stack.push_async_callback(sandbox.close)
            return sandbox

        sandbox = await open_session()
        neighbour = await _neighbour(await open_session(NEIGHBOUR), grounds) if kind == "concurrent_marker" else None
        meter = Meter()
        turn = _Round(
            attack, grounds, meter, sandbox, open_session, render, special_tokens, memory_before=arena.resident_bytes()
        )
        with meter:
            turn.results.append(await _execute(sandbox, attack, grounds))
            if kind == "listing_fails":
                await sandbox.list_files()
        evidence = await CHECKS[kind](turn)
        if neighbour is not None:
            await neighbour.close()
    if not evidence:
        last = turn.results[0]
        return _result(attack, "contained", last.notice or last.status, start)
    if attack.id in BY_DESIGN:
        return _result(attack, "by design", BY_DESIGN[attack.id], start)
    return _result(attack, "succeeded", evidence, start)


def _result(attack: Attack, outcome: Outcome, evidence: str, start: float) -> AttackResult:
    seconds = time.monotonic() - start
    return AttackResult(attack.id, attack.category, attack.intent, outcome, evidence[:300], seconds)


async def _execute(sandbox: SupervisedSandbox, attack: Attack, grounds: Arena) -> CellResult | ExecResult:
    code = grounds.fill(attack.code)
    if attack.lang == "py":
        return await sandbox.run_python(code, timeout=attack.timeout)
    return await sandbox.bash(code, timeout=attack.timeout)


async def _neighbour(neighbour: SupervisedSandbox, grounds: Arena) -> SupervisedSandbox:
    """Another sandbox with a marked process and a marked file, for as long as it is open."""
    await neighbour.write_file(grounds.mark, b"mine")
    await neighbour.run_python(
        f"import subprocess; subprocess.Popen(['bash', '-c', ': {grounds.mark}; sleep 60'], start_new_session=True)"
    )
    return neighbour


# -- how success shows ----------------------------------------------------------------------------------------------


async def _stdout_contains(turn: _Round) -> str:
    text = turn.arena.fill(turn.check["text"])
    found = [line for line in turn.output().splitlines() if text in line]
    return f"printed {found[0][:120]!r}" if found else ""


async def _rendered_contains(turn: _Round) -> str:
    """Control characters must not be in the text; the text of a token may, if it does not become that token."""
    rendered = turn.render(turn.output()) if turn.render else turn.output()
    if _is_about_tokens(turn.attack):
        assert turn.special_tokens is not None
        became = [token for token in turn.special_tokens(rendered) if token in turn.output()]
        return f"became tokens: {became!r}" if became else ""
    found = [text for text in turn.check["texts"] if text in rendered]
    return f"the model would read {found!r}" if found else ""


def _is_about_tokens(attack: Attack) -> bool:
    return attack.id.startswith("tok-")


async def _host_connected(turn: _Round) -> str:
    with anyio.move_on_after(0.5):
        while not turn.arena.connected[turn.check["which"]]:
            await anyio.sleep(0.01)
    return "a connection reached the host" if turn.arena.connected[turn.check["which"]] else ""


async def _artefact_contains(turn: _Round) -> str:
    data = await _read(turn)
    return "a returned file held the canary" if data and turn.arena.canary.encode() in data else ""


async def _artefact_hang(turn: _Round) -> str:
    return "reading the file hung" if await _read(turn) is None else ""


async def _artefact_bytes_over(turn: _Round) -> str:
    data = await _read(turn)
    return f"{len(data):,} bytes came back" if data and len(data) > turn.check["mb"] << 20 else ""


async def _artefact_race(turn: _Round) -> str:
    deadline = time.monotonic() + 3.0
    reads = 0
    while time.monotonic() < deadline:
        reads += 1
        if await _artefact_contains(turn):
            return f"read number {reads} followed the link"
    return ""


async def _untar_then_host_file(turn: _Round) -> str:
    """Archives come back as bytes; nothing unpacks them, so nothing can have appeared."""
    await _read(turn)
    paths = [turn.check["host"], *turn.check.get("alt", [])]
    return next((f"{path} appeared" for path in map(turn.arena.fill, paths) if Path(path).exists()), "")


async def _wall_over(turn: _Round) -> str:
    seconds = turn.results[0].seconds
    return f"ran for {seconds:.1f} s" if seconds > turn.check["seconds"] else ""


async def _followup_fails(turn: _Round) -> str:
    return await _answers_wrongly(turn, "6*7", "42")


async def _followup_forged(turn: _Round) -> str:
    return await _answers_wrongly(turn, turn.check["code"], turn.check["expect"])


async def _answers_wrongly(turn: _Round, code: str, expected: str) -> str:
    """A cell that has one right answer."""
    try:
        answer = await turn.sandbox.run_python(code)
    except SandboxError as error:
        return f"there was no next cell: {error}"
    return "" if answer.value == expected else f"the next cell gave {answer.value!r} ({answer.status})"


async def _reset_forged(turn: _Round) -> str:
    with contextlib.suppress(SandboxError):  # then the next cell says so
        await turn.sandbox.reset()
    return await _followup_forged(turn)


async def _checkpoint_forged(turn: _Round) -> str:
    """Roll back, run the attack's code, roll back again: the variables must be there."""
    saved = await turn.sandbox.checkpoint()
    await turn.sandbox.rollback(saved)
    turn.results.append(await turn.sandbox.run_python(turn.check["code"]))
    try:
        await turn.sandbox.rollback(saved)
    except SandboxError as error:
        return f"the checkpoint is gone: {error}"
    return await _answers_wrongly(turn, "x", turn.check["expect"])


async def _checkpoint_file(turn: _Round) -> str:
    """A checkpoint, then a wiped workspace: no file may appear in it."""
    with contextlib.suppress(SandboxError):  # a copy that does not answer as it should is no checkpoint
        await turn.sandbox.checkpoint()
    await turn.sandbox.reset(files="wipe")
    return await _late_file(turn)


async def _wipe_fails(turn: _Round) -> str:
    try:
        await turn.sandbox.reset(files="wipe")
    except SandboxError as error:
        return f"the workspace could not be emptied: {error}"
    left = [entry.path for entry in await turn.sandbox.list_files()]
    return f"{left[:3]!r} was left" if left else await _followup_fails(turn)


async def _followup_stdout(turn: _Round) -> str:
    answer = await turn.sandbox.run_python(turn.check["code"])
    return "its output came with the next cell" if turn.check["text"].encode() in answer.stdout else ""


async def _cpu_over(turn: _Round) -> str:
    return f"used {turn.meter.cpus:.2f} CPUs" if turn.meter.cpus > turn.check["cpus"] else ""


async def _concurrent_marker(turn: _Round) -> str:
    return "saw the other sandbox" if turn.arena.mark in turn.output() else ""


async def _disk_over(turn: _Round) -> str:
    listed = sum(entry.size for entry in await turn.sandbox.list_files())
    return f"{listed:,} bytes lie in the workspace" if listed > turn.check["mb"] << 20 else ""


async def _procs_over(turn: _Round) -> str:
    if turn.meter.peak_processes > turn.check["n"]:
        return f"{turn.meter.peak_processes} processes at once"
    return await _followup_fails(turn) if turn.check.get("followup") else ""


async def _mem_over(turn: _Round) -> str:
    if turn.meter.peak_memory > turn.check["mb"] << 20:
        return f"{turn.meter.peak_memory >> 20} MiB at once"
    claim = turn.check.get("or_stdout")
    return f"printed {claim!r}" if claim and claim in turn.output() else ""


async def _host_probe_fails(turn: _Round) -> str:
    works = arena.can_open_terminal() if turn.check["probe"] == "pty" else arena.can_watch_files()
    return "" if works else f"the host has no {turn.check['probe']} left"


async def _victim_dead(turn: _Round) -> str:
    if turn.arena.victim.poll() is not None:
        return "a process of the host was killed"
    return await _followup_fails(turn)


async def _listing_fails(turn: _Round) -> str:
    with anyio.move_on_after(PATIENCE) as waiting:
        entries = await turn.sandbox.list_files()
    if waiting.cancelled_caught:
        return "the listing hung"
    if len(entries) > turn.check["entries_over"]:
        return f"the listing has {len(entries)} entries"
    return await _mem_over(_with_limit(turn)) if turn.check.get("also") == "mem_over" else ""


def _with_limit(turn: _Round) -> _Round:
    """The corpus names no number there; it means the one of its memory attacks."""
    return replace(turn, attack=replace(turn.attack, check={"mb": 700, **turn.check}))


async def _late_file(turn: _Round) -> str:
    await anyio.sleep(turn.check["wait"])
    found = any(entry.path == turn.check["path"] for entry in await turn.sandbox.list_files())
    return f"{turn.check['path']} was written after the call" if found else ""


async def _host_process_marker(turn: _Round) -> str:
    return "its process outlived the call" if arena.is_running(turn.arena.fill(turn.check["text"])) else ""


async def _host_bytes_over(turn: _Round) -> str:
    limit = turn.check["mb"] << 20
    kept = len(turn.output())
    grown = arena.resident_bytes() - turn.memory_before
    return f"the host kept {kept:,} bytes and grew by {grown:,}" if max(kept, grown) > limit else ""


async def _second_session_stdout(turn: _Round) -> str:
    await turn.sandbox.close()
    second = await turn.open_session()
    attack = replace(turn.attack, lang=turn.check["lang"], code=turn.check["code"])
    turn.results.append(await _execute(second, attack, turn.arena))
    return "the next sandbox found it" if turn.check["text"] in turn.output() else ""


async def _read(turn: _Round) -> bytes | None:
    """The file, b"" if it was refused, None if reading hung."""
    data: bytes | None = None
    with anyio.move_on_after(PATIENCE):
        try:
            data = await turn.sandbox.read_file(turn.check["path"])
        except (SandboxFileError, SandboxError):
            data = b""
    return data


CHECKS: dict[str, Check] = {
    "artefact_bytes_over": _artefact_bytes_over,
    "artefact_contains": _artefact_contains,
    "artefact_hang": _artefact_hang,
    "artefact_race": _artefact_race,
    "checkpoint_file": _checkpoint_file,
    "checkpoint_forged": _checkpoint_forged,
    "concurrent_marker": _concurrent_marker,
    "cpu_over": _cpu_over,
    "disk_over": _disk_over,
    "followup_fails": _followup_fails,
    "followup_forged": _followup_forged,
    "followup_stdout": _followup_stdout,
    "host_bytes_over": _host_bytes_over,
    "host_connected": _host_connected,
    "host_probe_fails": _host_probe_fails,
    "host_process_marker": _host_process_marker,
    "late_file": _late_file,
    "listing_fails": _listing_fails,
    "mem_over": _mem_over,
    "procs_over": _procs_over,
    "rendered_contains": _rendered_contains,
    "reset_forged": _reset_forged,
    "second_session_stdout": _second_session_stdout,
    "stdout_contains": _stdout_contains,
    "untar_then_host_file": _untar_then_host_file,
    "victim_dead": _victim_dead,
    "wall_over": _wall_over,
    "wipe_fails": _wipe_fails,
}
