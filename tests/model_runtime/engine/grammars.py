"""A grammar for tests that is easy to see through."""

from __future__ import annotations

import torch

from v32.model_runtime.generators.generator import TokenMatcher


class Spelling:
    """A grammar for tests: position by position, the set of allowed tokens; a single one is forced."""

    def __init__(self, *allowed: set[int]) -> None:
        self.allowed, self.position = allowed, 0

    def start(self) -> TokenMatcher:
        return Spelling(*self.allowed)

    def fill_bitmask(self, bitmask: torch.Tensor) -> bool:
        if self.position >= len(self.allowed):
            return False
        bits = torch.zeros(32 * len(bitmask), dtype=torch.int64)
        bits[list(self.allowed[self.position])] = 1
        words = (bits.view(-1, 32) << torch.arange(32)).sum(1)
        bitmask.copy_(torch.where(words >= 1 << 31, words - (1 << 32), words))
        return True

    def accept(self, token_id: int) -> bool:
        if self.position < len(self.allowed) and token_id not in self.allowed[self.position]:
            return False
        self.position += 1
        return True

    def forced_tokens(self) -> list[int]:
        forced = []
        for allowed in self.allowed[self.position :]:
            if len(allowed) != 1:
                break
            forced += allowed
        return forced

    def rollback(self, num_tokens: int) -> None:
        self.position -= num_tokens
