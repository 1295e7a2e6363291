"""A compiled grammar at work: which tokens may come next, which must. Token ids in, bit masks and token ids out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from v32.model_runtime.encoding import ChatTokenizer
from v32.model_runtime.grammar.completion import CompletionGrammar
from v32.model_runtime.grammar.forced import CanonicalForcing

if TYPE_CHECKING:
    import xgrammar

_CONTEXT_TOKENS = 4
_FEW_TOKENS = 64
_FEW_STARTS = 8


class GrammarConstraint:
    """A `TokenConstraint`: the grammar of a completion, compiled for one vocabulary."""

    def __init__(
        self,
        grammar: CompletionGrammar,
        compiled: xgrammar.CompiledGrammar,
        tokenizer: ChatTokenizer,
        vocab_size: int,
        forcing: CanonicalForcing,
    ) -> None:
        self.grammar = grammar
        self._compiled = compiled
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._forcing = forcing

    def start(self) -> GrammarMatcher:
        return GrammarMatcher(self._compiled, self._tokenizer, self._vocab_size, self._forcing)


class GrammarMatcher:
    """A `TokenMatcher`: the state of the grammar within one sequence."""

    def __init__(
        self,
        compiled: xgrammar.CompiledGrammar,
        tokenizer: ChatTokenizer,
        vocab_size: int,
        forcing: CanonicalForcing,
    ) -> None:
        import xgrammar

        self._matcher = xgrammar.GrammarMatcher(compiled)
        self._tokenizer = tokenizer
        self._forcing = forcing
        self._ids: list[int] = []
        self._scratch = torch.zeros((vocab_size + 31) // 32, dtype=torch.int32)

    @property
    def is_complete(self) -> bool:
        """Whether the end of the sentence may come next, or has come."""
        return bool(self._matcher.is_terminated() or self._matcher.is_completed())

    def fill_bitmask(self, bitmask: torch.Tensor) -> bool:
        if self._matcher.is_terminated():
            bitmask.zero_()
            return True
        return bool(self._matcher.fill_next_token_bitmask(bitmask))

    def accept(self, token_id: int) -> bool:
        if self._matcher.is_terminated() or not self._may_be_accepted(token_id):
            return False
        if not self._matcher.accept_token(token_id):
            return False
        self._ids.append(token_id)
        return True

    def rollback(self, num_tokens: int) -> None:
        if num_tokens > len(self._ids):
            raise ValueError(f"cannot take back {num_tokens} tokens; {len(self._ids)} were accepted")
        if num_tokens:
            self._matcher.rollback(num_tokens)
            del self._ids[-num_tokens:]

    def forced_tokens(self) -> list[int]:
        if self._matcher.is_terminated():
            return []
        text = self._forced_text()
        left = self._text_before() if text else None
        if left is None:
            return [self._tokenizer.eos_id] if self._must_end() else []
        return self._accepted_part(self._forcing.tokens(left, text, self._starts_after(text)))

    def _may_be_accepted(self, token_id: int) -> bool:
        """Asked first, because the library writes a warning to stderr for a token that is nothing in the grammar."""
        if not self._tokenizer.is_structural(token_id):
            return bool(self._tokenizer.token_bytes(token_id))
        if token_id in (self._tokenizer.eos_id, self._tokenizer.think_close_id):
            return True
        return self._tokenizer.marker_of(token_id) == self._tokenizer.dialect.dsml

    def _forced_text(self) -> str:
        """Empty also where what is forced ends inside a character."""
        try:
            return str(self._matcher.find_jump_forward_string())
        except UnicodeDecodeError:
            return ""

    def _text_before(self) -> str | None:
        """The text of the last tokens, back to a control token; None inside a character."""
        recent = self._ids[-_CONTEXT_TOKENS:]
        for at in range(len(recent) - 1, -1, -1):
            if self._tokenizer.is_structural(recent[at]):
                recent = recent[at + 1 :]
                break
        data = b"".join(map(self._tokenizer.token_bytes, recent))
        start = next((at for at, byte in enumerate(data[:4]) if byte & 0xC0 != 0x80), 0)
        try:
            return data[start:].decode()
        except UnicodeDecodeError:
            return None

    def _must_end(self) -> bool:
        """Whether only the end of the sentence is left, as after a block; looked into only where a tag may end."""
        if not self._ids or not self._tokenizer.token_bytes(self._ids[-1]).endswith(b">"):
            return False
        if not self._matcher.is_completed():
            return False
        return _count(self._allowed()) == 1

    def _starts_after(self, text: str) -> list[str] | None:
        """The characters that may follow a forced text ("" for a control token); None if there are many."""
        self._matcher.accept_string(text)
        bits = self._allowed()
        self._matcher.rollback(1)
        if _count(bits) > _FEW_TOKENS:
            return None
        starts = set()
        for token_id in np.nonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))[0].tolist():
            if self._tokenizer.is_structural(token_id):
                starts.add("")
            else:
                starts.add(self._tokenizer.token_bytes(token_id).decode(errors="replace")[:1])
        return None if len(starts) > _FEW_STARTS or "�" in starts else sorted(starts)

    def _allowed(self) -> npt.NDArray[np.uint32]:
        """The mask of the next token; good until the next call."""
        self._matcher.fill_next_token_bitmask(self._scratch)
        return self._scratch.numpy().view(np.uint32)

    def _accepted_part(self, token_ids: list[int]) -> list[int]:
        """The tokens as far as the grammar takes them one by one; a check of our own work, it takes all."""
        taken = 0
        for token_id in token_ids:
            if not self._matcher.accept_token(token_id):
                break
            taken += 1
        if taken:
            self._matcher.rollback(taken)
        return token_ids[:taken]


def _count(bits: npt.NDArray[np.uint32]) -> int:
    return int(np.bitwise_count(bits).sum())
