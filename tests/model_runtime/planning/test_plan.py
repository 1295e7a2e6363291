"""What a plan says: it agrees with arithmetic done by hand, changes as it should, and refuses what it cannot know."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.model_runtime.planning.conftest import small_config
from v32.agent.cli import main
from v32.model_runtime.cache.pages import FP8_RECORDS
from v32.model_runtime.errors import CheckpointError
from v32.model_runtime.memory_budget import divide
from v32.model_runtime.planning import PlanError, Turn, as_text, make_plan
from v32.model_runtime.planning.hardware import GPUS, Device, Rates, gpu
from v32.model_runtime.planning.memory import process_bytes
from v32.model_runtime.planning.plan import Model, Plan, plan_for

RATES = Rates(100e9, 1e12, 0.0, None, "given")


def on(name: str, count: int, **options: Any) -> Plan:
    return plan_for(Model.of("deepseek-v3.2"), *gpu(name, count), **options)


def test_eight_h200_hold_the_published_model_and_eight_h100_do_not() -> None:
    assert on("h200", 8).fits
    assert on("h200", 8).max_context == 163840
    assert not on("h100", 8).fits
    assert on("h100", 8).max_context == 0
    assert on("h200", 8).active_parameters == pytest.approx(37.5e9, rel=0.01)
    assert on("h200", 8).weight_bytes == pytest.approx(86.0e9 + 1.85e9 * 7 / 8, rel=0.02)  # the embedding is whole


def test_decoding_on_a_cpu_reads_the_active_weights_once_a_token() -> None:
    plan = plan_for(Model.of("deepseek-v3.2"), Device("cpu", "cpu", 1, 1 << 40), RATES, context=1024)
    assert 1 / plan.speeds[0].decode == pytest.approx(38.5e9 / 100e9, rel=0.06)  # float32 head and routers weigh more


def test_a_longer_context_is_slower_and_takes_more_memory() -> None:
    short, long = on("h200", 8, context=8192), on("h200", 8, context=131072)
    assert long.kv_bytes == 16 * short.kv_bytes
    assert long.turn_seconds > short.turn_seconds
    rates = [speed.decode for speed in long.speeds]
    assert rates == sorted(rates, reverse=True)


def test_what_does_not_fit_says_what_would() -> None:
    plan = make_plan("deepseek-v3.2", gpu_name="h100", count=8)
    assert plan.change.startswith("16 x H100, or ")
    assert on("h100", 16).fits
    small = make_plan("deepseek-v3.2", gpu_name="rtx4090")
    assert "GiB more memory" in small.change


def test_a_card_of_24_gb_holds_what_every_token_needs() -> None:
    change = make_plan("deepseek-v3.2", gpu_name="rtx4090").change
    size = re.match(r'expert_cache="(\d+)MiB" with 609 GiB of host memory', change)
    assert size is not None
    assert make_plan("deepseek-v3.2", gpu_name="rtx4090", context=4096, expert_cache=int(size[1]) << 20).fits


def test_one_gpu_holds_the_published_model_with_its_experts_in_host_memory() -> None:
    """The published model's experts have 609 GiB, all else and a short context 22 GiB; a token chooses 20 GB of them,
    which come at 25 GB/s where they are missing."""
    change = make_plan("deepseek-v3.2", gpu_name="h100").change
    size = re.match(
        r'expert_cache="(\d+)GiB" with 609 GiB of host memory for the experts \((\d+) s a turn\), or ', change
    )
    assert size is not None
    assert 45 <= int(size[1]) <= 55
    planned = make_plan("deepseek-v3.2", gpu_name="h100", expert_cache=int(size[1]) << 30)
    assert planned.fits
    assert planned.places is not None
    assert planned.places.number == pytest.approx(58 * 256 * int(size[1]) / 609.1, rel=0.01)
    assert 1 < planned.speeds[0].decode < 25e9 / (58 * 8 * 44.1e6) / (1 - int(size[1]) / 609)
    assert "expert_cache" not in make_plan("deepseek-v3.2", gpu_name="h100", count=2).change


def test_fp8_records_take_less_memory_and_allow_a_longer_context(write: Callable[..., Path]) -> None:
    """656 bytes and 128 index keys in bfloat16 instead of 576 + 128 values in bfloat16, in each of 61 layers."""
    plain, fp8 = on("h200", 8, context=8192), on("h200", 8, context=8192, kv_dtype=FP8_RECORDS)
    assert fp8.kv_bytes == 8192 * 61 * (656 + 256)
    assert plain.kv_bytes == 8192 * 61 * 2 * (576 + 128)
    assert on("h200", 6, kv_dtype=FP8_RECORDS).max_context >= on("h200", 6).max_context
    with pytest.raises(PlanError, match="kv_lora_rank in multiples of 128, got 32"):
        make_plan(write(small_config()), gpu_name="h200", kv_dtype=FP8_RECORDS)


def test_a_memory_budget_is_divided_as_the_loader_divides_it(write: Callable[..., Path]) -> None:
    config = small_config(moe_intermediate_size=256, hidden_size=512, n_routed_experts=64, n_group=1)
    folder = write(config, max_shard_bytes=1 << 30)
    budget = 24 << 20
    shares = divide(folder, budget, max_context=512)
    plan = plan_for(
        Model.of(folder), Device("cpu", "cpu", 1, budget + process_bytes("cpu")), RATES, context=512, shares=shares
    )
    assert plan.fits
    assert plan.places is not None
    assert plan.places.number == shares.num_places(8) < 2 * 64
    assert plan.needed_bytes <= budget + process_bytes("cpu")
    assert plan.needed_bytes == pytest.approx(budget + process_bytes("cpu"), rel=0.03)
    everything = plan_for(Model.of(folder), Device("cpu", "cpu", 1, 16 << 30), RATES, context=512)
    assert plan.turn_seconds > everything.turn_seconds
    assert "experts are chosen evenly" in as_text(plan)


def test_the_text_has_every_part_and_the_verdict() -> None:
    text = as_text(on("h200", 8))
    assert text.splitlines()[0] == "deepseek-v3.2 on 8 x H200: fits"
    for words in (
        "routed experts",
        "KV cache",
        "longest context",
        "loading",
        "an agent's turn",
        "not been run on a GPU",
    ):
        assert words in text
    assert "DOES NOT FIT" in as_text(on("rtx4090", 1))


@pytest.mark.parametrize("name", GPUS)
def test_every_gpu_can_be_planned_for(name: str) -> None:
    plan = on(name, 1)
    assert plan.fits == (plan.needed_bytes <= plan.device.memory_bytes and plan.max_context >= plan.context)
    json.dumps(plan.to_record())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpu_name": "h2000"}, "unknown GPU 'h2000'; known: a100"),
        ({"gpu_name": "h200", "count": 0}, "--count is 0"),
        ({"gpu_name": "h200", "context": 200000}, "a context of 200000 is outside of the model's 1.."),
        ({"gpu_name": "h200", "turn": Turn(0, 1)}, "a turn of 0 new and 1 written tokens"),
        ({"gpu_name": "h200", "batch_tokens": 0}, "max_batch_tokens is 0"),
        ({"gpu_name": "h200", "memory_budget": 1 << 30}, "say its folder, without --gpu"),
        ({"gpu_name": "h200", "count": 8, "expert_cache": 1 << 30}, "an expert cache is planned for one GPU"),
        ({"gpu_name": "h200", "expert_cache": 9}, "an expert cache of 9 bytes holds no expert of"),
        ({"gpu_name": "h200", "disk_bytes_per_second": 0.0}, "a disk speed of 0 GB/s"),
        ({"gpu_name": "h200", "disk_bytes_per_second": float("nan")}, "a disk speed of nan GB/s"),
    ],
)
def test_a_wrong_question_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError) as error:
        make_plan(**options)  # type: ignore[arg-type]
    assert message in str(error.value)


def test_more_ranks_than_heads_are_refused() -> None:
    with pytest.raises(CheckpointError, match="300 ranks cannot share num_attention_heads 128"):
        make_plan("deepseek-v3.2", gpu_name="h200", count=300)


def test_an_unreadable_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    assert main(["plan", str(tmp_path), "--gpu", "h200"]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert main(["plan", "/nowhere", "--gpu", "h200"]) == 2
    assert "or plan deepseek-v3.2 for the published model" in capsys.readouterr().err


def test_the_command_prints_text_or_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "deepseek-v3.2", "--gpu", "h200", "--count", "8", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["fits"]
    assert record["device"]["count"] == 8
    assert main(["plan", "deepseek-v3.2", "--gpu", "h100", "--count", "8"]) == 1
    assert "DOES NOT FIT" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "2"], "say --gpu NAME"),
        (["--memory-budget", "4 apples"], "--memory-budget: '4 apples' is no amount of memory"),
        (["--gpu", "h200", "--turn", "many"], "--turn is 'many'"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_this_machine_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["device"]["kind"] == "cpu"
    assert record["disk_origin"] == "measured here"
    assert all(record["rates"][name] > 0 for name in ("weight_bytes_per_second", "flops_per_second"))
    assert record["rates"]["layer_seconds"] + record["rates"]["step_seconds"] > 0
    assert record["load_seconds"] > 0
