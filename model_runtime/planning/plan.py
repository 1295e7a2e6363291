"""Before loading: does a model fit, where does each part go, how long is the context, how long will a turn take.

A checkpoint (or the published configuration) and a device enter, a `Plan` leaves. Only headers are read.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from v32.model_runtime.cache.pages import FP8_RECORDS, PAGE_SIZE, KVLayout
from v32.model_runtime.checkpoint.index import CheckpointIndex
from v32.model_runtime.checkpoint.source import resolve_source
from v32.model_runtime.config import DeepseekV32Config
from v32.model_runtime.errors import CheckpointError
from v32.model_runtime.model.sharding import Shard
from v32.model_runtime.planning import memory, speed
from v32.model_runtime.planning.errors import PlanError
from v32.model_runtime.planning.hardware import GPUS, Device, Rates, gpu, known_rates, this_machine
from v32.model_runtime.planning.memory import PartMemory, WeightForm, Weights
from v32.model_runtime.planning.speed import ExpertPlaces
from v32.model_runtime.planning.tensors import TensorGroup, grouped, published_tensors, stored_tensors, total_bytes

if TYPE_CHECKING:
    from v32.model_runtime.memory_budget import MemoryShares

PUBLISHED = ("deepseek-v3.2", "deepseek-v3.2-speciale", "deepseek-v3.2-exp")
"""Names that stand for the published 671B configuration; the three have the same tensors."""
BATCH_TOKENS = 512
"""`max_batch_tokens` of `load_model`."""
ASSUMED_DISK = 2e9
HOST_BYTES_PER_SECOND = 25e9
"""From page-locked memory to a GPU over 16 lanes of PCIe 4; an assumption."""
_KV_SHARE = {"cpu": 0.9, "cuda": 0.8}
"""Of the memory that weights leave. On a GPU it is what `load_model` takes; on a CPU it has to be asked for."""
_CPU_KV_BUDGET = 1 << 30
_SMALLEST_CONTEXT = 4096
_CONTEXTS = (1024, 8192, 32768, 131072)
_COUNTS = (1, 2, 4, 8, 16)


class Turn(NamedTuple):
    """One completion of an agent: what is new since the last one, what it writes, behind `context` positions."""

    new_tokens: int = 2000
    written_tokens: int = 400


class Speed(NamedTuple):
    """Tokens a second at a context length."""

    context: int
    prefill: float
    decode: float
    limit: str
    """What decoding waits for."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Bytes are of one device; all devices hold the same or less."""

    model: str
    device: Device
    fits: bool
    num_parameters: int
    active_parameters: int
    checkpoint_bytes: int
    """The sum of all tensors in the files."""
    parts: tuple[PartMemory, ...]
    mapped_bytes: int
    """Of the weights, what stays mapped from the files."""
    weight_form: str
    kv_dtype: torch.dtype
    kv_token_bytes: int
    context: int
    """The context that is planned for."""
    kv_bytes: int
    workspace_bytes: int
    process_bytes: int
    places: ExpertPlaces | None
    """Of routed experts that are not all in memory."""
    max_context: int
    """The longest context that the memory allows; 0 where the weights alone do not fit."""
    load_seconds: float
    disk_bytes_per_second: float
    disk_origin: str
    speeds: tuple[Speed, ...]
    turn: Turn
    turn_seconds: float
    rates: Rates
    change: str
    """The cheapest change that would help."""
    assumptions: tuple[str, ...]

    @property
    def weight_bytes(self) -> int:
        return sum(part.loaded_bytes for part in self.parts)

    @property
    def needed_bytes(self) -> int:
        """The peak with the planned context."""
        return self.weight_bytes + self.kv_bytes + self.workspace_bytes + self.process_bytes

    def to_record(self) -> dict[str, Any]:
        """For JSON."""
        apart = ("device", "parts", "kv_dtype", "places", "speeds", "turn", "rates")
        names = [*(name for name in self.__dataclass_fields__ if name not in apart), "weight_bytes", "needed_bytes"]
        device = {"name": self.device.name, "kind": self.device.kind, "count": self.device.count}
        return {name: getattr(self, name) for name in names} | {
            "device": device | {"memory_bytes": self.device.memory_bytes},
            "parts": [part._asdict() | {"place": self.place(part.name)} for part in self.parts],
            "kv_dtype": KVLayout(0, 0, 0, 0, self.kv_dtype).dtype_name,
            "places": self.places._asdict() if self.places else None,
            "speeds": [speed._asdict() for speed in self.speeds],
            "turn": self.turn._asdict(),
            "rates": {name: getattr(self.rates, name) for name in Rates.__dataclass_fields__},
        }

    def place(self, part: str) -> str:
        """Where a part of the weights lies."""
        if part == "draft layers":
            return "on disk, not loaded"
        where = "memory" if self.device.kind == "cpu" else "each GPU"
        if part == "routed experts" and self.places:
            source = "files" if self.device.kind == "cpu" else "host memory"
            return f"{self.places.number:,} of them, the others in {source}"
        if self.device.count == 1:
            return where if self.device.kind == "cpu" else "the GPU"
        if part == "routed experts":
            return f"{where}: its share of the experts"
        is_cut = part in ("attention", "dense feed-forward", "shared experts", "output head")
        return f"{where}: its share" if is_cut else f"{where}: whole"


