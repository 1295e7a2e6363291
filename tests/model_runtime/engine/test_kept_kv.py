"""A generator's KV in a file: another process goes on without prefilling, and no file can make it say anything else."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from v32.model_runtime.engine import Engine
from v32.model_runtime.generators.generator import Finished, KeepsKV, SamplingParams
from v32.model_runtime.generators.local import LocalGenerator
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM

if TYPE_CHECKING:
    from conftest import Oracle

GREEDY = SamplingParams(temperature=0, max_new_tokens=8)


async def say(generator: LocalGenerator, prompt: list[int]) -> tuple[list[int], Finished]:
    *tokens, finished = [event async for event in generator.generate(prompt, GREEDY)]
    assert isinstance(finished, Finished)
    return [token.id for token in tokens], finished  # type: ignore[union-attr]


def opened(model: DeepseekV32ForCausalLM, fingerprint: str | None = "weights") -> LocalGenerator:
    return LocalGenerator(Engine(model), fingerprint=fingerprint)


def test_another_generator_goes_on_without_prefill(
    model: DeepseekV32ForCausalLM, oracle: Oracle, tmp_path: Path
) -> None:
    prompt, path = oracle.random_ids(150), tmp_path / "session.kv"

    async def use() -> None:
        first = opened(model)
        assert isinstance(first, KeepsKV)
        answer, _ = await say(first, prompt)
        settled = [*prompt[:120], *answer]
        first.prefill_ahead("session", settled)
        assert await first.save_kv(path, "session", settled, "encoder") == len(settled)  # what was wanted came first
        await first.aclose()
        assert await first.save_kv(path, "session", settled, "encoder") == 0
        second = opened(model)
        second.load_kv(path, "encoder")
        tokens, finished = await say(second, [*settled, 4, 5])
        assert finished.cached_tokens == len(settled)
        assert tokens == oracle.generate([*settled, 4, 5], GREEDY)
        await second.aclose()

    anyio.run(use)


@pytest.mark.parametrize(
    ("fingerprint", "encoder", "reason"), [("others", "encoder", "fingerprint"), ("weights", "new", "encoder")]
)
def test_a_foreign_file_is_logged_and_computed_again(
    model: DeepseekV32ForCausalLM,
    oracle: Oracle,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    fingerprint: str,
    encoder: str,
    reason: str,
) -> None:
    prompt, path = oracle.random_ids(100), tmp_path / "session.kv"

    async def use() -> None:
        first = opened(model)
        await say(first, prompt)
        await first.save_kv(path, None, prompt, "encoder")
        await first.aclose()
        second = opened(model, fingerprint)
        with caplog.at_level(logging.WARNING):
            second.load_kv(path, encoder)
            tokens, finished = await say(second, prompt)
        assert f"was computed with {reason}" in caplog.text
        assert finished.cached_tokens == 0
        assert tokens == oracle.generate(prompt, GREEDY)
        await second.aclose()

    anyio.run(use)


def test_without_a_fingerprint_nothing_is_kept(model: DeepseekV32ForCausalLM, tmp_path: Path) -> None:
    async def use() -> None:
        generator = opened(model, None)
        with pytest.raises(ValueError, match="without a fingerprint of the weights"):
            await generator.save_kv(tmp_path / "a.kv", None, [1, 2], "encoder")
        await generator.aclose()

    anyio.run(use)


def test_a_file_makes_room_by_forgetting_and_is_refused_where_that_is_not_enough(
    model: DeepseekV32ForCausalLM, oracle: Oracle, tmp_path: Path
) -> None:
    page_bytes = 64 * 3 * (20 + 8 + 16) * 4
    large, small = Engine(model), Engine(model, kv_budget_bytes=4 * page_bytes)
    for length in (200, 400):
        ids = oracle.random_ids(length)
        large.prefill_ahead(None, ids)
        while large.has_work_ahead:
            large.step_ahead()
        assert large.save_kv(tmp_path / f"{length}.kv", ids, {}) == length
    small.prefill_ahead(None, oracle.random_ids(250, seed=1))
    while small.has_work_ahead:
        small.step_ahead()
    assert small.load_kv(tmp_path / "200.kv", {}) == 200
    small.check_integrity()
    assert small.prefix_cache.match_length([*oracle.random_ids(200), 0]) == 200
    with pytest.raises(Exception, match="holds 400 tokens, for which the KV budget has no room"):
        small.load_kv(tmp_path / "400.kv", {})
    small.check_integrity()
