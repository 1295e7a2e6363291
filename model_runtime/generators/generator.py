"""The seam between a chat model and whatever produces its tokens: token ids in, token ids out; no text here."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn. Defaults as the model card recommends; temperature 0 is greedy."""

    temperature: float = 1.0
    top_p: float = 0.95
    seed: int | None = None
    """The same seed, prompt and parameters give the same tokens, whatever else is in the batch."""
    max_new_tokens: int | None = None
    """None: up to the end of the context."""
    stop_token_ids: tuple[int, ...] = ()
    logprobs: bool = False

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must lie in (0, 1]")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it must be 1 or more, or None")


class TokenMatcher(Protocol):
    """The state of a grammar within one sequence."""

    def fill_bitmask(self, bitmask: torch.Tensor) -> bool:
        """Write the allowed tokens to `bitmask` (int32 [ceil(vocab/32)], bit = allowed); False: all are allowed."""

    def accept(self, token_id: int) -> bool:
        """Advance by one sampled token; False if the grammar forbids it."""

    def forced_tokens(self) -> list[int]:
        """The tokens that must follow, without advancing; empty where there is a choice."""

    def rollback(self, num_tokens: int) -> None:
        """Take back the last accepted tokens."""


class TokenConstraint(Protocol):
    """A compiled grammar; every sequence starts its own matcher."""

    def start(self) -> TokenMatcher: ...


@dataclass(frozen=True, slots=True)
class Token:
    """One produced token."""

    id: int
    logprob: float | None = None
    forced: bool = False


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a generation."""

    reason: Literal["stop", "length", "cancelled"]
    prompt_tokens: int
    cached_tokens: int
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    ahead_tokens: int = 0
    """Of the cached tokens those that were prefilled before the prompt came."""
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    """Drafts that were checked, and those that the model drew as well."""


class TokenGenerator(Protocol):
    """Continues token ids. Guarantees: tokens in order, exactly one `Finished` at the end; leaving the iterator
    early (`aclose`, cancellation) stops the generation and frees what it held."""

    @property
    def max_context(self) -> int:
        """Positions that prompt and completion may fill together."""

    def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, constraint: TokenConstraint | None = None
    ) -> AsyncGenerator[Token | Finished, None]:
        """Raises `ContextOverflowError` before the first token if the prompt leaves no room."""

    async def aclose(self) -> None:
        """Release the model; further calls raise `RuntimeError`."""

    def describe(self) -> dict[str, Any]:
        """What a trace records about the generator: name, weights fingerprint, dtype, device."""


@runtime_checkable
class PrefillsAhead(Protocol):
    """What a generator with its own cache can do beside a `TokenGenerator`'s work: use the time when nobody waits."""

    def prefill_ahead(self, owner: Hashable, token_ids: Sequence[int]) -> None:
        """The next prompt of `owner` will probably begin with these ids; compute them while nothing else runs."""


@runtime_checkable
class KeepsKV(Protocol):
    """What else a generator with its own cache can do: keep what a conversation has computed in a file.

    `encoder` names what makes ids of text. Whatever is wrong with a file is logged, and its content computed again.
    """

    async def save_kv(self, path: Path, owner: Hashable, token_ids: Sequence[int], encoder: str) -> int:
        """Write what is cached of these ids, first computing what is wanted ahead for `owner` if that takes seconds
        only; how many positions are in the file."""

    def load_kv(self, path: Path, encoder: str) -> None:
        """Have a file of `save_kv` read before any generation that is asked for later; no such file: nothing."""


def context_within(bounds: Mapping[str, int], asked: int | None) -> int:
    """The positions of prompt and completion together: as many as asked for, or as the tightest bound has room for.

    `bounds` are named in the `ValueError` for a context that no prompt fits into, or that is longer than one of them.
    """
    if asked is None:
        return min(bounds.values())
    if asked < 2:
        raise ValueError(f"max_context is {asked}; it must be 2 or more: a prompt and what follows it")
    for name, bound in bounds.items():
        if asked > bound:
            raise ValueError(f"max_context is {asked:,}; {name} is {bound:,}: ask for at most that")
    return asked