class Model(NamedTuple):
    """What is planned for; a published configuration has no files."""

    name: str
    config: DeepseekV32Config
    groups: list[TensorGroup]
    files: list[Path]

    @classmethod
    def of(cls, source: str | Path | None) -> Model:
        """A folder, a cached repository, the embedded checkpoint (None), or one of `PUBLISHED`."""
        if isinstance(source, str) and source.lower() in PUBLISHED and not Path(source).exists():
            return _published(source.lower())
        try:
            folder = resolve_source(source)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; or plan {PUBLISHED[0]} for the published model without files") from None
        index = CheckpointIndex.from_dir(folder)
        files = sorted({info.file for info in index.values()})
        config = DeepseekV32Config.from_dir(folder)
        return cls(str(folder), config, grouped(stored_tensors(index), config), files)


@functools.cache
def _published(name: str) -> Model:
    """Its 100,000 tensors take half a second to list."""
    config = DeepseekV32Config()
    return Model(name, config, grouped(published_tensors(config), config), [])


def make_plan(
    source: str | Path | None = None,
    *,
    gpu_name: str | None = None,
    count: int = 1,
    context: int | None = None,
    turn: Turn = Turn(),  # noqa: B008 (immutable)
    batch_tokens: int = BATCH_TOKENS,
    disk_bytes_per_second: float | None = None,
    kv_dtype: torch.dtype | None = None,
    memory_budget: int | None = None,
    expert_cache: int | None = None,
) -> Plan:
    """Plan for GPUs by name, or for this machine, which is measured for a few seconds.

    `context`: positions to plan for (default: 32,768, or what the model has). `kv_dtype`, `memory_budget` and
    `expert_cache` as `load_model` takes them, in bytes. Raises `PlanError` for an unknown GPU, `CheckpointError` for a
    folder that cannot be read, `MemoryBudgetError` for a budget in which nothing fits.
    """
    model = Model.of(source)
    _check(model.config, context, turn, batch_tokens, disk_bytes_per_second, kv_dtype)
    device, rates = _device(model, gpu_name, count)
    disk, origin = _disk(model.files, gpu_name is None, disk_bytes_per_second)
    shares = places = None
    if memory_budget is not None:
        shares = _shares(model, device, memory_budget, context, batch_tokens, kv_dtype)
        device = replace(device, memory_bytes=min(device.memory_bytes, memory_budget + memory.process_bytes("cpu")))
        batch_tokens = shares.max_batch_tokens
    if expert_cache is not None:
        places = _places_on_gpu(model, device, expert_cache)
    made = plan_for(
        *(model, device, rates),
        context=context,
        turn=turn,
        batch_tokens=batch_tokens,
        disk=(disk, origin),
        kv_dtype=kv_dtype,
        places=places,
        shares=shares,
    )
    return replace(made, change=_cheapest_change(model, made, batch_tokens))


