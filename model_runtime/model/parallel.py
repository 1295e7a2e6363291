"""DeepseekV32ForCausalLM cut over ranks: every rank computes its heads, widths and experts; sums make them whole.

    rank 0   engine ─▶ forward, compute_logits ─▶ a message to the others, then the same sums
    others   Follower.serve: message ─▶ forward, compute_logits with pages of their own

What all ranks hold (latents, index keys, router) they compute from equal inputs to equal bits, so that no choice of
positions or experts has to be sent. Only rank 0 schedules and samples.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from v32.kernels.moe_experts import moe_experts
from v32.model_runtime.config import DeepseekV32Config
from v32.model_runtime.errors import GeneratorError
from v32.model_runtime.model.attention import Attention, FullAttention
from v32.model_runtime.model.layer import DecoderLayer
from v32.model_runtime.model.linear import Linear
from v32.model_runtime.model.moe import MLP, MoE
from v32.model_runtime.model.sharding import Shard
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM


class RankError(GeneratorError):
    """A process that holds a part of the model has died or hangs; the model has to be loaded again."""


class Ranks:
    """The processes of one model: sums, gathering, and messages from rank 0. Failures are `RankError`."""

    def __init__(self, store: dist.Store, shard: Shard, stall_seconds: float) -> None:
        """`stall_seconds`: how long one rank waits for another before it gives up."""
        self.shard = shard
        self.explain: Callable[[], str] = lambda: "a rank has died or hangs"
        """What is known of the failure, for the message of `RankError`."""
        self.failure: str | None = None
        self._store = store
        self._patience = timedelta(seconds=stall_seconds)
        self._messages: Any = dist.ProcessGroupGloo(dist.PrefixStore("messages", store), *shard, self._patience)
        self._sums: Any = self._messages

    def use(self, device: torch.device) -> None:
        """Between GPUs sums go by NCCL, whose own watch ends the process when a rank hangs. That has not been run."""
        if device.type == "cuda":
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = self._patience
            self._sums = dist.ProcessGroupNCCL(dist.PrefixStore("sums", self._store), *self.shard, options)

    def sum(self, partial: Tensor) -> Tensor:
        """The sum over all ranks, added in float32; every rank gets the same bits."""
        total = partial.float().contiguous()
        self._checked(lambda: self._sums.allreduce([total]))
        return total.to(partial.dtype)

    def gather(self, columns: Tensor, total: int) -> Tensor:
        """The columns [M, part] of all ranks beside each other, [M, total]."""
        spans = [Shard(rank, self.shard.num_ranks).span(total) for rank in range(self.shard.num_ranks)]
        widest = max(span.stop - span.start for span in spans)
        padded = columns.new_zeros(len(columns), widest)
        padded[:, : columns.shape[1]] = columns
        parts = [torch.empty_like(padded) for _ in spans]
        self._checked(lambda: self._sums.allgather([parts], [padded]))
        return torch.cat([part[:, : span.stop - span.start] for part, span in zip(parts, spans)], 1)

    def send(self, message: object) -> None:
        """From rank 0 to all others."""
        data = torch.frombuffer(bytearray(pickle.dumps(message)), dtype=torch.uint8)
        self._checked(lambda: self._messages.broadcast([torch.tensor([len(data)])]))
        self._checked(lambda: self._messages.broadcast([data]))

    def receive(self) -> Any:
        """What rank 0 sent next."""
        # There may be hours between passes; a peer that dies closes its connection, which ends the waiting.
        patient = dist.BroadcastOptions()
        patient.timeout = timedelta(days=365)
        length = torch.zeros(1, dtype=torch.int64)
        self._checked(lambda: self._messages.broadcast([length], patient))
        data = torch.empty(int(length), dtype=torch.uint8)
        self._checked(lambda: self._messages.broadcast([data]))
        return pickle.loads(data.numpy().tobytes())

    def _checked(self, start: Callable[[], Any]) -> None:
        """After one failure the ranks no longer agree on what comes next: nothing is tried again."""
        if self.failure is None:
            try:
                start().wait()
                return
            except RuntimeError as error:
                self.failure = f"{self.explain()} ({str(error).splitlines()[0][:200]})"
        raise RankError(f"{self.failure}; load the model again")


class Pass(NamedTuple):
    """One forward pass: what a follower needs to know of rank 0's batch."""

    input_ids: list[int]
    positions: list[int]
    copied_pages: list[tuple[int, int]]
    segments: list[tuple[list[int], int, int]] | None  # pages, start, number of tokens; None: whole sequences
    lengths: list[int]  # of whole sequences


