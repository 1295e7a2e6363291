"""What training minimises: the loss of what the model writes, and the indexer's distance from the attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from v32.agent.training.batches import IGNORED, PackedBatch
from v32.agent.training.packed_attention import AttentionMode, PackedAttention
from v32.agent.training.stage import StageName
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM


@dataclass(frozen=True, slots=True)
class Losses:
    """What one step computed; `correct` of the `written` tokens were the likeliest."""

    language: float
    index: float
    correct: int
    written: int

    @classmethod
    def mean(cls, parts: Sequence[Losses]) -> Losses:
        """Weighted by what was written."""
        written = sum(part.written for part in parts)
        language = sum(part.language * part.written for part in parts) / written
        index = sum(part.index * part.written for part in parts) / written
        return cls(language, index, sum(part.correct for part in parts), written)


class Objective:
    """The losses of one model on packed batches."""

    def __init__(self, model: DeepseekV32ForCausalLM) -> None:
        self.model = model

    def losses(self, stage: StageName, batch: PackedBatch, turn: int = 0) -> tuple[Tensor, Losses]:
        """What `stage` minimises, and what to report; in the sparse stages the dialogues teach the indexer in turn."""
        if stage == "mtp":
            return self._draft_losses(batch, turn)
        attention = self._attention(stage, batch, turn)
        hidden = self._dialogues_hidden(batch, attention)
        written = _written(batch.labels)
        language, correct = _cross_entropy(self.model.compute_logits(hidden[written]), batch.labels.flatten()[written])
        total = {"dense": language, "warmup": attention.index_loss, "sparse": language + attention.index_loss}
        return total[stage], Losses(language.item(), attention.index_loss.item(), correct, len(written))

    def is_exact(self, mode: AttentionMode, batch: PackedBatch) -> Tensor:
        """bool [B]: every token the model has to write is its likeliest one, so greedy decoding would write it."""
        hidden = self._dialogues_hidden(batch, self._attention(mode, batch))
        choice = self.model.compute_logits(hidden).argmax(-1).view_as(batch.labels)
        return ((choice == batch.labels) | (batch.labels == IGNORED)).all(-1)

    def _draft_losses(self, batch: PackedBatch, turn: int) -> tuple[Tensor, Losses]:
        """The draft layer sees the hidden state of t and the token t + 1, and predicts the token t + 2."""
        with torch.no_grad():
            hidden = self.model(batch.token_ids, batch.positions, self._attention("sparse", batch))
        following = torch.cat((batch.prefix_ids[1:], batch.input_ids[0, :1], _shifted(batch.input_ids).flatten()))
        attention = self._attention("sparse", batch, turn)
        cos, sin = self.model.model.rotary(batch.positions)
        _, logits = self.model.mtp_layers[0].draft(hidden, following, batch.positions, cos, sin, attention)
        labels = F.pad(batch.labels[:, 1:], (0, 1), value=IGNORED)
        written = _written(labels)
        loss, correct = _cross_entropy(logits[len(batch.prefix_ids) :][written], labels.flatten()[written])
        return loss + attention.index_loss, Losses(loss.item(), attention.index_loss.item(), correct, len(written))

    def _dialogues_hidden(self, batch: PackedBatch, attention: PackedAttention) -> Tensor:
        """[B * T, hidden_size]."""
        return self.model(batch.token_ids, batch.positions, attention)[len(batch.prefix_ids) :]

    def _attention(self, mode: AttentionMode, batch: PackedBatch, turn: int = 0) -> PackedAttention:
        taught = turn % len(batch.input_ids) if mode == "sparse" else None
        topk = self.model.config.index_topk
        return PackedAttention(len(batch.prefix_ids), *batch.input_ids.shape, mode=mode, index_topk=topk, taught=taught)


def _written(labels: Tensor) -> Tensor:
    """Where the model writes, in the flattened labels."""
    return (labels.flatten() != IGNORED).nonzero()[:, 0]


def _cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, int]:
    """The mean, and how many targets are the likeliest."""
    return F.cross_entropy(logits, targets), int((logits.argmax(-1) == targets).sum())


def _shifted(input_ids: Tensor) -> Tensor:
    """Each row one to the left; the last token stands in for the unknown next one."""
    return torch.cat((input_ids[:, 1:], input_ids[:, -1:]), 1)
