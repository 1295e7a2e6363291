"""The calls that the 671B model makes, with its shapes, for every band of the tuning tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from v32.kernels.act_quant.triton import act_quant
from v32.kernels.aot.recorder import Launch, Recorder
from v32.kernels.dense_mla.triton import dense_mla, expanded_mla
from v32.kernels.float_gemm.triton import float_gemm
from v32.kernels.fp8_gemm.triton import fp8_gemm
from v32.kernels.hadamard.triton import hadamard
from v32.kernels.index_score.triton import index_score, paged_index_score
from v32.kernels.kv_append import record_bytes
from v32.kernels.kv_append.triton import kv_append
from v32.kernels.moe_experts import ExpertWeights
from v32.kernels.moe_experts.triton import moe_experts
from v32.kernels.moe_route.triton import moe_route
from v32.kernels.rms_norm.triton import add_rms_norm, rms_norm, rms_norm_quant
from v32.kernels.rope.triton import rope
from v32.kernels.sample.triton import sample
from v32.kernels.sparse_mla.triton import sparse_mla, sparse_mla_fp8
from v32.kernels.swiglu.triton import swiglu, swiglu_quant
from v32.kernels.token_mask.triton import token_mask
from v32.kernels.topk_select.triton import topk_select

HIDDEN, INNER, EXPERTS, TOP_K, VOCAB = 7168, 2048, 256, 8, 129280
HEADS, LATENT, ROPE, NOPE, VALUE = 128, 512, 64, 128, 128
INDEX_HEADS, INDEX_WIDTH, INDEX_TOPK, CONTEXT, SLOTS = 64, 128, 2048, 32768, 65536
DECODE, MEDIUM, PREFILL = 16, 128, 4096


def operations() -> dict[str, Callable[[Recorder], object]]:
    """Operation -> what to call, in the order of the model."""
    return {name.removeprefix("_op_"): call for name, call in globals().items() if name.startswith("_op_")}


def launches(operation: str, arch: str) -> list[Launch]:
    """The distinct kernels of an operation on an architecture."""
    recorder = Recorder.of(arch)
    operations()[operation](recorder)
    distinct = {repr((str(each.kernel), *each[1:])): each for each in recorder.launches}
    return list(distinct.values())


def _meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def _floats(*shape: int) -> Tensor:
    return _meta(*shape, dtype=torch.float32)


def _ints(*shape: int) -> Tensor:
    return _meta(*shape, dtype=torch.int64)


def _codes(*shape: int) -> Tensor:
    return _meta(*shape, dtype=torch.float8_e4m3fn)


def _op_rms_norm(gpu: Recorder) -> None:
    x, weight = _meta(DECODE, HIDDEN), _meta(HIDDEN)
    rms_norm(x, weight, 1e-6, gpu)
    add_rms_norm(x, x, weight, 1e-6, gpu)
    rms_norm_quant(x, weight, 1e-6, True, gpu)


def _op_act_quant(gpu: Recorder) -> None:
    for ue8m0 in (True, False):
        act_quant(_meta(DECODE, HIDDEN), 128, ue8m0, gpu)


def _op_fp8_gemm(gpu: Recorder) -> None:
    for tokens in (DECODE, MEDIUM, PREFILL):
        for fmt in ("ue8m0", None):
            fp8_gemm(_meta(tokens, HIDDEN), _codes(1536, HIDDEN), _floats(12, 56), fmt, gpu)


def _op_float_gemm(gpu: Recorder) -> None:
    for tokens in (DECODE, MEDIUM):
        float_gemm(_meta(tokens, HIDDEN), _meta(VOCAB, HIDDEN), gpu)


def _op_rope(gpu: Recorder) -> None:
    for interleaved in (True, False):
        rope(_meta(DECODE, HEADS, 192)[..., NOPE:], _floats(DECODE, 32), _floats(DECODE, 32), interleaved, gpu)


def _op_hadamard(gpu: Recorder) -> None:
    hadamard(_meta(DECODE, INDEX_HEADS, INDEX_WIDTH), gpu)


def _op_kv_append(gpu: Recorder) -> None:
    latent, k_pe, slots = _meta(DECODE, LATENT), _meta(DECODE, ROPE), _ints(DECODE)
    kv_append(_meta(SLOTS, LATENT + ROPE), slots, latent, k_pe, gpu)
    kv_append(_meta(SLOTS, record_bytes(LATENT, ROPE), dtype=torch.uint8), slots, latent, k_pe, gpu)
    left, right = _meta(DECODE, INDEX_WIDTH).tensor_split(2, -1)
    kv_append(_meta(SLOTS, INDEX_WIDTH), slots, left, right, gpu)


def _op_index_score(gpu: Recorder) -> None:
    weights, scale = _floats(PREFILL, INDEX_HEADS), _floats(CONTEXT)
    index_score(_codes(PREFILL, INDEX_HEADS, INDEX_WIDTH), _codes(CONTEXT, INDEX_WIDTH), weights, scale, gpu)
    index_score(_meta(PREFILL, INDEX_HEADS, INDEX_WIDTH), _meta(CONTEXT, INDEX_WIDTH), weights, None, gpu)
    table, visible, weights = _ints(DECODE, CONTEXT // 64), _ints(DECODE), _floats(DECODE, INDEX_HEADS)
    q, keys = _codes(DECODE, INDEX_HEADS, INDEX_WIDTH), _codes(SLOTS, INDEX_WIDTH)
    paged_index_score(q, keys, weights, table, visible, 64, _floats(SLOTS), gpu)
    q, keys = _meta(DECODE, INDEX_HEADS, INDEX_WIDTH), _meta(SLOTS, INDEX_WIDTH)
    paged_index_score(q, keys, weights, table, visible, 64, None, gpu)


def _op_topk_select(gpu: Recorder) -> None:
    topk_select(_floats(DECODE, CONTEXT), INDEX_TOPK, _ints(DECODE), False, gpu)


def _op_sparse_mla(gpu: Recorder) -> None:
    records = _meta(SLOTS, LATENT + ROPE)
    fp8_records = _meta(SLOTS, record_bytes(LATENT, ROPE), dtype=torch.uint8)
    for tokens in (DECODE, PREFILL):
        q, q_pe, indices = _meta(tokens, HEADS, LATENT), _meta(tokens, HEADS, ROPE), _ints(tokens, INDEX_TOPK)
        sparse_mla(q, q_pe, records[:, :LATENT], records[:, LATENT:], indices, 0.1, gpu)
        sparse_mla_fp8(q, q_pe, fp8_records, indices, 0.1, gpu)


def _op_dense_mla(gpu: Recorder) -> None:
    records = _meta(2048, LATENT + ROPE)
    q, q_pe = _meta(DECODE, HEADS, LATENT), _meta(DECODE, HEADS, ROPE)
    dense_mla(q, q_pe, records[:, :LATENT], records[:, LATENT:], _ints(DECODE), 0.1, gpu)
    q, kv = _meta(PREFILL, HEADS, NOPE + ROPE), _meta(PREFILL, HEADS, NOPE + VALUE)
    for indices in (None, _ints(PREFILL, INDEX_TOPK)):
        expanded_mla(
            *(q[..., :NOPE], q[..., NOPE:], kv[..., :NOPE], _meta(PREFILL, ROPE), kv[..., NOPE:]),
            *(_ints(PREFILL), 0.1, indices, gpu),
        )


def _op_moe_route(gpu: Recorder) -> None:
    moe_route(_floats(DECODE, EXPERTS), _floats(EXPERTS), TOP_K, 8, 4, True, gpu)


def _op_swiglu(gpu: Recorder) -> None:
    swiglu(_meta(DECODE, INNER), _meta(DECODE, INNER), gpu)
    swiglu_quant(_meta(DECODE, INNER), _meta(DECODE, INNER), True, gpu)


def _op_moe_experts(gpu: Recorder) -> None:
    gate, down = _codes(INNER, HIDDEN), _codes(HIDDEN, INNER)
    expert = ExpertWeights(gate, gate, down, _floats(16, 56), _floats(16, 56), _floats(56, 16))
    float_expert = ExpertWeights(_meta(INNER, HIDDEN), _meta(INNER, HIDDEN), _meta(HIDDEN, INNER))
    for tokens in (DECODE, PREFILL):
        indices, weights = _ints(tokens, TOP_K), _floats(tokens, TOP_K)
        for fmt in ("ue8m0", None):
            moe_experts(_meta(tokens, HIDDEN), indices, weights, [expert] * EXPERTS, fmt, gpu)
        moe_experts(_meta(tokens, HIDDEN), indices, weights, [float_expert] * EXPERTS, None, gpu)


def _op_token_mask(gpu: Recorder) -> None:
    token_mask(_floats(DECODE, VOCAB), _meta(DECODE, VOCAB // 32, dtype=torch.int32), gpu)


def _op_sample(gpu: Recorder) -> None:
    sample(_floats(DECODE, VOCAB), _floats(DECODE), _floats(DECODE), _floats(DECODE), gpu)


def matrix(operation_names: list[str], archs: list[str]) -> Iterator[tuple[str, str, Launch]]:
    """(operation, architecture, launch) of everything asked for."""
    for operation in operation_names:
        for arch in archs:
            for launch in launches(operation, arch):
                yield operation, arch, launch
