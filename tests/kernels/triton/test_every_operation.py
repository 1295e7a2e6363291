"""What holds of every operation: no tokens are no work, a row's bits do not depend on its neighbours, and what was not
written or lies between strided inputs is never read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from v32.kernels.kv_append import record_bytes
from v32.kernels.kv_append.reference import kv_append as stored
from v32.kernels.moe_experts import ExpertWeights

TOKENS, SLOTS, WIDTH = 5, 40, 136


class Case(NamedTuple):
    """An operation on tensors with one row for each of TOKENS tokens; its results have such rows, too."""

    rows: tuple[Tensor, ...]
    call: Callable[..., Any]

    def results(self, rows: tuple[Tensor, ...]) -> list[Tensor]:
        out = self.call(*rows)
        return [out] if isinstance(out, Tensor) else list(out)


class Draw:
    """Random tensors on the device of the tests."""

    def __init__(self, device: str, rng: torch.Generator) -> None:
        self.device, self.rng = device, rng

    def normal(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(*shape, generator=self.rng).to(dtype).to(self.device)

    def floats(self, *shape: int) -> Tensor:
        return self.normal(*shape, dtype=torch.float32)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=self.rng).to(self.device)

    def fp8(self, rows: int, width: int) -> tuple[Tensor, Tensor]:
        scale = torch.rand(-(-rows // 128), -(-width // 128), generator=self.rng) + 0.5
        return self.normal(rows, width, dtype=torch.float8_e4m3fn), scale.to(self.device)

    def records(self, width: int = 128, rope: int = 16) -> Tensor:
        records = torch.zeros(SLOTS, record_bytes(width, rope), dtype=torch.uint8, device=self.device)
        slots = torch.arange(SLOTS, device=self.device)
        stored(records, slots, self.normal(SLOTS, width), self.normal(SLOTS, rope))
        return records


def operations(draw: Draw) -> Iterator[tuple[str, Callable[[], Case]]]:
    from v32.kernels.act_quant.triton import act_quant
    from v32.kernels.dense_mla.triton import dense_mla, expanded_mla
    from v32.kernels.float_gemm.triton import float_gemm
    from v32.kernels.fp8_gemm.triton import fp8_gemm
    from v32.kernels.hadamard.triton import hadamard
    from v32.kernels.index_score.triton import index_score, paged_index_score
    from v32.kernels.moe_experts.triton import moe_experts
    from v32.kernels.moe_route.triton import moe_route
    from v32.kernels.rms_norm.triton import add_rms_norm, rms_norm, rms_norm_quant
    from v32.kernels.rope.triton import rope
    from v32.kernels.sample.triton import sample
    from v32.kernels.sparse_mla.triton import sparse_mla, sparse_mla_fp8
    from v32.kernels.swiglu.triton import swiglu, swiglu_quant
    from v32.kernels.token_mask.triton import token_mask
    from v32.kernels.topk_select.triton import topk_select

    x, y, weight = draw.normal(TOKENS, WIDTH), draw.normal(TOKENS, WIDTH), draw.normal(WIDTH)
    yield "act_quant", lambda: Case((x,), lambda x: act_quant(x, 128, True))
    yield "rms_norm", lambda: Case((x,), lambda x: rms_norm(x, weight, 1e-6))
    yield "add_rms_norm", lambda: Case((x, y), lambda x, y: add_rms_norm(x, y, weight, 1e-6))
    yield "rms_norm_quant", lambda: Case((x,), lambda x: rms_norm_quant(x, weight, 1e-6, True))
    yield "swiglu", lambda: Case((x, y), swiglu)
    yield "swiglu_quant", lambda: Case((x, y), lambda x, y: swiglu_quant(x, y, True))
    yield "hadamard", lambda: Case((draw.normal(TOKENS, 3, 32),), hadamard)
    angles = draw.floats(TOKENS, 8), draw.floats(TOKENS, 8)
    for interleaved in (True, False):
        rotate = lambda x, cos, sin, i=interleaved: rope(x, cos, sin, i)  # noqa: E731
        yield f"rope-{interleaved}", lambda rotate=rotate: Case((draw.normal(TOKENS, 3, 16), *angles), rotate)

    codes, scale = draw.fp8(40, WIDTH)
    for fmt in (None, "ue8m0"):
        yield f"fp8_gemm-{fmt}", lambda fmt=fmt: Case((x,), lambda x: fp8_gemm(x, codes, scale, fmt))
    yield "float_gemm", lambda: Case((x,), lambda x: float_gemm(x, codes.bfloat16()))
    chosen, share = draw.integers(0, 4, TOKENS, 2), draw.floats(TOKENS, 2)
    chosen[:, 1] = (chosen[:, 0] + 1) % 4
    parts = [[draw.fp8(24, WIDTH), draw.fp8(24, WIDTH), draw.fp8(WIDTH, 24)] for _ in range(4)]
    fp8_experts = [ExpertWeights(*(p[0] for p in part), *(p[1] for p in part)) for part in parts]
    float_experts = [ExpertWeights(*(p[0].bfloat16() for p in part)) for part in parts]
    for name, experts in (("fp8", fp8_experts), ("float", float_experts)):
        routed = lambda x, i, w, e=experts: moe_experts(x, i, w, e, None)  # noqa: E731
        yield f"moe_experts-{name}", lambda routed=routed: Case((x, chosen, share), routed)
    bias = draw.floats(16)
    yield "moe_route", lambda: Case((draw.floats(TOKENS, 16),), lambda l: moe_route(l, bias, 3, 4, 2, True))

    keys, index_q, head_weights = draw.normal(SLOTS, 32), draw.normal(TOKENS, 4, 32), draw.floats(TOKENS, 4)
    visible = draw.integers(1, 33, TOKENS)
    table = torch.stack([torch.randperm(5, generator=draw.rng)[:4] for _ in range(TOKENS)]).to(draw.device)
    yield "index_score", lambda: Case((index_q, head_weights), lambda q, w: index_score(q, keys, w, None))

    def seen(q: Tensor, w: Tensor, table: Tensor, visible: Tensor) -> Tensor:
        scores = paged_index_score(q, keys, w, table, visible, 8, None)
        return scores.masked_fill(torch.arange(32, device=q.device) >= visible[:, None], 0.0)

    yield "paged_index_score", lambda: Case((index_q, head_weights, table, visible), seen)
    yield (
        "topk_select",
        lambda: Case((draw.floats(TOKENS, 32), visible), lambda scores, visible: topk_select(scores, 7, visible, True)),
    )

    q, q_pe, records = draw.normal(TOKENS, 3, 128), draw.normal(TOKENS, 3, 16), draw.records()
    latent, k_pe = draw.normal(SLOTS, 128), draw.normal(SLOTS, 16)
    indices = torch.stack([torch.randperm(SLOTS, generator=draw.rng)[:20] for _ in range(TOKENS)]).to(draw.device)
    indices[2, 5:] = -1
    yield "sparse_mla", lambda: Case((q, q_pe, indices), lambda q, p, i: sparse_mla(q, p, latent, k_pe, i, 0.1))
    yield "sparse_mla_fp8", lambda: Case((q, q_pe, indices), lambda q, p, i: sparse_mla_fp8(q, p, records, i, 0.1))
    yield "dense_mla", lambda: Case((q, q_pe, visible), lambda q, p, v: dense_mla(q, p, latent, k_pe, v, 0.1))
    k_nope, value = draw.normal(SLOTS, 3, 128), draw.normal(SLOTS, 3, 24)
    yield (
        "expanded_mla",
        lambda: Case(
            (q, q_pe, visible, indices),
            lambda q, p, v, i: expanded_mla(q, p, k_nope, k_pe, value, v.clamp_min(i.amax(1) + 1), 0.1, i),
        ),
    )
    for name, cache in (("float", torch.zeros(SLOTS, 144)), ("fp8", torch.zeros(SLOTS, record_bytes(128, 16)).byte())):
        yield (
            f"kv_append-{name}",
            lambda cache=cache: Case(
                (draw.integers(0, 8, TOKENS), draw.normal(TOKENS, 128), draw.normal(TOKENS, 16)), _appending(cache)
            ),
        )
    words = draw.integers(-(2**31), 2**31, TOKENS, 10).int()
    logits, uniforms = draw.floats(TOKENS, 300), torch.rand(TOKENS, generator=draw.rng).double().to(draw.device)
    warmth = torch.rand(TOKENS, generator=draw.rng).to(draw.device)
    yield "token_mask", lambda: Case((logits, words), token_mask)
    yield "sample", lambda: Case((logits, warmth, warmth, uniforms), sample)


def _appending(cache: Tensor) -> Callable[..., Tensor]:
    from v32.kernels.kv_append.triton import kv_append

    def append(slots: Tensor, latent: Tensor, k_pe: Tensor) -> Tensor:
        """What each token has stored, in a slot of its own."""
        records = cache.to(latent.device, copy=True)
        slots = slots + 8 * torch.arange(len(slots), device=slots.device) % SLOTS
        kv_append(records, slots, latent, k_pe)
        return records[slots]

    return append


NAMES = [name for name, _ in operations(Draw("cpu", torch.Generator().manual_seed(0)))]


@pytest.fixture
def case(request: pytest.FixtureRequest, device: str, rng: torch.Generator) -> Case:
    return dict(operations(Draw(device, rng)))[request.param]()


@pytest.fixture
def _poisoned() -> Iterator[None]:
    """Memory that is allocated holds NaN, or the largest integers."""
    was = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = was  # type: ignore[attr-defined]


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


@pytest.mark.usefixtures("_poisoned")
@pytest.mark.parametrize("case", NAMES, indirect=True)
def test_a_row_alone_has_the_bits_that_it_has_among_others(case: Case) -> None:
    together = case.results(case.rows)
    assert all(len(result) == TOKENS for result in together)
    assert not any(result.double().isnan().any() for result in together)
    for token in range(TOKENS):
        alone = case.results(tuple(row[token : token + 1] for row in case.rows))
        assert all(same_bits(a, b[token : token + 1]) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("case", NAMES, indirect=True)
def test_no_tokens_are_no_work(case: Case) -> None:
    whole, none = case.results(case.rows), case.results(tuple(row[:0] for row in case.rows))
    assert [result.shape for result in none] == [(0, *result.shape[1:]) for result in whole]


@pytest.mark.usefixtures("_poisoned")
@pytest.mark.parametrize("case", NAMES, indirect=True)
def test_strided_inputs_give_the_same_bits(case: Case) -> None:
    spread = []
    for row in case.rows:
        wide = torch.empty(*row.shape, 2, dtype=row.dtype, device=row.device)
        wide[..., 0] = row
        spread.append(wide[..., 0])
    for a, b in zip(case.results(tuple(spread)), case.results(case.rows), strict=True):
        assert same_bits(a, b)
