"""The handover between the engine's thread and the tasks that listen: nothing waits for long, nothing is lost."""

from __future__ import annotations

import asyncio

import pytest

from v32.model_runtime.generators.generator import Finished, Token
from v32.model_runtime.generators.local import _RING_SECONDS, _Mailbox

SOON, LATER = 0.5 * _RING_SECONDS, 1.5 * _RING_SECONDS


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def wakes(mailbox: _Mailbox, now: float) -> bool:
    """Whether ringing at `now` wakes a task that waits; the task takes nothing."""
    mailbox._is_woken = False
    woken: list[int] = []
    mailbox._wake_up = lambda ring: woken.append(1)
    assert mailbox.ring(now)
    return bool(woken)


@pytest.mark.anyio
async def test_tokens_that_come_fast_are_handed_over_together() -> None:
    mailbox = _Mailbox()
    mailbox.post(Token(1))
    assert wakes(mailbox, 0.0), "the first token waits for nothing"
    mailbox.post(Token(2))
    assert not wakes(mailbox, SOON)
    assert wakes(mailbox, LATER), "what was held needs no other token to follow it"
    mailbox.post(Token(3))
    assert not wakes(mailbox, LATER + SOON)
    assert await mailbox.receive() == [Token(1), Token(2), Token(3)]


@pytest.mark.anyio
@pytest.mark.parametrize("end", [Finished("stop", 1, 0), RuntimeError("out of order")])
async def test_the_end_is_handed_over_at_once(end: Finished | Exception) -> None:
    mailbox = _Mailbox()
    mailbox.post(Token(1))
    mailbox.ring(0.0)
    mailbox.post(end)
    assert wakes(mailbox, 0.0)


@pytest.mark.anyio
async def test_a_token_that_is_held_reaches_a_waiting_task_by_the_next_ring() -> None:
    mailbox = _Mailbox()
    mailbox.post(Token(1))
    mailbox.ring(0.0)
    assert await mailbox.receive() == [Token(1)]
    waiting = asyncio.create_task(mailbox.receive())
    await asyncio.sleep(0)
    mailbox.post(Token(2))
    mailbox.ring(SOON)
    await asyncio.sleep(0.01)
    assert not waiting.done()
    mailbox.ring(LATER)
    assert await asyncio.wait_for(waiting, 5) == [Token(2)]
