"""One conversation with an agent: the fold of its durable events, and the way to run it.

`record` is the only place where a session changes: the event goes to the journal, is applied, is announced.
Resuming is reading the journal and applying its events again. Runs on asyncio.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import anyio

from v32.agent.calls import OpenCalls
from v32.agent.errors import SessionError
from v32.agent.events import (
    CallResult,
    Completed,
    Durable,
    Event,
    Outcome,
    Rebased,
    Spoken,
    Stopped,
    ToolFinished,
    ToolsReturned,
    ToolStarted,
    UserSaid,
)
from v32.agent.journal import Journal
from v32.agent.limits import StopReason
from v32.agent.prelude import Prelude
from v32.agent.records import to_record
from v32.agent.result import Account, RunResult
from v32.agent.turn import take_turns
from v32.model_runtime.messages import Completion, ToolResult
from v32.model_runtime.transcript import Entry, Transcript, calls_in_order

if TYPE_CHECKING:
    from collections.abc import Sequence

    from v32.agent.agent import Agent


class Session:
    """One conversation: runs one after another, each answering one user message. Close it, or use `async with`."""

    def __init__(
        self,
        agent: Agent,
        *,
        journal: Journal | None = None,
        prelude: Prelude | None = None,
        session_id: str | None = None,
    ) -> None:
        self.id = session_id or uuid.uuid4().hex[:16]
        self.agent = agent
        self.prelude = prelude or agent.prelude
        self.history: list[Spoken] = []
        self.transcript = self.prelude.start_transcript(agent.model)
        self.open_calls = OpenCalls()
        self.account = Account()
        self._announce: Callable[[Event], None] = _nobody_listens
        self._scope: anyio.CancelScope | None = None
        self._is_cancelled = self._is_closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._journal = journal
        if journal is not None:
            journal.create({"session_id": self.id, **self.prelude.to_header(agent.model)})

    @classmethod
    def resume(cls, path: str | os.PathLike[str] | Journal, *, model: Any, **options: Any) -> Self:
        """Continue a journaled session; `options` are those of `Agent` (tools must be those of the journal).

        Instructions, role and the tools' descriptions are taken from the journal. `await session.run()` finishes an
        interrupted run: a call that had begun is not run again unless its tool is `safe_to_retry`.
        """
        from v32.agent.agent import Agent

        return cls.replay(Agent(model, **options), path)

    @classmethod
    def replay(cls, agent: Agent, path: str | os.PathLike[str] | Journal) -> Self:
        """`resume` with an agent that stands already."""
        from v32.agent.replay import replay

        journal = path if isinstance(path, Journal) else Journal(path)
        contents = journal.open()
        try:
            prelude = Prelude.from_header(contents.header, agent, journal.path)
            session = cls(agent, prelude=prelude, session_id=contents.header["session_id"])
            replay(contents.records, journal.path, session._apply)
        except BaseException:
            journal.close()
            raise
        session._journal = journal
        agent.model.load_kv(_kv_path(journal))
        agent.model.settle_ahead(session.transcript, session.id)
        return session

    async def run(self, prompt: str | None = None) -> RunResult:
        """Answer `prompt`; without one, go on with a run that was interrupted or cancelled, or give its result."""
        return await self._run(prompt, _nobody_listens)

    async def stream(self, prompt: str | None = None) -> AsyncGenerator[Event | RunResult, None]:
        """The events of a run as they happen; the last item is the `RunResult`. Leaving the stream cancels the run."""
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        task = asyncio.create_task(self._run(prompt, queue.put_nowait))
        task.add_done_callback(lambda _: queue.put_nowait(None))
        try:
            while (event := await queue.get()) is not None:
                yield event
            yield await task
        finally:
            task.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.gather(task, return_exceptions=True)

    def run_sync(self, prompt: str | None = None) -> RunResult:
        """`run` for programs without an event loop."""
        return self.agent.wait_for(self.run(prompt))

    def cancel(self) -> None:
        """End the current run: its tools are stopped, what is finished is kept, it returns with `cancelled`."""
        if self._scope is not None:
            self._is_cancelled = True
            self._scope.cancel()

    async def aclose(self) -> None:
        """Stop the session's sandbox and let go of its journal. The model stays loaded."""
        self._is_closed = True
        self.cancel()
        await self._idle.wait()
        if self._journal is not None:
            await self.agent.model.save_kv(self.transcript, _kv_path(self._journal), self.id)
        self.agent.model.forget_ahead(self.id)
        await self.agent.toolset.end_session(self.id)
        if self._journal is not None:
            self._journal.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            await self.aclose()

    @property
    def is_interrupted(self) -> bool:
        """A user message waits for its answer: `run()` goes on with it."""
        return bool(self.history) and self.account.stopped is None

    @property
    def last_answer(self) -> Completion | None:
        """The completion that the session ends with, if it made no calls."""
        last = self.history[-1] if self.history else None
        return last.completion if isinstance(last, Completed) and not self.open_calls else None

    def record(self, event: Durable) -> None:
        """Journal an event, apply it, announce it."""
        if self._journal is not None:
            self._journal.append(to_record(event))
        self._apply(event)
        self._announce(event)

    def announce(self, event: Event) -> None:
        """Tell whoever listens; nothing is kept."""
        self._announce(event)

    def shortened(self, kept: Sequence[int], note: str = "") -> list[Spoken]:
        """The history without what a rebase drops, `note` under its last user message."""
        history = [self.history[position] for position in kept]
        if note:
            last, question = [(i, event) for i, event in enumerate(history) if isinstance(event, UserSaid)][-1]
            history[last] = replace(question, note=note)
        return history

    def transcript_of(self, history: Sequence[Spoken]) -> Transcript:
        """The transcript that this session would have, had only this been said; its calls are numbered on."""
        transcript = self.prelude.start_transcript(self.agent.model, self.transcript.next_call_index)
        transcript.extend(map(_entry_of, history))
        return transcript

    def _apply(self, event: Durable) -> None:
        match event:
            case UserSaid():
                self.account = Account()
                self._speak(event)
            case Completed(completion):
                self._speak(event)
                self.open_calls = OpenCalls(tuple(calls_in_order(completion.parsed)))
            case ToolStarted():
                self.open_calls.start(event)
            case ToolFinished(result):
                self.open_calls.finish(result)
            case ToolsReturned():
                self._speak(event)
                self.open_calls = OpenCalls()
            case Rebased(kept=kept, note=note):
                self.history = self.shortened(kept, note)
                self.transcript = self.transcript_of(self.history)
        self.account.apply(event)

    def _speak(self, event: Spoken) -> None:
        self.transcript.extend([_entry_of(event)])
        self.history.append(event)

    async def _run(self, prompt: str | None, announce: Callable[[Event], None]) -> RunResult:
        with self._exclusively(announce):
            if prompt is not None:
                self._hear(prompt)
            elif not self.history:
                raise SessionError("nothing to continue: the session has no user message yet; pass a prompt to run")
            if self.account.stopped is None or (prompt is None and self.account.is_cancelled):
                await self._work()
                self.agent.model.settle_ahead(self.transcript, self.id)
            return self._result()

    def _hear(self, prompt: str) -> None:
        if not isinstance(prompt, str):
            raise TypeError(f"the prompt is {prompt!r}; it must be a string")
        self._settle("interrupted", "Error: interrupted before a result was recorded; the user has moved on.")
        self.record(UserSaid(_without_lone_surrogates(prompt)))

    async def _work(self) -> None:
        started = time.monotonic()
        seconds = self.agent.limits.seconds
        scope = anyio.CancelScope(deadline=math.inf if seconds is None else anyio.current_time() + seconds)
        self._scope, self._is_cancelled = scope, False
        try:
            with scope:
                stopped = await take_turns(self)
            if scope.cancelled_caught:
                stopped = self._cut_short()
        except asyncio.CancelledError:
            self._is_cancelled = True
            self.record(self._cut_short())
            raise
        finally:
            self._scope = None
            self.account.seconds += time.monotonic() - started
        self.record(stopped)

    def _cut_short(self) -> Stopped:
        """Give every open call a result, so that the conversation can go on, and say why the run ends."""
        reason = StopReason.CANCELLED if self._is_cancelled else StopReason.TIME_LIMIT
        why = "the run was cancelled" if self._is_cancelled else f"the run's {self.agent.limits.seconds:g} s were over"
        self._settle("cancelled", f"Error: stopped before it had finished, because {why}.")
        return Stopped(reason, why)

    def _settle(self, outcome: Outcome, text: str) -> None:
        if not self.open_calls:
            return
        for call in self.open_calls.unanswered:
            self.record(ToolFinished(CallResult(call.id, call.name or "", text, outcome)))
        self.record(ToolsReturned(self.open_calls.in_call_order()))

    def _result(self) -> RunResult:
        stopped = self.account.stopped
        assert stopped is not None
        return RunResult(
            output=self.account.output,
            stop_reason=stopped.reason,
            stop_detail=stopped.detail,
            messages=self.transcript.to_messages(),
            transcript=self.transcript.fork(),
            usage=self.account.usage,
            steps=tuple(self.account.steps),
            session_id=self.id,
            data=self._data(stopped),
        )

    def _data(self, stopped: Stopped) -> Any:
        if self.prelude.response_format is None or stopped.reason is not StopReason.ANSWER:
            return None
        return json.loads(self.account.output)

    @contextmanager
    def _exclusively(self, announce: Callable[[Event], None]) -> Iterator[None]:
        if self._is_closed:
            raise SessionError("the session is closed; open another, or resume its journal")
        if not self._idle.is_set():
            raise SessionError("the session is running; wait for its result, or open a second session")
        self._idle.clear()
        self._announce = announce
        try:
            yield
        finally:
            self._announce = _nobody_listens
            self._idle.set()


def _entry_of(event: Spoken) -> Entry:
    match event:
        case UserSaid():
            return event.prompt
        case Completed(completion):
            return completion
        case ToolsReturned(results):
            return tuple(ToolResult(result.call_id, result.text) for result in results)


def _kv_path(journal: Journal) -> Path:
    """What the session has computed lies beside its journal."""
    return journal.path.with_name(f"{journal.path.name}.kv")


def _without_lone_surrogates(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _nobody_listens(event: Event) -> None:
    pass