class Logits(NamedTuple):
    """The logits of some rows of the last pass are wanted."""

    hidden: Tensor


class ParallelForCausalLM(DeepseekV32ForCausalLM):
    """One rank's part of the model; rank 0 is used like the whole model, and takes the others along."""

    def __init__(self, config: DeepseekV32Config) -> None:
        super().__init__(config)
        self.ranks: Ranks | None = None
        self._pool: Any = None
        self._copied_pages: list[tuple[int, int]] = []

    def join(self, ranks: Ranks) -> None:
        """Put sums where the ranks' parts meet; called when the parts of the weights are in place."""
        self.ranks = ranks
        self.model.uses_native = False
        for module in self.model.layers:
            layer = cast(DecoderLayer, module)
            heads = ranks.shard.heads(self.config)
            layer.self_attn.heads = heads.stop - heads.start
            layer.self_attn.o_proj = SummedLinear.of(layer.self_attn.o_proj, ranks)
            if isinstance(layer.mlp, MoE):
                layer.mlp = ParallelMoE(self.config, layer.mlp, ranks)
            else:
                layer.mlp.down_proj = SummedLinear.of(layer.mlp.down_proj, ranks)
        if self.config.tie_word_embeddings:
            rows = ranks.shard.span(self.config.vocab_size)
            self.lm_head.weight = nn.Parameter(self.model.embed_tokens.weight[rows], requires_grad=False)

    def forward(self, input_ids: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        if self._leads:
            self._send_pass(input_ids, positions, attention)
        return super().forward(input_ids, positions, attention)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        assert self.ranks is not None
        if self._leads:
            self.ranks.send(Logits(hidden.cpu()))
        return self.ranks.gather(super().compute_logits(hidden), self.config.vocab_size)

    @property
    def is_recordable(self) -> bool:
        """No: ranks tell each other what comes."""
        return False

    @property
    def _leads(self) -> bool:
        return self.ranks is not None and self.ranks.shard.rank == 0

    def _send_pass(self, input_ids: Tensor, positions: Tensor, attention: Any) -> None:
        assert self.ranks is not None
        if isinstance(attention, FullAttention):
            segments, lengths = None, attention.lengths
        else:
            lengths = []
            segments = [(list(s.table.pages), s.start, s.num_tokens) for s in attention.segments]
        self.ranks.send(Pass(input_ids.tolist(), positions.tolist(), self._copied_pages, segments, lengths))
        self._copied_pages = []

    def watch(self, pool: Any) -> None:
        """Copies of pages that rank 0's cache makes are made by the others too."""
        pool.on_copy = lambda page, new: self._copied_pages.append((page, new))


class SummedLinear(Linear):
    """A linear layer of which every rank holds some columns: outputs are summed over ranks."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__(0, 0)
        self.ranks = ranks

    @classmethod
    def of(cls, linear: Linear, ranks: Ranks) -> SummedLinear:
        summed = cls(ranks)
        summed.weight, summed.weight_scale_inv = linear.weight, linear.weight_scale_inv
        return summed

    def forward(self, x: Tensor) -> Tensor:
        return self.ranks.sum(super().forward(x))


class ParallelMoE(MoE):
    """Routed experts of this rank and its part of the shared expert; one float32 sum over ranks makes them whole."""

    def __init__(self, config: DeepseekV32Config, moe: MoE, ranks: Ranks) -> None:
        nn.Module.__init__(self)
        self.span = ranks.shard.experts(config)
        self.gate, self.shared_experts, self.last_routing = moe.gate, moe.shared_experts, None
        self.experts = nn.ModuleList(moe.experts[self.span])
        self.ranks = ranks

    def forward(self, x: Tensor) -> Tensor:
        weights, indices = self.gate(x)
        self.last_routing = indices
        partial = self._routed(x, indices, weights) + self.shared_experts(x).float()
        return self.ranks.sum(partial).to(x.dtype)

    def _routed(self, x: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        """The part of this rank's experts, float32 [T, D]: only the pairs of token and expert that are here."""
        tokens, choices = ((indices >= self.span.start) & (indices < self.span.stop)).nonzero(as_tuple=True)
        total = x.new_zeros(x.shape, dtype=torch.float32)
        if len(tokens) == 0:
            return total
        experts = [cast(MLP, expert).expert_weights() for expert in self.experts]
        local = indices[tokens, choices] - self.span.start
        outputs = moe_experts(x[tokens], local[:, None], weights[tokens, choices][:, None], experts)
        return total.index_add(0, tokens, outputs)
