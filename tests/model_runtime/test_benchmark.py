"""A benchmark measures what was asked, and gives no figure where its check fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from v32.kernels.native import library
from v32.model_runtime.benchmark import (
    CONFIGS,
    BenchmarkError,
    Plan,
    active_bytes,
    check_close,
    make_checkpoint,
    measure,
)
from v32.model_runtime.checkpoint.source import embedded_checkpoint
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM


@pytest.mark.slow
def test_every_part_of_the_plan_is_measured() -> None:
    plan = Plan(prefills=(20,), contexts=(10, 30), batch=2, turns=2, decode_tokens=3)
    found = [(m.name, m.size, m.unit) for m in measure("v32", embedded_checkpoint(), plan) if m.value > 0]
    decoding = [("decode", 10, "tokens/s"), ("decode", 30, "tokens/s"), ("batch", 2, "tokens/s")]
    whole = [("session", 2, "s"), ("memory", 0, "GiB")]
    assert found[:7] == [("load", 0, "s"), ("prefill", 20, "tokens/s"), *decoding, *whole]
    floor = [("bandwidth", 0, "GB/s"), ("active", 0, "MB a token")]
    shares = [("share", context, "% of bandwidth") for context in plan.contexts]
    assert found[7:] == ([] if library() is None else [*floor, *shares])


def test_a_token_reads_the_chosen_experts_and_no_embedding() -> None:
    with torch.device("meta"):
        model = DeepseekV32ForCausalLM(CONFIGS["s600m"])
    assert active_bytes(model) / 4 == pytest.approx(166e6, rel=0.02)


def test_wrong_logits_earn_no_speed() -> None:
    logits = torch.linspace(-20, 20, 300).view(3, 100)
    check_close(logits + 1e-3, logits)
    for wrong in (logits + 1, logits * torch.nan):
        with pytest.raises(BenchmarkError, match="no speed given"):
            check_close(wrong, logits)


def test_an_unknown_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'s1t'; known are s600m"):
        make_checkpoint("s1t", tmp_path)
