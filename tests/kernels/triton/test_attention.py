"""Cache, index scores and attention against float64, over ragged sizes, unused entries and poisoned memory.

One rounding to bfloat16 is 1.5e-3 of the 2-norm: an ulp of 2^-7 over the root of 12, for values spread evenly over a
binade. Probabilities are rounded before they weigh the values, and the result is: together root 2 times that, 2.2e-3.
In float32 only the order of sums differs.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from v32.kernels.act_quant import reference as act_quant_reference
from v32.kernels.dense_mla import reference as dense_reference
from v32.kernels.index_score import reference as index_reference
from v32.kernels.kv_append import record_bytes
from v32.kernels.kv_append import reference as append_reference
from v32.kernels.sparse_mla import reference as sparse_reference
from v32.kernels.triton_support.gpu import gpu_of

BOUND = {torch.float32: 2e-6, torch.bfloat16: 2.5e-3}
SCALE = 0.1352


def relative_error(y: Tensor, expected: Tensor) -> float:
    assert y.isfinite().all()
    return float((y.double() - expected.double()).norm() / expected.double().norm())


def normal(rng: torch.Generator, device: str, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng).to(dtype).to(device)


def selection(rng: torch.Generator, device: str, tokens: int, slots: int, k: int) -> Tensor:
    indices = torch.stack([torch.randperm(slots, generator=rng)[:k] for _ in range(tokens)])
    for token in range(tokens):
        indices[token, k - token % k :] = -1
    indices[-1, ::2] = -1
    indices[-1, 1] = slots - 1
    return indices.to(device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kv_append_stores_floats_and_skips_negative_slots(
    device: str, rng: torch.Generator, dtype: torch.dtype
) -> None:
    from v32.kernels.kv_append import triton as kernel

    latent, k_pe = normal(rng, device, dtype, 3, 40), normal(rng, device, dtype, 3, 6)
    records = torch.full((9, 46), torch.nan, dtype=dtype, device=device)
    expected = records.clone()
    slots = torch.tensor([7, -1, 0], device=device)
    kernel.kv_append(records, slots, latent, k_pe)
    append_reference.kv_append(expected, slots, latent, k_pe)
    assert torch.equal(records.nan_to_num(7.0), expected.nan_to_num(7.0))
    assert records[7].isfinite().all()


@pytest.mark.parametrize(("width", "rope"), [(512, 64), (128, 8), (384, 16)])
def test_fp8_records_equal_the_reference_byte_for_byte(
    device: str, rng: torch.Generator, width: int, rope: int
) -> None:
    from v32.kernels.kv_append import triton as kernel

    latent, k_pe = normal(rng, device, torch.bfloat16, 4, width) * 9, normal(rng, device, torch.bfloat16, 4, rope)
    records = torch.full((6, record_bytes(width, rope)), 0xAB, dtype=torch.uint8, device=device)
    expected = records.clone()
    slots = torch.tensor([5, 1, -1, 2], device=device)
    kernel.kv_append(records, slots, latent, k_pe)
    append_reference.kv_append(expected, slots, latent, k_pe)
    assert torch.equal(records, expected)
    rounded, rotary = append_reference.read_fp8_records(records[slots[slots >= 0]], width)
    codes = act_quant_reference.act_quant(latent, 128, True)
    assert torch.equal(rounded, act_quant_reference.act_dequant(*codes, 128)[slots >= 0])
    assert torch.equal(rotary, k_pe[slots >= 0])


def test_the_record_of_the_published_model_has_656_bytes() -> None:
    assert record_bytes(512, 64) == 656
    with pytest.raises(ValueError, match="multiples of 128, got 100"):
        record_bytes(100, 64)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "bfloat16 keys", "float32 keys", "fp8"])
@pytest.mark.parametrize("shape", [(5, 70, 4, 32), (1, 33, 16, 24), (35, 32, 3, 128)])
def test_index_score(device: str, rng: torch.Generator, kind: str, shape: tuple[int, int, int, int]) -> None:
    from v32.kernels.index_score import triton as kernel

    queries, keys, heads, width = shape
    q_dtype = torch.bfloat16 if kind in ("bfloat16", "float32 keys") else torch.float32
    k_dtype = torch.bfloat16 if kind.startswith("bfloat16") else torch.float32
    q, k = normal(rng, device, q_dtype, queries, heads, width), normal(rng, device, k_dtype, keys, width)
    weights, k_scale = normal(rng, device, torch.float32, queries, heads), None
    gpus = [gpu_of(q)]
    if kind == "fp8":
        q, k = q.to(torch.float8_e4m3fn), k.to(torch.float8_e4m3fn)
        k_scale = torch.rand(keys, generator=rng).to(device)
        gpus.append(replace(gpus[0], has_fp8=False))
    expected = torch.relu(torch.einsum("thd,sd->ths", q.double(), k.double())) * weights.double()[..., None]
    expected = expected.sum(1) * (1 if k_scale is None else k_scale.double())
    for gpu in gpus:
        # The FP8 instructions of a GPU keep about 14 bits of a sum.
        bound = 1e-3 if kind == "fp8" and gpu.has_fp8 and gpu.arch != "interpreter" else 4e-7
        assert relative_error(kernel.index_score(q, k, weights, k_scale, gpu), expected) < bound
    # A batch of sequences with keys of their own.
    batched = kernel.index_score(q[:, None], k.expand(queries, keys, width), weights[:, None], None)[:, 0]
    assert relative_error(batched, index_reference.index_score(q, k, weights)) < 4e-7


def test_paged_index_score_reads_only_visible_pages(device: str, rng: torch.Generator) -> None:
    from v32.kernels.index_score import triton as kernel

    page, heads, width = 16, 4, 32
    visible = torch.tensor([33, 1, 48], device=device)
    table = torch.tensor([[4, 0, 2, 1 << 30], [1, 1 << 30, 1 << 30, 1 << 30], [3, 5, 4, 1 << 30]], device=device)
    keys = normal(rng, device, torch.float32, 6 * page, width)
    keys[4 * page + 1 :: page] = keys[4 * page + 1 :: page]
    q, weights = normal(rng, device, torch.float32, 3, heads, width), normal(rng, device, torch.float32, 3, heads)
    k_scale = torch.rand(6 * page, generator=rng).to(device)
    scores = kernel.paged_index_score(q, keys, weights, table, visible, page, k_scale)
    expected = index_reference.paged_index_score(q, keys, weights, table, visible, page, k_scale)
    for row, length in enumerate(visible.tolist()):
        torch.testing.assert_close(scores[row, :length], expected[row, :length], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("tokens", "heads", "width", "rope", "k"),
    [(2, 3, 32, 8, 20), (1, 17, 100, 6, 40), pytest.param(2, 16, 512, 64, 300, marks=pytest.mark.slow)],
)
def test_sparse_mla(
    device: str, rng: torch.Generator, dtype: torch.dtype, tokens: int, heads: int, width: int, rope: int, k: int
) -> None:
    from v32.kernels.sparse_mla import triton as kernel

    slots = k + 10
    q, q_pe = normal(rng, device, dtype, tokens, heads, width), normal(rng, device, dtype, tokens, heads, rope)
    records = torch.full((slots, width + rope + 3), torch.nan, dtype=dtype, device=device)
    records[:, : width + rope] = normal(rng, device, dtype, slots, width + rope)
    latent, k_pe = records[:, :width], records[:, width : width + rope]
    indices = selection(rng, device, tokens, slots, k)
    y = kernel.sparse_mla(q, q_pe, latent, k_pe, indices, SCALE)
    wide = [t.double() for t in (q, q_pe, latent, k_pe)]
    assert relative_error(y, sparse_reference.sparse_mla(*wide, indices, SCALE)) < BOUND[dtype]


@pytest.mark.parametrize("width", [128, pytest.param(512, marks=pytest.mark.slow)])
def test_sparse_mla_over_fp8_records(device: str, rng: torch.Generator, width: int) -> None:
    from v32.kernels.sparse_mla import triton as kernel

    slots, k, rope = 40, 30, 16
    records = torch.full((slots, record_bytes(width, rope)), 0x7F, dtype=torch.uint8, device=device)  # NaN codes
    latent, k_pe = normal(rng, device, torch.bfloat16, slots, width), normal(rng, device, torch.bfloat16, slots, rope)
    append_reference.kv_append(records, torch.arange(slots, device=device), latent, k_pe)
    records[3] = 0x7F
    indices = selection(rng, device, 2, slots, k)
    indices[indices == 3] = -1
    q, q_pe = normal(rng, device, torch.bfloat16, 2, 4, width), normal(rng, device, torch.bfloat16, 2, 4, rope)
    clean = records.clone()
    clean[3] = 0
    keys, keys_pe = (part.double() for part in append_reference.read_fp8_records(clean, width))
    expected = sparse_reference.sparse_mla(q.double(), q_pe.double(), keys, keys_pe, indices, SCALE)
    gpu = gpu_of(q)
    # The second stands for AMD: codes decoded in integers, values in two parts.
    for each in (gpu, replace(gpu, has_fp8=False, arch="gfx942")):
        y = kernel.sparse_mla_fp8(q, q_pe, records, indices, SCALE, each)
        assert relative_error(y, expected) < BOUND[torch.bfloat16]


def test_split_keys_give_what_one_split_gives(device: str, rng: torch.Generator) -> None:
    from v32.kernels.sparse_mla import triton as kernel

    k, slots = 256, 300
    assert kernel.num_splits(1, k) == 2
    assert kernel.num_splits(kernel.SPLIT_ROWS + 1, k) == 1
    assert kernel.num_splits(4, 2048) == kernel.MAX_SPLITS
    q, q_pe = normal(rng, device, torch.float32, 1, 2, 32), normal(rng, device, torch.float32, 1, 2, 8)
    latent, k_pe = normal(rng, device, torch.float32, slots, 32), normal(rng, device, torch.float32, slots, 8)
    indices = torch.randperm(slots, generator=rng)[None, :k].to(device)
    indices[:, 100:] = -1  # the second split sees nothing
    y = kernel.sparse_mla(q, q_pe, latent, k_pe, indices, SCALE)
    assert relative_error(y, sparse_reference.sparse_mla(q, q_pe, latent, k_pe, indices, SCALE)) < BOUND[torch.float32]


def test_a_query_does_not_depend_on_the_others(device: str, rng: torch.Generator) -> None:
    from v32.kernels.sparse_mla import triton as kernel

    q, q_pe = normal(rng, device, torch.bfloat16, 5, 3, 32), normal(rng, device, torch.bfloat16, 5, 3, 8)
    latent, k_pe = normal(rng, device, torch.bfloat16, 50, 32), normal(rng, device, torch.bfloat16, 50, 8)
    indices = selection(rng, device, 5, 50, 20)
    together = kernel.sparse_mla(q, q_pe, latent, k_pe, indices, SCALE)
    alone = kernel.sparse_mla(q[2:3], q_pe[2:3], latent, k_pe, indices[2:3], SCALE)
    assert torch.equal(alone[0], together[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dense_mla(device: str, rng: torch.Generator, dtype: torch.dtype) -> None:
    from v32.kernels.dense_mla import triton as kernel

    q, q_pe = normal(rng, device, dtype, 3, 5, 32), normal(rng, device, dtype, 3, 5, 8)
    latent, k_pe = normal(rng, device, dtype, 50, 32), normal(rng, device, dtype, 50, 8)
    visible = torch.tensor([1, 33, 50], device=device)
    y = kernel.dense_mla(q, q_pe, latent, k_pe, visible, SCALE)
    wide = [t.double() for t in (q, q_pe, latent, k_pe)]
    assert relative_error(y, dense_reference.dense_mla(*wide, visible, SCALE)) < BOUND[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_sparse", [False, True])
def test_expanded_mla(device: str, rng: torch.Generator, dtype: torch.dtype, is_sparse: bool) -> None:
    from v32.kernels.dense_mla import triton as kernel

    queries, keys, heads = 21, 37, 3
    shapes = ((queries, heads, 24), (queries, heads, 8), (keys, heads, 24), (keys, 8), (keys, heads, 20))
    tensors = [normal(rng, device, dtype, *shape) for shape in shapes]
    visible = torch.arange(keys - queries + 1, keys + 1, device=device)
    indices = None
    if is_sparse:
        indices = torch.stack([torch.randperm(int(v), generator=rng)[:5] for v in visible]).to(device)
        indices[3, 2:] = -1
    y = kernel.expanded_mla(*tensors, visible, SCALE, indices)
    wide = [t.double() for t in tensors]
    assert relative_error(y, dense_reference.expanded_mla(*wide, visible, SCALE, indices)) < BOUND[dtype]
