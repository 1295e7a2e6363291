"""The Sandbox that every backend opens: calls over a channel to a supervisor, files beside it, a jail around both.

A call is a loop over frames with three deadlines: interrupt, kill, bury. What a backend brings is the channel, the
files and the jail; everything the model sees is made here, from what the host measured.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Literal, Protocol, Self

import anyio

from v32.sandboxes.channel import Channel, ChannelClosed
from v32.sandboxes.errors import SandboxClosed, SandboxError
from v32.sandboxes.guest.wire import FrameError
from v32.sandboxes.output import Output
from v32.sandboxes.sandbox import CellResult, Enforcement, ExecResult, FileEntry, OutputChunk, SandboxPolicy
from v32.sandboxes.verdict import Measured, judge

MAX_CODE_BYTES = 8 << 20
MAX_STDIN_BYTES = 64 << 20
INTERRUPT_SECONDS = 4.0
"""How long the supervisor may take to pass an interrupt on; the grace of the code begins when it has."""
BURY_SECONDS = 8.0
"""After a kill, how long the supervisor may take to answer before it is killed itself."""


class Files(Protocol):
    """The workspace, from outside."""

    async def read(self, path: str, max_bytes: int) -> bytes: ...
    async def write(self, path: str, data: bytes) -> None: ...
    async def entries(self) -> list[FileEntry]: ...
    def is_full(self) -> bool: ...
    def close(self) -> None: ...


class Jail(Protocol):
    """The processes around the supervisor, from outside."""

    def kill(self) -> None:
        """End the supervisor and everything under it, now."""

    def memory_strikes(self) -> int:
        """How often the kernel has killed for memory, so far."""

    def process_strikes(self) -> int:
        """How often the kernel has refused a process, so far."""

    async def close(self) -> None:
        """Wait until all is gone, killing what does not go; release what was taken for it."""


@dataclass(slots=True)
class _Call:
    """A running call: what was measured, the two outputs, and the next deadline."""

    name: bytes
    measured: Measured
    deadline: float | None
    memory_strikes: int
    process_strikes: int
    out: Output
    err: Output
    done: bool = False
    ended: anyio.Event = field(default_factory=anyio.Event)


class SupervisedSandbox:
    """A `Sandbox` around one supervisor."""

    def __init__(
        self, policy: SandboxPolicy, channel: Channel, files: Files, jail: Jail, enforced: Enforcement
    ) -> None:
        self._policy, self._channel, self._files, self._jail = policy, channel, files, jail
        self._enforced = enforced
        self._turn = anyio.Semaphore(1)
        self._call: _Call | None = None
        self._names = 0
        self._obituary = ""
        self._has_untold_loss = False

    @property
    def enforced(self) -> Enforcement:
        return self._enforced

    # -- running code -------------------------------------------------------------------------------------------

    async def run_python(self, code: str, *, timeout: float | None = None, fresh: bool = False) -> CellResult:
        """Run a cell in the persistent interpreter; `fresh` forgets its variables first."""
        call = await self._finish(self._python_frame(code, fresh), "python", timeout)
        return self._cell_result(call)

    async def bash(
        self, command: str, *, timeout: float | None = None, cwd: str = ".", env: Mapping[str, str] | None = None
    ) -> ExecResult:
        """Run a command line in bash."""
        call = await self._finish(self._exec_frame(["/bin/bash", "-c", command], cwd, env), "exec", timeout)
        return self._exec_result(call)

    async def exec(
        self, argv: Sequence[str], *, stdin: bytes | None = None, timeout: float | None = None
    ) -> ExecResult:
        """Run one program, without a shell."""
        if not argv:
            raise SandboxError("exec: argv is empty; give the program and its arguments")
        call = await self._finish(self._exec_frame(argv, ".", None, stdin or b""), "exec", timeout)
        return self._exec_result(call)

    async def stream(
        self, kind: Literal["python", "bash"], code: str, *, timeout: float | None = None
    ) -> AsyncGenerator[OutputChunk | CellResult | ExecResult, None]:
        """Chunks as they come, then exactly one result."""
        is_python = kind == "python"
        frame = self._python_frame(code, False) if is_python else self._exec_frame(["/bin/bash", "-c", code], ".", None)
        async with self._turn:
            call = self._begin(frame, "python" if is_python else "exec", timeout)
            async with aclosing(self._chunks(call)) as chunks:  # left early, it must end the call before the next
                async for chunk in chunks:
                    yield chunk
            self._tell_loss(call)
        yield self._cell_result(call) if is_python else self._exec_result(call)

    async def cancel(self) -> None:
        """Interrupt the running call, then kill it; returns when it has ended. Safe at any time."""
        call = self._call
        if call is None:
            return
        self._hurry(call)
        self._channel.wake()
        await call.ended.wait()

    # -- files --------------------------------------------------------------------------------------------------

    async def write_file(self, path: str, data: bytes) -> None:
        """Write below the workspace; parents are made. Raises `SandboxFileError` (path, links, limits)."""
        self._require_open()
        await self._files.write(path, data)

    async def read_file(self, path: str, *, max_bytes: int | None = None) -> bytes:
        """The bytes of a regular file. Raises `SandboxFileError` for anything else, and above the limit."""
        self._require_open()
        return await self._files.read(path, self._policy.artefact_bytes if max_bytes is None else max_bytes)

    async def list_files(self) -> list[FileEntry]:
        """Regular files and directories below the workspace, up to a few thousand and a few levels deep."""
        self._require_open()
        return await self._files.entries()

    # -- the interpreter's life ---------------------------------------------------------------------------------

    async def reset(self, *, files: Literal["keep", "wipe"] = "keep") -> None:
        """A new interpreter; with `wipe` an empty workspace too. Checkpoints stay."""
        await self._order(b"restart", b"1" if files == "wipe" else b"0")
        self._has_untold_loss = False

    async def checkpoint(self) -> str:
        """Remember interpreter and variables; returns an id for `rollback`. Costs a fork; files are not remembered."""
        name = uuid.uuid4().hex
        await self._order(b"fork", name.encode())
        return name

    async def rollback(self, checkpoint: str) -> None:
        """Go back to the variables of a checkpoint; it stays and can be used again."""
        await self._order(b"wake", checkpoint.encode())
        self._has_untold_loss = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End everything inside and release what was taken. A running call ends as `session_dead`."""
        if not self._obituary:
            self._obituary = "the sandbox is closed"
            self._channel.wake()
        with anyio.CancelScope(shield=True):
            if self._call is not None:
                self._jail.kill()
                await self._call.ended.wait()
            self._channel.close()
            self._files.close()
            await self._jail.close()

    # -- frames -------------------------------------------------------------------------------------------------

    def _python_frame(self, code: str, fresh: bool) -> list[bytes]:
        data = code.encode("utf-8", "surrogatepass")
        if len(data) > MAX_CODE_BYTES:
            raise SandboxError(f"the code has {len(data):,} bytes; the limit is {MAX_CODE_BYTES:,}. Use a file")
        return [b"python", b"1" if fresh else b"0", data]

    def _exec_frame(
        self, argv: Sequence[str], cwd: str, env: Mapping[str, str] | None, stdin: bytes = b""
    ) -> list[bytes]:
        if len(stdin) > MAX_STDIN_BYTES:
            raise SandboxError(f"stdin has {len(stdin):,} bytes; the limit is {MAX_STDIN_BYTES:,}. Use write_file")
        variables = [f"{name}={value}" for name, value in (env or {}).items()]
        for text in (*argv, cwd, *variables):
            if "\0" in text:
                raise SandboxError(f"a NUL character in {text[:80]!r}: arguments, cwd and env cannot hold one")
        arguments = [_encoded(text) for text in argv]
        extra = [_encoded(text) for text in variables]
        return [b"exec", _encoded(cwd), stdin, b"%d" % len(arguments), *arguments, *extra]

    async def _finish(self, frame: list[bytes], kind: str, timeout: float | None) -> _Call:
        async with self._turn:
            call = self._begin(frame, kind, timeout)
            async for _ in self._chunks(call):
                pass
            self._tell_loss(call)
        return call

    async def _order(self, verb: bytes, *arguments: bytes) -> None:
        """A request that runs no foreign code."""
        async with self._turn:
            call = self._begin([verb, *arguments], "order", 10.0)
            async for _ in self._chunks(call):
                pass
        if call.measured.how != "ok":
            reason = call.measured.detail.decode("utf-8", "replace") or self._obituary or "no answer"
            raise SandboxError(f"{verb.decode()} failed: {reason}")

    # -- one call -----------------------------------------------------------------------------------------------

    def _begin(self, frame: list[bytes], kind: str, timeout: float | None) -> _Call:
        self._require_open()
        self._names += 1
        limit = self._policy.wall_seconds if timeout is None else timeout
        name = b"%d" % self._names
        call = self._call = _Call(
            name,
            Measured(kind, limit_seconds=limit),
            anyio.current_time() + limit,
            self._jail.memory_strikes(),
            self._jail.process_strikes(),
            Output.of(self._policy),
            Output.of(self._policy),
        )
        self._channel.send(frame[0], name, *frame[1:])
        return call

    async def _chunks(self, call: _Call) -> AsyncGenerator[OutputChunk, None]:
        """Output as it comes; when this ends, or is left early, the call has ended and is measured."""
        start = anyio.current_time()
        try:
            while not call.done:
                for chunk in await self._advance(call):
                    yield chunk
        finally:
            if not call.done:
                with anyio.CancelScope(shield=True):
                    await self._abort(call)
            call.measured.seconds = anyio.current_time() - start
            self._measure(call)
            self._call = None
            call.ended.set()

    async def _abort(self, call: _Call) -> None:
        """The caller has gone: interrupt, kill, bury, without it."""
        self._hurry(call)
        while not call.done:
            await self._advance(call)

    def _hurry(self, call: _Call) -> None:
        """The time of the call is over now, unless it is being stopped already, or is a short one of our own."""
        call.measured.is_cancelled = True
        if not call.measured.was_interrupted and call.measured.kind != "order":
            call.deadline = anyio.current_time()

    async def _advance(self, call: _Call) -> list[OutputChunk]:
        """Wait for the next frames or the next deadline and act on them."""
        try:
            frames = await self._channel.receive(call.deadline)
        except ChannelClosed:
            self._bury(call, "the sandbox has ended")
            return []
        except FrameError as error:
            call.measured.is_nonsense = True
            self._bury(call, f"the supervisor sent nonsense: {error}")
            return []
        chunks = [chunk for fields in frames if (chunk := self._take(call, fields))]
        if not call.done and call.deadline is not None and anyio.current_time() >= call.deadline:
            self._escalate(call)
        return chunks

    def _take(self, call: _Call, fields: list[bytes]) -> OutputChunk | None:
        if len(fields) < 2 or fields[1] != call.name:
            return None
        if fields[0] == b"interrupted":
            if not call.measured.was_killed:
                call.deadline = anyio.current_time() + self._policy.grace_seconds
            return None
        if fields[0] == b"done":
            measured = call.measured
            measured.how, measured.detail = fields[2].decode("ascii", "replace"), fields[3]
            lost, measured.late_bytes, measured.anomalies, memory = (int(number) for number in fields[4:8])
            measured.is_over_memory = bool(memory)
            self._has_untold_loss = self._has_untold_loss or bool(lost)
            call.done = True
            return None
        is_error = fields[2] == b"2"
        (call.err if is_error else call.out).add(fields[3])
        if call.out.received + call.err.received > self._policy.output_kill_bytes and not call.measured.has_overflowed:
            call.measured.has_overflowed = True
            self._channel.send(b"kill", call.name)
            call.deadline = anyio.current_time() + BURY_SECONDS
            call.measured.was_killed = call.measured.was_interrupted = True
        return OutputChunk("stderr" if is_error else "stdout", fields[3])

    def _escalate(self, call: _Call) -> None:
        measured = call.measured
        if not measured.was_interrupted and measured.kind != "order":
            measured.was_interrupted = True
            self._channel.send(b"interrupt", call.name)
            call.deadline = anyio.current_time() + INTERRUPT_SECONDS
        elif not measured.was_killed and measured.kind != "order":
            measured.was_killed = True
            self._channel.send(b"kill", call.name)
            call.deadline = anyio.current_time() + BURY_SECONDS
        else:
            self._bury(call, "the supervisor did not answer and was killed")

    def _bury(self, call: _Call, obituary: str) -> None:
        self._obituary = self._obituary or obituary
        self._jail.kill()
        call.measured.how = "dead"
        call.done = True

    def _measure(self, call: _Call) -> None:
        measured = call.measured
        measured.is_over_memory = measured.is_over_memory or self._jail.memory_strikes() > call.memory_strikes
        measured.hit_process_limit = self._jail.process_strikes() > call.process_strikes
        measured.disk_is_full = self._files.is_full()

    def _tell_loss(self, call: _Call) -> None:
        """Variables that were lost unseen (by a call whose caller has gone) are told with the next result."""
        call.measured.lost_variables, self._has_untold_loss = self._has_untold_loss, False

    def _require_open(self) -> None:
        if self._obituary:
            raise SandboxClosed(f"{self._obituary}; open a new one")

    # -- results ------------------------------------------------------------------------------------------------

    def _cell_result(self, call: _Call) -> CellResult:
        measured, verdict = call.measured, judge(call.measured, self._policy)
        text = measured.detail.decode("utf-8", "replace")
        return CellResult(
            stdout=call.out.text(),
            stderr=call.err.text(),
            value=text if measured.how == "value" else None,
            error=text if measured.how in ("error", "failed") else None,
            timed_out=verdict.status == "timeout",
            truncated=bool(call.out.left_out or call.err.left_out),
            status=verdict.status,
            state=verdict.state,
            notice=verdict.notice,
            seconds=measured.seconds,
            enforced=self._enforced,
        )

    def _exec_result(self, call: _Call) -> ExecResult:
        measured, verdict = call.measured, judge(call.measured, self._policy)
        notice = verdict.notice
        if measured.how == "failed":
            notice = f"{notice} {measured.detail.decode('utf-8', 'replace')}".strip()
        return ExecResult(
            stdout=call.out.text(),
            stderr=call.err.text(),
            exit_code=_exit_code(measured),
            timed_out=verdict.status == "timeout",
            truncated=bool(call.out.left_out or call.err.left_out),
            status=verdict.status,
            state=verdict.state,
            notice=notice,
            seconds=measured.seconds,
            enforced=self._enforced,
        )


def _exit_code(measured: Measured) -> int | None:
    """As the subprocess module has it: negative for a signal; None if the sandbox had to kill."""
    if measured.how not in ("exit", "signal") or measured.was_killed:
        return None
    return int(measured.detail) * (-1 if measured.how == "signal" else 1)


def _encoded(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise SandboxError(f"{text[:80]!r} holds half of a surrogate pair; arguments, cwd and env cannot") from None
