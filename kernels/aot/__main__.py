"""`python -m v32.kernels.aot`: the table of all kernels, and exit status 1 if one of them must not ship."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

if os.environ.pop("TRITON_INTERPRET", None):
    print("TRITON_INTERPRET is ignored: this command compiles", file=sys.stderr)

from v32.kernels.aot.cases import matrix, operations
from v32.kernels.aot.machine_code import MachineCode, compiled
from v32.kernels.triton_support.gpu import GPUS

SMALL_OPERATIONS = ["act_quant", "swiglu", "kv_append"]
SMALL_ARCHS = ["sm_80", "sm_90"]
_DEFAULT_CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "v32" / "aot"


def main() -> int:
    options = _options()
    names = options.op or (SMALL_OPERATIONS if options.small else list(operations()))
    archs = options.arch or (SMALL_ARCHS if options.small else list(GPUS))
    num_faulty = total = 0
    if not options.json:
        print(
            "| operation | kernel | GPU | registers | spilled | shared KB | matrix instruction | occupancy | verdict |"
        )
        print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for operation, arch, launch in matrix(names, archs):
        code = compiled(launch, arch, options.cache, options.limit)
        faults = [code] if isinstance(code, str) else code.faults(GPUS[arch])
        total, num_faulty = total + 1, num_faulty + bool(faults)
        where = {"operation": operation, "kernel": launch.name, "config": launch.config, "arch": arch}
        if options.json:
            print(
                json.dumps({**where, **({} if isinstance(code, str) else asdict(code)), "faults": faults}), flush=True
            )
        else:
            print(_row(where, code, faults), flush=True)
    print(f"{total} kernels compiled, {num_faulty} must not ship", file=sys.stderr)
    return int(num_faulty > 0)


def _row(where: dict[str, str], code: MachineCode | str, faults: list[str]) -> str:
    columns = [where["operation"], f"{where['kernel']} {where['config']}", where["arch"]]
    if isinstance(code, str):
        columns += [""] * 5
    else:
        occupancy = f"{code.occupancy(GPUS[where['arch']]):.0%}"
        shared = f"{code.shared_bytes / 1024:.1f}" + (f" + tmem {code.tmem_columns}" if code.tmem_columns else "")
        columns += [str(code.registers), str(code.spilled_bytes), shared, code.matrix_instruction, occupancy]
    return f"| {' | '.join([*columns, '; '.join(faults) or 'ok'])} |"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m v32.kernels.aot", description=__doc__)
    parser.add_argument("--op", nargs="+", choices=list(operations()), help="operations (default: all)")
    parser.add_argument("--arch", nargs="+", choices=list(GPUS), help="architectures (default: all)")
    parser.add_argument("--small", action="store_true", help="the few that run with every commit")
    parser.add_argument("--cache", type=Path, default=_DEFAULT_CACHE, help="results by source hash (%(default)s)")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds for one kernel (%(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object a kernel")
    return parser.parse_args()


sys.exit(main())
