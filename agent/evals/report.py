"""Outcomes of tasks in, one report out: success with its confidence interval, by kind, and what it cost."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from v32.model_runtime.messages import Usage

Z_95 = 1.96


@dataclass(frozen=True, slots=True)
class Outcome:
    """One task: what was asked and expected, what came out, and what it cost."""

    kind: str
    questions: tuple[str, ...]
    expected: tuple[str, ...]
    outputs: tuple[str, ...]
    stop_reason: str
    usage: Usage
    seconds: float

    @property
    def is_success(self) -> bool:
        """Every answer is exactly the expected one."""
        return self.outputs == self.expected

    def to_record(self) -> dict[str, Any]:
        return {
            "type": "task",
            "kind": self.kind,
            "success": self.is_success,
            "questions": self.questions,
            "expected": self.expected,
            "outputs": self.outputs,
            "stop_reason": self.stop_reason,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, slots=True)
class Report:
    """A suite's outcomes, added up."""

    suite: str
    seed: int
    outcomes: Sequence[Outcome]
    seconds: float

    def to_record(self) -> dict[str, Any]:
        """The closing JSON object of `v32 eval --json`."""
        kinds: dict[str, list[Outcome]] = defaultdict(list)
        for outcome in self.outcomes:
            kinds[outcome.kind].append(outcome)
        low, high = wilson_interval(sum(outcome.is_success for outcome in self.outcomes), len(self.outcomes))
        usage = sum((outcome.usage for outcome in self.outcomes), Usage())
        return {
            "type": "report",
            "suite": self.suite,
            "seed": self.seed,
            "n": len(self.outcomes),
            "success": _share(self.outcomes),
            "ci95": [round(low, 4), round(high, 4)],
            "by_kind": {kind: {"n": len(some), "success": _share(some)} for kind, some in sorted(kinds.items())},
            "tool_calls": usage.tool_calls,
            "tokens": usage.completion_tokens,
            "usage": {
                "prompt": usage.prompt_tokens,
                "cached": usage.cached_tokens,
                "prefilled": usage.prefilled_tokens,
                "completion": usage.completion_tokens,
                "forced": usage.forced_tokens,
            },
            "seconds": round(self.seconds, 2),
        }


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """The 95% score interval of a share (Wilson 1927); (0, 1) for no trials."""
    if not n:
        return 0.0, 1.0
    share, z2 = successes / n, Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    margin = Z_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, centre - margin), min(1.0, centre + margin)


def _share(outcomes: Sequence[Outcome]) -> float:
    return round(sum(outcome.is_success for outcome in outcomes) / max(len(outcomes), 1), 4)
