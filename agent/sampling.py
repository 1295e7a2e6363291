"""What a turn asks of the model beyond the transcript: how tokens are drawn, and whether calls are wanted."""

from __future__ import annotations

from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING

from v32.agent.limits import Progress, calls_left, tokens_left
from v32.model_runtime.messages import ToolChoice

if TYPE_CHECKING:
    from v32.agent.agent import Agent
    from v32.model_runtime.generators.generator import SamplingParams


def sampling_of_turn(agent: Agent, progress: Progress) -> SamplingParams:
    """The agent's parameters, with a seed of this turn's own and no more tokens than the run has left."""
    params = agent.params or agent.model.sampling
    if params.seed is not None:
        params = replace(params, seed=seed_of_turn(params.seed, progress.turns))
    left = tokens_left(agent.limits, progress)
    if left is not None:
        most = left if params.max_new_tokens is None else min(left, params.max_new_tokens)
        params = replace(params, max_new_tokens=most)
    return params


def seed_of_turn(seed: int, turn: int) -> int:
    """A seed that depends on the run's seed and the turn alone, so that a resumed run draws the same tokens."""
    return int.from_bytes(blake2b(f"{seed}/{turn}".encode(), digest_size=7).digest())


def tool_choice_of_turn(agent: Agent, progress: Progress) -> ToolChoice:
    """A demanded call is demanded once, in the first turn; after the last allowed call none is offered."""
    if not agent.prelude.tools or calls_left(agent.limits, progress) == 0:
        return "none"
    return agent.tool_choice if progress.turns == 0 or agent.tool_choice == "none" else "auto"
