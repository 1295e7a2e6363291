"""Pages of FP8 records: the same tokens however a prompt is cut, shared, saved and restored; close to exact pages."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.model_runtime.engine.conftest import CONFIG, generate_together
from v32.model_runtime.cache.pages import FP8_RECORDS, KVLayout
from v32.model_runtime.config import DeepseekV32Config
from v32.model_runtime.engine import Engine
from v32.model_runtime.errors import KVFileError
from v32.model_runtime.generators.generator import SamplingParams
from v32.model_runtime.model.mla import MLA
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM

GREEDY = SamplingParams(temperature=0.0, max_new_tokens=12)
generate = partial(generate_together, params=GREEDY)
PROMPTS = [torch.randint(0, 300, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (3, 50, 150)]


@pytest.fixture(scope="module")
def wide() -> DeepseekV32ForCausalLM:
    """A model whose latents fill one block of FP8."""
    torch.manual_seed(0)
    model = DeepseekV32ForCausalLM(dataclasses.replace(CONFIG, kv_lora_rank=128)).requires_grad_(False).eval()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        tensor.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.1)
    return model


def engine_of(
    model: DeepseekV32ForCausalLM, kv_dtype: torch.dtype = FP8_RECORDS, max_batch_tokens: int = 512, pages: int = 64
) -> Engine:
    budget = pages * KVLayout.of_model(model.config, kv_dtype).page_bytes
    return Engine(model, kv_dtype=kv_dtype, kv_budget_bytes=budget, max_batch_tokens=max_batch_tokens, max_sequences=8)


def test_a_record_has_the_published_size() -> None:
    layout = KVLayout.of_model(DeepseekV32Config(), FP8_RECORDS)
    assert layout.record_width == 656
    assert layout.token_bytes == 61 * (656 + 2 * 128)
    with pytest.raises(ValueError, match="kv_lora_rank in multiples of 128, got 20"):
        KVLayout.of_model(CONFIG, FP8_RECORDS).page_bytes  # noqa: B018


def test_what_is_read_differs_by_the_rounding_of_e4m3(wide: DeepseekV32ForCausalLM) -> None:
    """Half a unit of three mantissa bits, 1/16, or of the smallest code, 2^-10 scales; a scale is at most 2/448 of the
    largest value of its block. Later layers see the rounded context, so the first one is compared."""
    from v32.kernels.kv_append import read_fp8_records

    engines = [engine_of(wide, dtype) for dtype in (torch.float32, FP8_RECORDS)]
    for engine in engines:
        engine.model.model.uses_native = False
        generate(engine, PROMPTS[2:])
    exact, fp8 = (engine.pool.layers[0].records[: len(PROMPTS[2])] for engine in engines)
    latent, k_pe = read_fp8_records(fp8, 128)
    largest = exact[:, :128].abs().amax(1, keepdim=True)
    assert bool(((latent - exact[:, :128]).abs() <= exact[:, :128].abs() / 16 + largest * 2 / 448 * 2**-10).all())
    assert torch.equal(k_pe, exact[:, 128:].bfloat16())


def test_a_model_that_rounds_latents_itself_gets_bitwise_what_bfloat16_pages_give(wide: DeepseekV32ForCausalLM) -> None:
    params = dataclasses.replace(GREEDY, logprobs=True)
    layers = [module for module in wide.modules() if isinstance(module, MLA)]
    for mla in layers:
        mla.rounds_latent = True
    try:
        events = []
        for dtype in (torch.bfloat16, FP8_RECORDS):
            engine = engine_of(wide, dtype)
            for prompt in PROMPTS:
                engine.add(prompt, params)
            said = []
            while engine.has_work:
                said += [event.event for event in engine.step()]
            events.append([(event.id, event.logprob) for event in said if hasattr(event, "logprob")])
    finally:
        for mla in layers:
            mla.rounds_latent = False
    assert len(events[0]) == 3 * GREEDY.max_new_tokens
    assert events[0] == events[1]


@pytest.mark.slow
def test_cutting_batching_sharing_and_eviction_change_no_token(wide: DeepseekV32ForCausalLM) -> None:
    alone = [generate(engine_of(wide), [prompt])[0] for prompt in PROMPTS]
    assert generate(engine_of(wide), PROMPTS) == alone
    assert generate(engine_of(wide, max_batch_tokens=13), PROMPTS) == alone
    small = engine_of(wide, pages=4)
    for _ in range(2):
        assert generate(small, PROMPTS) == alone
    shared = engine_of(wide)
    longer = [PROMPTS[2] + [5], PROMPTS[2][:100] + [9] * 20]
    generate(shared, PROMPTS[2:])
    assert [generate(shared, [p])[0] for p in longer] == [generate(engine_of(wide), [p])[0] for p in longer]


def test_saved_pages_are_restored_and_are_of_their_dtype(wide: DeepseekV32ForCausalLM, tmp_path: Path) -> None:
    engine, file = engine_of(wide), tmp_path / "kv"
    (said,) = generate(engine, PROMPTS[2:])
    history = PROMPTS[2] + said
    assert engine.save_kv(file, history, {"weights": "these"}) >= len(PROMPTS[2])
    restored = engine_of(wide)
    assert restored.load_kv(file, {"weights": "these"}) >= len(PROMPTS[2])
    sequence = restored.add([*history, 7], GREEDY)
    while restored.has_work:
        restored.step()
    assert sequence.num_cached_tokens is not None
    assert sequence.num_cached_tokens >= len(PROMPTS[2])
    assert sequence.token_ids[len(history) + 1 :] == generate(engine, [[*history, 7]])[0]
    with pytest.raises(KVFileError, match="kv_dtype 'fp8', this is 'float32'"):
        engine_of(wide, torch.float32).load_kv(file, {"weights": "these"})
