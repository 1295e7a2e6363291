"""A plan as text for people."""

from __future__ import annotations

from collections.abc import Iterator

from v32.model_runtime.planning.plan import Plan


def as_text(plan: Plan) -> str:
    """A screen: verdict, memory by part, context, loading, speeds, the change that would help, what was assumed."""
    return "\n".join(_lines(plan))


def _lines(plan: Plan) -> Iterator[str]:
    device = plan.device
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    yield f"{plan.model} on {device}: {verdict}"
    yield (
        f"  {_count(plan.num_parameters)} parameters, {_count(plan.active_parameters)} of them for each token; "
        f"files hold {_size(plan.checkpoint_bytes)}"
    )
    each = " on each GPU" if device.count > 1 else ""
    yield ""
    yield f"memory{each}, weights as {plan.weight_form}"
    for part in plan.parts:
        yield f"  {part.name:20} {_size(part.loaded_bytes) if part.loaded_bytes else '-':>10}   {plan.place(part.name)}"
    yield f"  {'KV cache':20} {_size(plan.kv_bytes):>10}   {plan.context:,} tokens of {plan.kv_token_bytes:,} bytes"
    yield f"  {'workspace':20} {_size(plan.workspace_bytes):>10}   estimated"
    yield f"  {'program':20} {_size(plan.process_bytes):>10}"
    yield f"  {'needed':20} {_size(plan.needed_bytes):>10}   of {_size(device.memory_bytes)}"
    yield ""
    longest = f"{plan.max_context:,} tokens" if plan.max_context else "none, the weights alone do not fit"
    yield f"longest context   {longest}"
    disk = f"{plan.disk_bytes_per_second / 1e9:.2g} GB/s from disk ({plan.disk_origin})"
    yield f"loading           {_duration(plan.load_seconds)} at {disk}"
    yield f"an agent's turn   {_duration(plan.turn_seconds)}: {_turn(plan)}"
    yield ""
    yield "   context   prefill tok/s   decode tok/s   decoding waits for"
    for speed in plan.speeds:
        yield f"{speed.context:10,} {_rate(speed.prefill):>15} {_rate(speed.decode):>14}   {speed.limit}"
    yield ""
    yield f"what would help: {plan.change}"
    yield from (f"note: {words}" for words in plan.assumptions)


def _turn(plan: Plan) -> str:
    new = min(plan.turn.new_tokens, plan.context)
    return f"{new:,} new and {plan.turn.written_tokens:,} written tokens at a context of {plan.context:,}"


def _size(num_bytes: int) -> str:
    for unit, size in (("GiB", 30), ("MiB", 20)):
        if abs(num_bytes) >= 1 << size:
            return f"{num_bytes / (1 << size):,.1f} {unit}"
    return f"{num_bytes / 1024:,.1f} KiB"


def _count(number: int) -> str:
    return f"{number / 1e9:.1f}B" if number >= 1e9 else f"{number / 1e6:.1f}M"


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def _duration(seconds: float) -> str:
    if seconds >= 120:
        return f"{seconds / 60:,.1f} min"
    return f"{seconds:.3g} s"
