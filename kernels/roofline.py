"""The least time that each operation of the 671B model can take on a GPU: bytes over bandwidth, or FLOPs over peak.

On paper: nothing here is measured. `python -m v32.kernels.roofline` prints the table, `--write` puts it into a README.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

HIDDEN, INNER, EXPERTS, TOP_K, VOCAB = 7168, 2048, 256, 8, 129280
HEADS, LATENT, ROPE, NOPE, VALUE, Q_RANK = 128, 512, 64, 128, 128, 1536
INDEX_HEADS, INDEX_WIDTH, INDEX_TOPK = 64, 128, 2048
RECORD, INDEX_RECORD = 656, 132  # bytes of a token in the FP8 cache


class Accelerator(NamedTuple):
    """Published peaks, dense."""

    name: str
    bandwidth: float  # bytes/s
    bf16: float  # FLOP/s of bfloat16 and float16 products
    fp8: float | None  # FLOP/s of e4m3 products summed in float32; None: the kernels decode to float16


ACCELERATORS = (
    Accelerator("H100", 3.35e12, 989e12, 1979e12),
    Accelerator("H200", 4.8e12, 989e12, 1979e12),
    Accelerator("B200", 8.0e12, 2250e12, 4500e12),
    Accelerator("A100", 2.039e12, 312e12, None),
    Accelerator("RTX 4090", 1.008e12, 165e12, 330e12),
    Accelerator("MI300X", 5.3e12, 1307e12, None),
)


class Work(NamedTuple):
    """One call of an operation in one layer: what must be read and written once, and multiplied."""

    operation: str
    case: str
    bytes: float
    flops: float = 0
    is_fp8: bool = False


class Floor(NamedTuple):
    work: Work
    accelerator: Accelerator
    seconds: float
    bound: Literal["memory", "compute"]


def roofline_table(
    accelerators: Sequence[Accelerator] = ACCELERATORS, *, batch: int = 16, chunk: int = 4096, context: int = 32768
) -> list[Floor]:
    """The floor of every operation: `batch` sequences that decode, and a prefill chunk, after `context` tokens."""
    works = model_work(batch, context, decode=True) + model_work(chunk, context, decode=False)
    return [_floor(work, accelerator) for work in works for accelerator in accelerators]


def _floor(work: Work, accelerator: Accelerator) -> Floor:
    peak = accelerator.fp8 if work.is_fp8 and accelerator.fp8 else accelerator.bf16
    memory, compute = work.bytes / accelerator.bandwidth, work.flops / peak
    return Floor(work, accelerator, max(memory, compute), "memory" if memory >= compute else "compute")


def model_work(tokens: int, context: int, *, decode: bool) -> list[Work]:
    """Every operation once for `tokens` new tokens: one of each of so many sequences (decode), or a chunk of one."""
    t, case = tokens, f"decode {tokens}" if decode else f"prefill {tokens}"
    sequences, selected = (t if decode else 1), min(INDEX_TOPK, context)
    routed = EXPERTS * (1 - (1 - TOP_K / EXPERTS) ** t)  # experts that at least one token chose
    expert = 3 * HIDDEN * INNER
    works = [
        Work("rms_norm", case, 4 * t * HIDDEN),
        Work("act_quant", case, 3 * t * HIDDEN + 4 * t * HIDDEN / 128),
        _product(case, t, HIDDEN, Q_RANK, "q_a_proj"),
        _product(case, t, Q_RANK, HEADS * (NOPE + ROPE), "q_b_proj"),
        _product(case, t, HEADS * VALUE, HIDDEN, "o_proj"),
        Work("rope", case, 4 * t * HEADS * ROPE),
        Work("hadamard", case, 4 * t * INDEX_HEADS * INDEX_WIDTH),
        Work("kv_append", case, t * (2 * (LATENT + ROPE) + RECORD)),
        Work(
            "index_score",
            case,
            t * INDEX_HEADS * (INDEX_WIDTH + 4) + sequences * context * INDEX_RECORD + 4 * t * context,
            2 * t * context * INDEX_HEADS * INDEX_WIDTH,
            is_fp8=True,
        ),
        Work("topk_select", case, 4 * t * context + 8 * t * selected),
        Work(
            "sparse_mla",
            case,
            t * (selected * (RECORD + 8) if decode else 8 * selected)
            + (0 if decode else context * RECORD)
            + 2 * t * HEADS * (2 * LATENT + ROPE),
            2 * t * HEADS * selected * (2 * LATENT + ROPE),
        ),
        Work("moe_route", case, t * (4 * EXPERTS + 12 * TOP_K)),
        Work(
            "moe_experts",
            case,
            routed * expert + t * HIDDEN * (1 + 4),
            2 * t * TOP_K * expert,
            is_fp8=True,
        ),
        Work("swiglu", case, 6 * t * TOP_K * INNER),
    ]
    if decode:
        return [
            *works,
            Work("dense_mla", f"{case}, 2048 visible", t * 2048 * 2 * (LATENT + ROPE), 2 * t * HEADS * 2048 * 1088),
            Work("float_gemm head", case, 2 * VOCAB * HIDDEN + t * (2 * HIDDEN + 4 * VOCAB), 2 * t * VOCAB * HIDDEN),
            Work("token_mask", case, t * VOCAB * (8 + 1 / 8)),
            Work("sample", case, 4 * t * VOCAB),
        ]
    width = NOPE + ROPE + VALUE
    return [*works, Work("expanded_mla", f"{case}, causal", 4 * t * HEADS * width, t * t * HEADS * width)]


def _product(case: str, tokens: int, width: int, rows: int, name: str) -> Work:
    weights = rows * width * (1 + 4 / 128**2)
    activations = tokens * (width * (1 + 4 / 128) + 2 * rows)
    return Work(f"fp8_gemm {name}", case, weights + activations, 2 * tokens * width * rows, is_fp8=True)


def markdown(floors: Sequence[Floor]) -> str:
    """Microseconds, one row an operation and case, one column an accelerator; * where compute is the bound."""
    names = list(dict.fromkeys(floor.accelerator.name for floor in floors))
    lines = [
        f"| operation | case | MB | GFLOP | {' | '.join(f'{name} µs' for name in names)} |",
        "|---" * (4 + len(names)) + "|",
    ]
    rows: dict[Work, list[str]] = {}
    for floor in floors:
        mark = "*" if floor.bound == "compute" else ""
        rows.setdefault(floor.work, []).append(f"{_short(floor.seconds * 1e6)}{mark}")
    for work, cells in rows.items():
        left = [work.operation, work.case, _short(work.bytes / 1e6), _short(work.flops / 1e9)]
        lines.append(f"| {' | '.join([*left, *cells])} |")
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def write_into(path: Path, table: str) -> None:
    """Replace what stands between the two roofline comments of a Markdown file."""
    text, number = re.subn(
        r"(<!-- roofline -->\n).*?(\n<!-- /roofline -->)", lambda m: m[1] + table + m[2], path.read_text(), flags=re.S
    )
    if number != 1:
        raise ValueError(f"{path} has no <!-- roofline --> ... <!-- /roofline --> to fill")
    path.write_text(text)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m v32.kernels.roofline", description=__doc__)
    parser.add_argument("--batch", type=int, default=16, help="sequences that decode (%(default)s)")
    parser.add_argument("--chunk", type=int, default=4096, help="tokens of a prefill chunk (%(default)s)")
    parser.add_argument("--context", type=int, default=32768, help="tokens before them (%(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object a floor")
    parser.add_argument("--write", type=Path, metavar="README", help="put the table into this file")
    options = parser.parse_args(arguments)
    floors = roofline_table(batch=options.batch, chunk=options.chunk, context=options.context)
    if options.write:
        write_into(options.write, markdown(floors))
    elif options.json:
        for floor in floors:
            named = {"accelerator": floor.accelerator.name, "seconds": floor.seconds, "bound": floor.bound}
            print(json.dumps({**floor.work._asdict(), **named}))
    else:
        print(markdown(floors))


if __name__ == "__main__":
    main()
