"""What a plan says: it agrees with arithmetic done by hand, changes as it should, and refuses what it cannot know."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from v32.agent.cli import main
from v32.model_runtime.errors import CheckpointError
from v32.model_runtime.planning import PlanError, Turn, as_text, make_plan
from v32.model_runtime.planning.hardware import GPUS, Device, Rates, gpu
from v32.model_runtime.planning.plan import Model, Plan, plan_for

PUBLISHED = Model.of("deepseek-v3.2")
RATES = Rates(100e9, 1e12, 0.0, None, "given")


def on(name: str, count: int, **options: int) -> Plan:
    return plan_for(PUBLISHED, *gpu(name, count), **options)  # type: ignore[arg-type]


def test_eight_h200_hold_the_published_model_and_eight_h100_do_not() -> None:
    assert on("h200", 8).fits
    assert on("h200", 8).max_context == 163840
    assert not on("h100", 8).fits
    assert on("h100", 8).max_context == 0
    assert on("h200", 8).active_parameters == pytest.approx(37.5e9, rel=0.01)
    assert on("h200", 8).weight_bytes == pytest.approx(86.0e9 + 1.85e9 * 7 / 8, rel=0.02)  # the embedding is whole


def test_decoding_on_a_cpu_reads_the_active_weights_once_a_token() -> None:
    plan = plan_for(PUBLISHED, Device("cpu", "cpu", 1, 1 << 40), RATES, context=1024)
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


def test_one_gpu_holds_the_published_model_with_its_experts_in_host_memory() -> None:
    """The published model's experts have 609 GiB, all else and a short context 25 GiB."""
    change = make_plan("deepseek-v3.2", gpu_name="h100").change
    size = re.match(r'expert_cache="(\d+)GiB" with 609 GiB of host memory for the experts, or ', change)
    assert size is not None
    assert 40 <= int(size[1]) <= 55
    assert "expert_cache" not in make_plan("deepseek-v3.2", gpu_name="h100", count=2).change


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
        ({"gpu_name": "h200", "context": 200000}, "a context of 200000 is outside of the model's 1..163840"),
        ({"gpu_name": "h200", "turn": Turn(0, 1)}, "a turn of 0 new and 1 written tokens"),
        ({"gpu_name": "h200", "batch_tokens": 0}, "max_batch_tokens is 0"),
        ({"gpu_name": "h200", "disk_bytes_per_second": 0.0}, "a disk speed of 0 GB/s"),
    ],
)
def test_a_wrong_question_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError) as error:
        make_plan("deepseek-v3.2", **options)  # type: ignore[arg-type]
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
    [(["--count", "2"], "say --gpu NAME"), (["--gpu", "h200", "--turn", "many"], "--turn is 'many'")],
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
    assert all(record["rates"][name] > 0 for name in ("weight_bytes_per_second", "flops_per_second", "layer_seconds"))
    assert record["load_seconds"] > 0