def plan_for(
    model: Model,
    device: Device,
    rates: Rates,
    *,
    context: int | None = None,
    turn: Turn = Turn(),  # noqa: B008 (immutable)
    batch_tokens: int = BATCH_TOKENS,
    disk: tuple[float, str] = (ASSUMED_DISK, "assumed"),
    kv_dtype: torch.dtype | None = None,
    places: ExpertPlaces | None = None,
    shares: MemoryShares | None = None,
) -> Plan:
    """The plan for a device whose rates are known: arithmetic only, nothing is measured."""
    config, ranks = model.config, device.count
    shard = Shard(ranks - 1, ranks)
    shard.check(config)
    form = WeightForm.of(model.groups, config, device.kind)
    held = memory.weights(model.groups, config, form, shard, device.kind)
    whole = held if ranks == 1 else memory.weights(model.groups, config, form, kind=device.kind)
    kv_dtype = kv_dtype or form.dtype
    planned = min(context or 32768, config.max_position_embeddings)
    workspace = memory.workspace_bytes(config, form, batch_tokens, planned, ranks)
    if form.keeps_fp8 and not form.is_native:
        workspace += memory.absorbed_bytes(config, form.dtype) // ranks
    process = memory.process_bytes(device.kind)
    if shares is not None and shares.expert_places is not None:
        pages = min(-(-planned // PAGE_SIZE), shares.num_pages)
        places = ExpertPlaces(shares.num_places(pages), shares.place_bytes, disk[0])
    present = held if places is None else held.with_experts(places.number * places.expert_bytes)
    free = device.memory_bytes - present.loaded_bytes - workspace - process
    longest = _longest_context(config, kv_dtype, free, device.kind)
    if shares is not None:
        workspace = shares.workspace_bytes
        longest = min(shares.num_pages * PAGE_SIZE, config.max_position_embeddings)
    if context is None:
        planned = max(min(planned, longest), min(_SMALLEST_CONTEXT, config.max_position_embeddings))
    timing = _Timing(config, held, rates, ranks, kv_dtype, batch_tokens, places)
    return Plan(
        model=model.name,
        device=device,
        fits=longest >= planned,
        num_parameters=sum(part.num_values for part in whole.parts),
        active_parameters=speed.active_parameters(config, whole),
        checkpoint_bytes=total_bytes(model.groups),
        parts=present.parts,
        mapped_bytes=held.mapped_bytes,
        weight_form=_form_words(form),
        kv_dtype=kv_dtype,
        kv_token_bytes=memory.kv_token_bytes(config, kv_dtype),
        context=planned,
        kv_bytes=memory.kv_bytes(config, kv_dtype, planned),
        workspace_bytes=workspace,
        process_bytes=process,
        places=places,
        max_context=longest,
        load_seconds=_load_seconds(held, rates, disk[0], ranks),
        disk_bytes_per_second=disk[0],
        disk_origin=disk[1],
        speeds=tuple(timing.speed(length) for length in _contexts(max(longest, planned))),
        turn=turn,
        turn_seconds=timing.turn_seconds(turn, planned),
        rates=rates,
        change="",
        assumptions=tuple(_assumptions(device, kv_dtype, longest, config, rates, places)),
    )


class _Timing(NamedTuple):
    config: DeepseekV32Config
    weights: Weights
    rates: Rates
    ranks: int
    kv_dtype: torch.dtype
    chunk: int
    places: ExpertPlaces | None

    def speed(self, context: int) -> Speed:
        new = min(self.chunk, context)
        step = speed.step_cost(
            self.config, self.weights, self.rates, speed.Workload(1, context), ranks=self.ranks, kv_dtype=self.kv_dtype,
            places=self.places,
        )  # fmt: skip
        return Speed(context, new / self.prefill(new, context), 1 / step.seconds, step.limit)

    def prefill(self, new_tokens: int, context: int) -> float:
        return speed.prefill_seconds(
            self.config, self.weights, self.rates, new_tokens, context, chunk=self.chunk, ranks=self.ranks,
            kv_dtype=self.kv_dtype, places=self.places,
        )  # fmt: skip

    def turn_seconds(self, turn: Turn, context: int) -> float:
        """The turn ends where the planned context ends."""
        new = min(turn.new_tokens, context)
        return self.prefill(new, context) + turn.written_tokens / self.speed(context).decode


def _check(
    config: DeepseekV32Config,
    context: int | None,
    turn: Turn,
    batch_tokens: int,
    disk: float | None,
    kv_dtype: torch.dtype | None,
) -> None:
    if context is not None and not 1 <= context <= config.max_position_embeddings:
        raise PlanError(f"a context of {context} is outside of the model's 1..{config.max_position_embeddings}")
    if turn.new_tokens < 1 or turn.written_tokens < 1:
        raise PlanError(
            f"a turn of {turn.new_tokens} new and {turn.written_tokens} written tokens; both must be 1 or more"
        )
    if batch_tokens < 1:
        raise PlanError(f"max_batch_tokens is {batch_tokens}; it must be 1 or more")
    if disk is not None and not 0 < disk < math.inf:
        raise PlanError(f"a disk speed of {disk / 1e9:g} GB/s; it must be a number above 0")
    try:
        memory.kv_token_bytes(config, kv_dtype or torch.float32)
    except ValueError as error:
        raise PlanError(str(error)) from None


def _shares(
    model: Model, device: Device, budget: int, context: int | None, batch_tokens: int, kv_dtype: torch.dtype | None
) -> MemoryShares:
    from v32.model_runtime.memory_budget import divide

    if device.kind != "cpu" or not model.files:
        raise PlanError("a memory budget is planned for a checkpoint's files on a CPU: say its folder, without --gpu")
    return divide(
        Path(model.name),
        budget,
        kv_dtype=kv_dtype or torch.float32,
        max_batch_tokens=batch_tokens,
        max_context=context,
    )


def _places_on_gpu(model: Model, device: Device, expert_cache: int) -> ExpertPlaces:
    if device.kind != "cuda" or device.count > 1:
        raise PlanError("an expert cache is planned for one GPU: say --gpu NAME without --count")
    form = WeightForm.of(model.groups, model.config, device.kind)
    routed = memory.weights(model.groups, model.config, form, kind=device.kind).part("routed experts").loaded_bytes
    experts = model.config.n_routed_experts * (model.config.num_hidden_layers - model.config.first_k_dense_replace)
    number = expert_cache * experts // routed
    if number < 1:
        raise PlanError(f"an expert cache of {expert_cache} bytes holds no expert of {routed // experts} bytes")
    return ExpertPlaces(min(number, experts), routed // experts, HOST_BYTES_PER_SECOND)


def _device(model: Model, gpu_name: str | None, count: int) -> tuple[Device, Rates]:
    if gpu_name is not None:
        return gpu(gpu_name, count)
    device = this_machine()
    if device.kind == "cpu":
        from v32.model_runtime.planning.measure import cpu_rates

        return device, cpu_rates(WeightForm.of(model.groups, model.config, "cpu"))
    rates = known_rates(device)
    if rates is None:
        raise PlanError(f"no figures for the GPU {device.name!r}; plan with --gpu and one of {', '.join(GPUS)}")
    return device, rates


def _disk(files: Sequence[Path], is_here: bool, given: float | None) -> tuple[float, str]:
    if given is not None:
        return given, "given"
    if not files and not is_here:
        return ASSUMED_DISK, "assumed; say --disk"
    from v32.model_runtime.planning.measure import disk_bytes_per_second

    return disk_bytes_per_second(files), "measured here"


def _longest_context(config: DeepseekV32Config, dtype: torch.dtype, free_bytes: int, kind: str) -> int:
    pages = int(free_bytes * _KV_SHARE[kind]) // (memory.kv_token_bytes(config, dtype) * PAGE_SIZE)
    return max(0, min(config.max_position_embeddings, pages * PAGE_SIZE))


def _contexts(longest: int) -> list[int]:
    shorter = [length for length in _CONTEXTS if length < longest]
    return [*shorter, longest]


def _load_seconds(held: Weights, rates: Rates, disk: float, ranks: int) -> float:
    """All ranks read at the same time from one disk."""
    converting = held.converted_values / rates.converted_per_second if rates.converted_per_second else 0.0
    return held.read_bytes * ranks / disk + converting


def _form_words(form: WeightForm) -> str:
    dtype = str(form.dtype).removeprefix("torch.")
    if form.is_native:
        return "stored, norms float32"
    if form.keeps_fp8:
        return f"FP8 as stored, the rest {dtype}"
    return f"{dtype}, from FP8" if form.has_fp8 else dtype


def _assumptions(
    device: Device,
    kv_dtype: torch.dtype,
    longest: int,
    config: DeepseekV32Config,
    rates: Rates,
    places: ExpertPlaces | None,
) -> Iterator[str]:
    yield f"speeds: {rates.origin}"
    if places:
        source = "read from files that no cache holds" if device.kind == "cpu" else "copied from host memory, assumed"
        yield f"experts are chosen evenly; missing ones are {source}: {places.bytes_per_second / 1e9:.2g} GB/s"
    if device.kind == "cuda":
        yield "v32 has not been run on a GPU: memory is counted, speeds are estimates"
    if device.count > 1:
        yield "tensor parallel, every GPU with the whole KV cache; v32 runs that over CPU processes only so far"
    default = _CPU_KV_BUDGET // memory.kv_token_bytes(config, kv_dtype) // PAGE_SIZE * PAGE_SIZE
    if device.kind == "cpu" and default < longest:
        yield f"load_model's cache of 1 GiB holds {default:,} tokens; more with kv_budget_bytes="
    if kv_dtype == FP8_RECORDS and device.kind == "cpu":
        yield "FP8 records are read by PyTorch, slower than what is predicted"
    elif kv_dtype != FP8_RECORDS and config.kv_lora_rank % 128 == 0:
        yield f'kv_dtype="fp8" keeps a token in {memory.kv_token_bytes(config, FP8_RECORDS):,} bytes'
    if device.kind == "cpu" and not places:
        yield 'memory_budget="4GiB" keeps routed experts for which there is no room in their files'


def _cheapest_change(model: Model, made: Plan, batch_tokens: int) -> str:
    if not made.fits:
        return _what_fits(model, made)
    candidates = _changes(model, made, batch_tokens)
    for words, change in candidates:
        changed = change()
        if changed is not None and changed.fits and changed.turn_seconds < 0.85 * made.turn_seconds:
            return f"{words}: a turn takes {changed.turn_seconds:.3g} s instead of {made.turn_seconds:.3g} s"
    return "nothing cheap: neither larger prefill chunks nor twice the devices shorten a turn by 15%"


def _changes(model: Model, made: Plan, batch_tokens: int) -> Iterator[tuple[str, Callable[[], Plan | None]]]:
    """From the cheapest on; each is planned only if those before it do not help."""
    for chunk in (2048, 8192):
        if chunk > batch_tokens:
            yield f"max_batch_tokens={chunk}", lambda chunk=chunk: _again(model, made, batch_tokens=chunk)  # type: ignore[misc]
    if made.places and made.device.kind == "cpu":
        room = replace(made.device, memory_bytes=1 << 60)
        yield "all experts in memory", lambda: _again(model, made, device=room, batch_tokens=batch_tokens)
    if made.device.kind == "cuda":
        double = replace(made.device, count=2 * made.device.count)
        yield str(double), lambda: _again(model, made, device=double, batch_tokens=batch_tokens)


def _again(model: Model, made: Plan, *, batch_tokens: int, device: Device | None = None) -> Plan | None:
    try:
        return plan_for(
            model, device or made.device, made.rates, context=made.context, turn=made.turn, batch_tokens=batch_tokens,
            kv_dtype=made.kv_dtype, places=made.places if device is None else None,
        )  # fmt: skip
    except CheckpointError:
        return None


def _what_fits(model: Model, made: Plan) -> str:
    missing = made.needed_bytes - made.device.memory_bytes
    if made.device.kind == "cuda" and made.max_context:
        return f"plan for a context of {made.max_context:,} tokens: that fits"
    alternatives = [*_offloading(model, made), *_fitting(model, made)]
    more = f"{missing / 2**30:,.1f} GiB more memory" + ("" if made.device.count == 1 else " on every device")
    return ", or ".join([*alternatives[:2], more])


def _offloading(model: Model, made: Plan) -> Iterator[str]:
    """The experts in host memory, where one GPU holds what every token needs and some of them."""
    experts = next(part.loaded_bytes for part in made.parts if part.name == "routed experts")
    cache = int(made.kv_bytes / _KV_SHARE[made.device.kind])
    room = made.device.memory_bytes - (made.needed_bytes - experts - made.kv_bytes) - cache
    unit, name = (1 << 30, "GiB") if room >= 8 << 30 else (1 << 20, "MiB")
    if made.device.kind == "cuda" and made.device.count == 1 and made.places is None and room >= 256 << 20:
        places = _places_on_gpu(model, made.device, room // unit * unit)
        seconds = plan_for(
            model, made.device, made.rates, context=made.context, turn=made.turn, kv_dtype=made.kv_dtype, places=places
        ).turn_seconds  # fmt: skip
        yield (
            f'expert_cache="{room // unit}{name}" with {experts / 2**30:,.0f} GiB of host memory for the experts '
            f"({seconds:,.0f} s a turn)"
        )


def _fitting(model: Model, made: Plan) -> Iterator[str]:
    """GPUs on which it fits: more of the same kind first, then the least memory in all."""
    same = [made.device.name.lower()] if made.device.name.lower() in GPUS else []
    options = [(name, count) for name in same for count in _COUNTS if count > made.device.count]
    others = [(name, count) for name in GPUS for count in _COUNTS if name not in same]
    smallest_first = sorted(others, key=lambda option: (option[1] * GPUS[option[0]].memory_gb, option[1]))
    for name, count in (*options, *smallest_first):
        device, rates = gpu(name, count)
        if device.memory_bytes * count < 0.8 * made.checkpoint_bytes:
            continue
        try:
            if plan_for(model, device, rates, context=made.context, kv_dtype=made.kv_dtype).fits:
                yield str(device)
        except CheckpointError:
            continue
