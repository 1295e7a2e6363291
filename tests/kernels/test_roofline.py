"""The roofline on paper: known totals, and the README shows what the code computes."""

from __future__ import annotations

from pathlib import Path

import pytest

from v32.kernels.roofline import ACCELERATORS, markdown, model_work, roofline_table, write_into

README = Path(__file__).parents[2] / "kernels" / "README.md"


def test_one_token_reads_nine_experts_worth_of_weights_less_the_shared_one() -> None:
    (experts,) = (work for work in model_work(1, 4096, decode=True) if work.operation == "moe_experts")
    assert experts.bytes == pytest.approx(8 * 3 * 7168 * 2048, rel=1e-3)


def test_sparse_attention_of_one_token_costs_what_the_report_of_the_kernel_says() -> None:
    (attention,) = (work for work in model_work(1, 32768, decode=True) if work.operation == "sparse_mla")
    assert attention.flops == pytest.approx(0.570e9, rel=1e-2)
    assert 2048 * 656 < attention.bytes < 1.25 * 2048 * 656


def test_a_floor_is_the_slower_of_memory_and_products() -> None:
    for floor in roofline_table():
        peak = floor.accelerator.fp8 if floor.work.is_fp8 and floor.accelerator.fp8 else floor.accelerator.bf16
        memory, compute = floor.work.bytes / floor.accelerator.bandwidth, floor.work.flops / peak
        assert floor.seconds == max(memory, compute)
        assert floor.bound == ("memory" if memory >= compute else "compute")


def test_every_operation_stands_on_every_accelerator() -> None:
    lines = markdown(roofline_table()).splitlines()
    assert all(line.count("|") == 5 + len(ACCELERATORS) for line in lines)
    assert len(lines) - 2 == len({(floor.work.operation, floor.work.case) for floor in roofline_table()})


def test_the_readme_shows_the_computed_table(tmp_path: Path) -> None:
    assert markdown(roofline_table()) in README.read_text()
    (tmp_path / "empty.md").write_text("nothing")
    with pytest.raises(ValueError, match="has no <!-- roofline -->"):
        write_into(tmp_path / "empty.md", "")
