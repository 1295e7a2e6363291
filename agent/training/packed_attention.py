"""Attention over a packed training batch: one shared prefix, then dialogues of equal length that all continue it.

The tools preamble is most of a short conversation; computing it once a batch makes training several times cheaper.
Tokens are laid out flat: prefix [P], then dialogue 0 [T], dialogue 1 [T], …
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from v32.kernels.index_score import index_score
from v32.model_runtime.model.attention import AttentionInputs
from v32.model_runtime.model.mla import MLA

AttentionMode = Literal["dense", "warmup", "sparse"]


class _Keys(NamedTuple):
    """Keys of the prefix, shared by all dialogues, and each dialogue's own."""

    prefix: Tensor  # [P, ...]
    own: Tensor  # [B, T, ...]


class PackedAttention:
    """`dense`: every visible position. `warmup`: dense, and the indexer learns to rank as the attention weighs
    (report section 2.1.1). `sparse`: top-k positions, and the indexer learns on the selected set.

    After a forward pass with gradients, `index_loss` is the sum over layers of KL(attention ‖ indexer), averaged over
    the tokens of the dialogue numbered `taught`, or of all dialogues.
    """

    def __init__(
        self, prefix: int, batch: int, length: int, *, mode: AttentionMode, index_topk: int, taught: int | None = None
    ) -> None:
        self.prefix, self.batch, self.length = prefix, batch, length
        self.mode, self.index_topk = mode, index_topk
        self._taught = slice(None) if taught is None else slice(taught, taught + 1)
        self.index_loss = torch.zeros(())
        self._future = torch.ones(length, length, dtype=torch.bool).triu(1)

    @property
    def needs_index_queries(self) -> bool:
        return self.mode != "dense"

    def __call__(self, layer_idx: int, mla: MLA, inputs: AttentionInputs) -> Tensor:
        k_nope, v = mla.expand(inputs.latent)
        k = torch.cat((k_nope, inputs.k_pe[:, None].expand(-1, mla.heads, -1)), -1)
        q = torch.cat((inputs.q_nope, inputs.q_pe), -1)
        of_prefix = self._prefix_attention(mla, q[: self.prefix], k[: self.prefix], v[: self.prefix], inputs)
        of_dialogues = self._dialogue_attention(mla, q, self._keys(k), self._keys(v), inputs)
        return torch.cat((of_prefix, of_dialogues.flatten(0, 1)))

    def _keys(self, flat: Tensor) -> _Keys:
        return _Keys(flat[: self.prefix], self._dialogues(flat))

    def _dialogues(self, flat: Tensor) -> Tensor:
        return flat[self.prefix :].unflatten(0, (self.batch, self.length))

    def _prefix_attention(self, mla: MLA, q: Tensor, k: Tensor, v: Tensor, inputs: AttentionInputs) -> Tensor:
        """[P, H, V]; sparse where the prefix is longer than the top-k."""
        scores = torch.einsum("thd,shd->hts", q, k) * mla.scale
        hidden = torch.ones(self.prefix, self.prefix, dtype=torch.bool).triu(1)
        if self.mode == "sparse" and self.prefix > self.index_topk:
            assert inputs.index_q is not None
            assert inputs.index_weights is not None
            own = (inputs.index_q[: self.prefix], inputs.index_k[: self.prefix], inputs.index_weights[: self.prefix])
            hidden = ~self._select(index_score(*own).detach()[None], torch.arange(1, self.prefix + 1))[0]
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        return torch.einsum("hts,shd->thd", weights, v)

    def _dialogue_attention(self, mla: MLA, q: Tensor, k: _Keys, v: _Keys, inputs: AttentionInputs) -> Tensor:
        """[B, T, H, V]."""
        queries, keys, values = self._dialogues(q), self._joined(k), self._joined(v)
        if self.mode == "dense":
            q_heads, k_heads, v_heads = (part.transpose(1, 2) for part in (queries, keys, values))
            out = F.scaled_dot_product_attention(q_heads, k_heads, v_heads, attn_mask=self._visible(), scale=mla.scale)
            return out.transpose(1, 2)
        scores = torch.einsum("bthd,bshd->bhts", queries, keys) * mla.scale
        return torch.einsum("bhts,bshd->bthd", self._with_indexer(scores, inputs), values)

    def _joined(self, keys: _Keys) -> Tensor:
        """[B, P + T, ...]."""
        count = len(keys.own)
        return torch.cat((keys.prefix.expand(count, *keys.prefix.shape), keys.own), 1)

    def _visible(self) -> Tensor:
        """[T, P + T]: the prefix, and a dialogue's own past."""
        return F.pad(~self._future, (self.prefix, 0), value=True)

    def _with_indexer(self, scores: Tensor, inputs: AttentionInputs) -> Tensor:
        """Attention weights [B, H, T, P + T] under the indexer's choice; adds to `index_loss`."""
        visible = self._visible()
        selected = visible.expand(self.batch, *visible.shape)
        if self.mode == "sparse":
            with torch.no_grad():
                ranking = self._ranking(inputs, slice(None))
            selected = self._select(ranking, visible.sum(-1))
        weights = scores.masked_fill(~selected[:, None], -torch.inf).softmax(-1)
        if torch.is_grad_enabled():
            of = self._taught
            self._teach(weights[of].detach().mean(1), self._ranking(inputs, of), selected[of])
        return weights

    def _ranking(self, inputs: AttentionInputs, dialogues: slice) -> Tensor:
        """Index scores [B, T, P + T] of some of the dialogues."""
        assert inputs.index_q is not None
        assert inputs.index_weights is not None
        shared, own = self._keys(inputs.index_k)
        keys = self._joined(_Keys(shared, own[dialogues]))
        return index_score(
            self._dialogues(inputs.index_q)[dialogues], keys, self._dialogues(inputs.index_weights)[dialogues]
        )

    def _select(self, ranking: Tensor, num_visible: Tensor) -> Tensor:
        """The top-k of ranking [B, T, S] as a mask; num_visible [T] positions count."""
        num_keys = ranking.shape[-1]
        positions = torch.arange(num_keys)
        is_visible = positions < num_visible[:, None]
        chosen = torch.zeros_like(ranking, dtype=torch.bool)
        best = ranking.masked_fill(~is_visible, -torch.inf).topk(min(self.index_topk, num_keys), sorted=False).indices
        return chosen.scatter_(-1, best, True) & is_visible

    def _teach(self, target: Tensor, ranking: Tensor, selected: Tensor) -> None:
        """KL of the indexer's softmax from the attention weights, the mean over heads; both on the selected set."""
        ranked = ranking.masked_fill(~selected, -torch.inf).log_softmax(-1).masked_fill(~selected, 0.0)
        divergence = (target * (target.clamp_min(1e-9).log() - ranked)).sum(-1)  # [B, T]
        self.index_loss = self.index_loss + divergence.mean()
