"""Which rows and columns of each published tensor a rank of a tensor-parallel model holds. Names and numbers only.

    attention heads        q_b, kv_b by rows, o_proj by columns      sums over ranks after o_proj
    feed-forward width     gate, up by rows, down by columns         sums over ranks after down
    routed experts         whole experts by index                    sums together with the shared expert
    output head            by rows of the vocabulary                 logits are gathered

Everything else is whole on every rank: the latent projections and the indexer serve all heads, the router sees all
experts, norms are small. So is the embedding: a lookup reads a few rows and needs no message, whereas the head, of the
same size, is read whole for every token and is worth cutting.

Parts are whole blocks of 128 wherever there are enough of them, so that FP8 scales are cut along with their blocks.
"""

from __future__ import annotations

import math
import os
import re
from typing import NamedTuple

from v32.model_runtime.config import DeepseekV32Config
from v32.model_runtime.errors import CheckpointError

BLOCK = 128
_EXPERT = re.compile(r"\.mlp\.experts\.(\d+)\.")


class Part(NamedTuple):
    """The part of a tensor: first dimension [rows.start, rows.stop), second the same; `columns` is None of a vector."""

    rows: slice
    columns: slice | None

    @property
    def num_values(self) -> int:
        width = self.columns.stop - self.columns.start if self.columns else 1
        return int((self.rows.stop - self.rows.start) * width)

    @property
    def is_on_blocks(self) -> bool:
        """It begins where a block of FP8 scales begins, in both dimensions."""
        return not (self.rows.start % BLOCK or (self.columns and self.columns.start % BLOCK))


class Shard(NamedTuple):
    """Rank `rank` of `num_ranks`."""

    rank: int = 0
    num_ranks: int = 1

    @classmethod
    def launched(cls) -> Shard:
        """This process's place among those that torchrun started, by RANK and WORLD_SIZE; alone without them."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    def check(self, config: DeepseekV32Config) -> None:
        """Raise `CheckpointError` if there are more ranks than heads or experts."""
        for key in ("num_attention_heads", "n_routed_experts"):
            if self.num_ranks > (limit := getattr(config, key)):
                raise CheckpointError(f"{self.num_ranks} ranks cannot share {key} {limit}; use at most {limit} ranks")

    def span(self, total: int, unit: int = 1) -> slice:
        """This rank's part of range(total): consecutive, in multiples of `unit` where every rank gets one."""
        if total % unit or total // unit < self.num_ranks:
            unit = 1
        units = total // unit
        return slice(self.rank * units // self.num_ranks * unit, (self.rank + 1) * units // self.num_ranks * unit)

    def heads(self, config: DeepseekV32Config) -> slice:
        widths = (config.qk_head_dim, config.qk_nope_head_dim + config.v_head_dim, config.v_head_dim)
        unit = math.lcm(*(BLOCK // math.gcd(BLOCK, width) for width in widths))
        return self.span(config.num_attention_heads, unit)

    def experts(self, config: DeepseekV32Config) -> slice:
        return self.span(config.n_routed_experts)

    def part(self, name: str, shape: tuple[int, ...], config: DeepseekV32Config) -> Part | None:
        """What this rank holds of a tensor; None where it holds nothing."""
        everything = whole(shape)
        if self.num_ranks == 1:
            return everything
        if expert := _EXPERT.search(name):
            experts = self.experts(config)
            return everything if experts.start <= int(expert[1]) < experts.stop else None
        if name == "lm_head.weight":
            return everything._replace(rows=self.span(shape[0]))
        heads = self.heads(config)
        if name.endswith(".self_attn.q_b_proj.weight"):
            return everything._replace(rows=_scaled(heads, config.qk_head_dim))
        if name.endswith(".self_attn.kv_b_proj.weight"):
            return everything._replace(rows=_scaled(heads, config.qk_nope_head_dim + config.v_head_dim))
        if name.endswith(".self_attn.o_proj.weight"):
            return everything._replace(columns=_scaled(heads, config.v_head_dim))
        if name.endswith((".gate_proj.weight", ".up_proj.weight")):
            return everything._replace(rows=self.span(shape[0], BLOCK))
        if name.endswith(".down_proj.weight"):
            return everything._replace(columns=self.span(shape[1], BLOCK))
        return everything


def whole(shape: tuple[int, ...]) -> Part:
    """All of a vector or matrix."""
    return Part(slice(0, shape[0]), slice(0, shape[1]) if len(shape) > 1 else None)


def block_span(span: slice) -> slice:
    """The blocks of scales that cover a span which starts at a block."""
    return slice(span.start // BLOCK, -(-span.stop // BLOCK))


def _scaled(span: slice, width: int) -> slice:
    return slice(span.start * width, span.stop * width)
