"""The model without the agent: token ids in, logits or token ids out. For comparison with other implementations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from v32.model_runtime.checkpoint.loader import FLOATS, load_checkpoint
from v32.model_runtime.checkpoint.source import resolve_source
from v32.model_runtime.engine import Engine
from v32.model_runtime.errors import GeneratorError
from v32.model_runtime.generators.generator import SamplingParams
from v32.model_runtime.model.attention import FullAttention
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM

_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOATS}


def score(
    model_dir: str | Path | None,
    token_ids: Sequence[int],
    device: str = "cpu",
    dtype: str = "float32",
    tensor_parallel: int = 1,
) -> Tensor:
    """Logits float32 [T, vocab_size]: row t is the distribution of the token after `token_ids[: t + 1]`.

    The whole sequence passes the model once, without a cache. `model_dir` is a source as `load_model` takes it.
    `tensor_parallel`: over so many processes.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"dtype is {dtype!r}; choose from {', '.join(_DTYPES)}")
    if tensor_parallel > 1:
        from v32.model_runtime.ranks import close_ranks, load_shards

        parallel = load_shards(resolve_source(model_dir), tensor_parallel, device=device, dtype=_DTYPES[dtype])
        try:
            return full_logits(parallel, token_ids)
        finally:
            close_ranks(parallel)
    model = load_checkpoint(resolve_source(model_dir), device=device, dtype=_DTYPES[dtype])
    return full_logits(model, token_ids)


@torch.inference_mode()
def full_logits(model: DeepseekV32ForCausalLM, token_ids: Sequence[int]) -> Tensor:
    """`score` for a model that is loaded already."""
    ids = torch.tensor(_checked_ids(token_ids, model.config.vocab_size), device=model.lm_head.weight.device)
    positions = torch.arange(len(ids), device=ids.device)
    return model.compute_logits(model(ids, positions, FullAttention([len(ids)], model.config.index_topk)))


def _checked_ids(token_ids: Sequence[int], vocab_size: int) -> list[int]:
    """Plain numbers, whether they came in a list, an array or a tensor."""
    token_ids = [int(token) for token in token_ids]
    if not token_ids:
        raise ValueError("token_ids is empty; give at least one token, such as the begin-of-sentence id")
    if wrong := [token for token in token_ids if not 0 <= token < vocab_size]:
        raise ValueError(f"token id {wrong[0]} is outside the vocabulary of {vocab_size} tokens")
    return token_ids


def generate_ids(
    model_dir: str | Path | None,
    token_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int | None = None,
) -> list[int]:
    """The continuation of `token_ids` by the engine: `max_new_tokens` ids, or fewer up to the end-of-sentence id.

    Temperature 0 is greedy; above, tokens are drawn from the whole distribution, the same ones for the same seed.
    """
    model = load_checkpoint(resolve_source(model_dir), dtype=torch.float32)
    params = SamplingParams(
        temperature=temperature,
        top_p=1.0,
        seed=seed,
        max_new_tokens=max_new_tokens,
        stop_token_ids=(model.config.eos_token_id,),
    )
    engine = Engine(model)
    sequence = engine.add(_checked_ids(token_ids, model.config.vocab_size), params)
    while engine.has_work:
        engine.step()
    if isinstance(sequence.last_event, GeneratorError):
        raise sequence.last_event
    return sequence.token_ids[len(token_ids) :]
