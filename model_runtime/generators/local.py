"""The model in this process as a `TokenGenerator`: one thread steps the engine, tasks of any event loop listen.

    task ── add, cancel ──▶ inbox ──▶ worker thread: engine.step() ──▶ mailbox ──▶ task

The thread starts with the first generation, sleeps while there is nothing to do and ends with the generator. Only
the thread touches the engine. While no generation lives it prefills what will probably come, in steps of about
`ahead.STEP_SECONDS`: a generation that comes in between waits for the end of one.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import math
import queue
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread

from v32.model_runtime.cache.disk import Identity
from v32.model_runtime.engine import Engine
from v32.model_runtime.engine import Sequence as EngineSequence
from v32.model_runtime.errors import GeneratorError
from v32.model_runtime.generators.generator import Finished, SamplingParams, Token, TokenConstraint

_LOG = logging.getLogger(__name__)
_RING_SECONDS = 0.01
"""Tokens that come faster are handed over together: waking a listener takes as long as half a small step."""
_LONG_BACKLOG = 32
"""A listener that is so many events behind may be gone: its event loop is rung again to find out."""
_SETTLE_SECONDS = 5.0
"""How long saving a conversation waits for the prefill of its last answer."""
_EXIT_SECONDS = 60
"""How long the exiting interpreter waits for the step that is being computed."""


class LocalGenerator:
    """Generates with an engine that it owns; usable from several event loops and threads at once."""

    def __init__(self, engine: Engine, *, name: str = "v32", fingerprint: str | None = None) -> None:
        self._max_context = engine.max_context
        self._check_prompt = engine.check_prompt
        weight = engine.model.model.norm.weight
        self._description = {
            "generator": "local",
            "name": name,
            "fingerprint": fingerprint,
            "dtype": str(weight.dtype).removeprefix("torch."),
            "kv_dtype": engine.pool.layout.dtype_name,
            "device": str(weight.device),
            "max_context": engine.max_context,
        }
        self._inbox: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._worker = _Worker(engine, self._inbox)
        self._lock = threading.Lock()
        self._close = weakref.finalize(self, self._inbox.put, _Stop())
        self._close.atexit = False

    @property
    def max_context(self) -> int:
        return self._max_context

    async def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, constraint: TokenConstraint | None = None
    ) -> AsyncGenerator[Token | Finished, None]:
        """Tokens as they come; leaving the iterator early cancels the sequence. Engine failures: GeneratorError."""
        self._check_prompt(prompt_ids)
        mailbox = _Mailbox()
        self._send(_Add(list(prompt_ids), params, constraint, mailbox))
        try:
            while not mailbox.is_done:
                for event in await mailbox.receive():
                    yield event
        finally:
            if not mailbox.is_done:
                self._inbox.put(_Cancel(mailbox))

    def prefill_ahead(self, owner: Hashable, token_ids: Sequence[int]) -> None:
        """A prompt of this owner will probably begin with these ids: compute them while nothing else runs.

        Replaces what the owner wanted before; no ids: nothing is wanted any more. Never changes any token.
        """
        if token_ids:
            self._send(_Ahead(owner, list(token_ids)))
        elif self._worker.is_alive():
            self._inbox.put(_Ahead(owner, []))

    async def save_kv(self, path: Path, owner: Hashable, token_ids: Sequence[int], encoder: str) -> int:
        """Write what is cached of these ids to a file; how many positions. The wishes of `owner` come first, for some
        seconds. What goes wrong is logged; the file can always be computed again."""
        if self._description["fingerprint"] is None:
            raise ValueError("without a fingerprint of the weights a file of their KV cannot be told from another's")
        save = _Save(path, owner, list(token_ids), self._identity(encoder), Future())
        try:
            self._send(save)
        except RuntimeError as error:
            _LOG.warning("no KV is saved: %s", error)
            return 0
        return await anyio.to_thread.run_sync(save.done.result)

    def load_kv(self, path: Path, encoder: str) -> None:
        """Have a file of `save_kv` in the cache before any generation that is asked for later."""
        if self._description["fingerprint"] is not None and path.exists():
            self._send(_Load(path, self._identity(encoder)))

    async def aclose(self) -> None:
        """Cancel what is running, end the thread, release the model."""
        with self._lock:
            self._close()
            if self._worker.ident is None:
                self._worker.start()  # it releases the engine
        await anyio.to_thread.run_sync(self._worker.join)

    def describe(self) -> dict[str, Any]:
        return dict(self._description)

    def _identity(self, encoder: str) -> Identity:
        """What a file of KV depends on."""
        return {**{name: str(self._description[name]) for name in ("fingerprint", "dtype")}, "encoder": encoder}

    def _send(self, command: _Add | _Ahead | _Save | _Load) -> None:
        with self._lock:
            is_dead = self._worker.ident is not None and not self._worker.is_alive()
            if is_dead or not self._close.alive:
                raise RuntimeError("the generator is closed; load the model again")
            if self._worker.ident is None:
                self._worker.start()
            self._inbox.put(command)


class _Mailbox:
    """What the worker has for one task. `post` and `ring` are called by the worker, `receive` by the task."""

    def __init__(self) -> None:
        self.is_done = False
        """The last event or the error has been received."""
        self._events: deque[Token | Finished | Exception] = deque()
        self._wake_up = _loop_caller()
        self._arrival = anyio.Event()
        self._is_woken = False
        self._rung_at = -math.inf

    def post(self, event: Token | Finished | Exception) -> None:
        """To be received once the task has been rung for."""
        self._events.append(event)

    def ring(self, now: float) -> bool:
        """Wake the task if something lies here, at most every `_RING_SECONDS` before the last event has come. False if
        its event loop has ended. `now` is the time in seconds."""
        if not self._events or (self._is_woken and len(self._events) <= _LONG_BACKLOG):
            return True
        if isinstance(self._events[-1], Token) and now - self._rung_at < _RING_SECONDS:
            return True
        self._is_woken, self._rung_at = True, now
        try:
            self._wake_up(self._arrive)
        except RuntimeError:
            return False
        return True

    async def receive(self) -> list[Token | Finished]:
        """Everything new; raises what the worker posted."""
        if self._events:
            await anyio.lowlevel.checkpoint()
        while not self._events:
            # Lower the flag before looking: whatever is posted after the look rings again.
            self._arrival = anyio.Event()
            self._is_woken = False
            if not self._events:
                await self._arrival.wait()
        received: list[Token | Finished] = []
        while self._events:
            event = self._events.popleft()
            if isinstance(event, Exception):
                self.is_done = True
                raise event
            self.is_done = isinstance(event, Finished)
            received.append(event)
        return received

    def _arrive(self) -> None:
        self._arrival.set()


@dataclass(frozen=True, slots=True)
class _Add:
    prompt_ids: list[int]
    params: SamplingParams
    constraint: TokenConstraint | None
    mailbox: _Mailbox


@dataclass(frozen=True, slots=True)
class _Cancel:
    mailbox: _Mailbox


@dataclass(frozen=True, slots=True)
class _Ahead:
    owner: Hashable
    token_ids: list[int]


@dataclass(frozen=True, slots=True)
class _Stop:
    pass


@dataclass(frozen=True, slots=True)
class _Save:
    path: Path
    owner: Hashable
    token_ids: list[int]
    identity: Identity
    done: Future[int]


@dataclass(frozen=True, slots=True)
class _Load:
    path: Path
    identity: Identity


_Command = _Add | _Cancel | _Ahead | _Save | _Load | _Stop


class _Worker(threading.Thread):
    """Takes commands between steps, sleeps in the inbox while no sequence lives."""

    def __init__(self, engine: Engine, inbox: queue.SimpleQueue[_Command]) -> None:
        super().__init__(name="v32-engine", daemon=True)
        self.engine = engine
        self.inbox = inbox
        self.mailboxes: dict[EngineSequence, _Mailbox] = {}
        self.is_stopped = False

    def run(self) -> None:
        atexit.register(self._end)  # an interpreter that exits under a thread inside of torch aborts
        try:
            self._serve()
        finally:
            self._fail_all(lambda: RuntimeError("the generator was closed while it generated"))
            self.engine.close()
            atexit.unregister(self._end)

    def _end(self) -> None:
        self.inbox.put(_Stop())
        self.join(_EXIT_SECONDS)

    def _serve(self) -> None:
        while not self.is_stopped:
            self._obey(self.inbox.get())
            while not self.is_stopped and (self.engine.has_work or self.engine.has_work_ahead):
                if self.engine.has_work:
                    self._step()
                else:
                    self._step_ahead()
                while not self.inbox.empty():
                    self._obey(self.inbox.get())

    def _obey(self, command: _Command) -> None:
        match command:
            case _Stop():
                self.is_stopped = True
            case _Cancel(mailbox):
                for sequence in [s for s, owner in self.mailboxes.items() if owner is mailbox]:
                    self.engine.cancel(sequence)
            case _Ahead(owner, token_ids):
                self._want_ahead(owner, token_ids)
            case _Save():
                self._save(command)
            case _Load(path, identity):
                self._load(path, identity)
            case _Add(prompt_ids, params, constraint, mailbox):
                try:
                    self.mailboxes[self.engine.add(prompt_ids, params, constraint)] = mailbox
                except Exception as error:
                    mailbox.post(error)
                    mailbox.ring(time.monotonic())

    def _step(self) -> None:
        try:
            news = self.engine.step()
        except Exception as error:
            self._fail_all(partial(_engine_failure, error))
            self.engine.abort()
            return
        for sequence, event in news:
            self.mailboxes[sequence].post(event)
        now = time.monotonic()
        for sequence, mailbox in list(self.mailboxes.items()):
            is_heard = mailbox.ring(now)
            if sequence.is_finished:
                del self.mailboxes[sequence]
            elif not is_heard:
                self.engine.cancel(sequence)

    def _want_ahead(self, owner: Hashable, token_ids: list[int]) -> None:
        try:
            if token_ids:
                self.engine.prefill_ahead(owner, token_ids)
            else:
                self.engine.ahead.forget(owner)
        except Exception as error:
            _LOG.warning("nothing is prefilled ahead: %s", error)

    def _save(self, save: _Save) -> None:
        """Finish what was wanted ahead, unless others wait or it takes long; then write. Whoever waits is answered."""
        num_tokens = 0
        try:
            deadline = time.monotonic() + _SETTLE_SECONDS
            while self.engine.ahead.is_wanted(save.owner) and not self.engine.has_work and time.monotonic() < deadline:
                self._step_ahead()
            num_tokens = self.engine.save_kv(save.path, save.token_ids, save.identity)
        except Exception as error:
            _LOG.warning("no KV is saved: %s", error)
        save.done.set_result(num_tokens)

    def _load(self, path: Path, identity: Identity) -> None:
        try:
            self.engine.load_kv(path, identity)
        except Exception as error:
            _LOG.warning("saved KV is not used and will be computed again: %s", error)

    def _step_ahead(self) -> None:
        """Nobody waits for it, so nobody is told of a failure but the log; the next prompt meets it again."""
        try:
            self.engine.step_ahead()
        except Exception as error:
            _LOG.warning("prefilling ahead failed: %s: %s", type(error).__name__, error)

    def _fail_all(self, make_error: Callable[[], Exception]) -> None:
        """Each listener gets an exception of its own: it raises it in its own task."""
        for mailbox in self.mailboxes.values():
            mailbox.post(make_error())
            mailbox.ring(time.monotonic())
        self.mailboxes.clear()


def _engine_failure(cause: Exception) -> GeneratorError:
    if isinstance(cause, GeneratorError):
        failure = type(cause)(str(cause))
    else:
        failure = GeneratorError(f"the engine failed: {type(cause).__name__}: {cause}")
    failure.__cause__ = cause
    return failure


def _loop_caller() -> Callable[[Callable[[], None]], object]:
    """A function that has a callback run soon in the running event loop, from any thread; asyncio or trio."""
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        run_sync_soon: Callable[[Callable[[], None]], object] = trio.lowlevel.current_trio_token().run_sync_soon
        return run_sync_soon
    return asyncio.get_running_loop().call_soon_threadsafe
