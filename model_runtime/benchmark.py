"""How fast a checkpoint runs here, and beside transformers on the same weights: measurements, one object each.

Each engine works in a process of its own, so that its peak memory is its own. Before any speed is measured the
logits of a short prompt have to agree with those of the plain PyTorch model.

    python -m v32.model_runtime.benchmark ENGINE FOLDER [OPTIONS]     one engine, one JSON object a line
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch

from v32.model_runtime.config import DeepseekV32Config
from v32.model_runtime.errors import ModelRuntimeError

if TYPE_CHECKING:
    from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM

EngineName = Literal["v32", "transformers"]
TOLERANCE = 2e-3
"""Largest difference of logits, relative to the largest logit."""

CONFIGS = {
    "s600m": DeepseekV32Config(
        vocab_size=32768,
        hidden_size=1024,
        intermediate_size=2816,
        moe_intermediate_size=512,
        num_hidden_layers=12,
        num_nextn_predict_layers=0,
        first_k_dense_replace=3,
        num_attention_heads=16,
        q_lora_rank=384,
        kv_lora_rank=256,
        qk_nope_head_dim=64,
        qk_rope_head_dim=32,
        v_head_dim=64,
        index_n_heads=8,
        index_head_dim=64,
        index_topk=256,
        n_routed_experts=32,
        num_experts_per_tok=4,
        n_group=1,
        topk_group=1,
        rope_scaling=None,
        max_position_embeddings=131072,
    )
}
"""Architectures that `make_checkpoint` fills with random weights; s600m: 598M parameters, about 166M of them active."""


class BenchmarkError(ModelRuntimeError):
    """A measurement could not be made, or its check failed: no figure is given."""


USER, REASONING, SPOKEN, RESULT = 16, 8, 8, 24
"""Tokens of each part of a session's turn."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured: tokens of a prefill, contexts of decoding, sequences of a batch (0: none), turns of a session
    (0: none)."""

    prefills: tuple[int, ...] = (512, 2048)
    contexts: tuple[int, ...] = (128, 1024)
    batch: int = 16
    turns: int = 20
    decode_tokens: int = 24
    memory_budget: int | None = None
    """Bytes that v32 may take; experts beyond it are read from the files."""
    num_drafts: int = 0
    """Tokens that v32's MTP layer drafts a step."""


@dataclass(frozen=True, slots=True)
class Measurement:
    engine: str
    name: str  # load, prefill, decode, batch, session, memory; v32 alone: bandwidth, active, share
    size: int  # prompt tokens, context, sequences, turns; 0 where there is none
    value: float
    unit: str


def make_checkpoint(name: str, folder: Path) -> None:
    """Write random FP8 weights of one of `CONFIGS` to a folder."""
    from v32.model_runtime.checkpoint import write_checkpoint
    from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM

    if name not in CONFIGS:
        raise ValueError(f"there is no configuration {name!r}; known are {', '.join(CONFIGS)}")
    with torch.device("meta"):
        model = DeepseekV32ForCausalLM(CONFIGS[name])
    generator = torch.Generator().manual_seed(1)
    state = {key: _random(key, tensor.shape, generator) for key, tensor in model.state_dict().items()}
    write_checkpoint(folder, CONFIGS[name], state, precision="fp8")


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:
        return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
    return torch.randn(shape, generator=generator, dtype=torch.float32).mul_(shape[-1] ** -0.5).bfloat16()


def compare(folder: Path, plan: Plan, *, engines: Sequence[EngineName], rounds: int = 1) -> Iterator[Measurement]:
    """Medians over the rounds, in which the engines take turns. Raises `BenchmarkError` where logits disagree."""
    values: dict[tuple[str, str, int, str], list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="v32-bench-") as scratch:
        floats = _dequantized(folder, Path(scratch)) if "transformers" in engines else folder
        for _ in range(rounds):
            for engine in engines:
                for m in _in_process(engine, folder if engine == "v32" else floats, plan):
                    values.setdefault((m.engine, m.name, m.size, m.unit), []).append(m.value)
    for (engine_name, name, size, unit), found in values.items():
        yield Measurement(engine_name, name, size, statistics.median(found), unit)


def _dequantized(folder: Path, scratch: Path) -> Path:
    """The same weights without FP8, which transformers reads on a GPU only; e4m3 times a power of two is exact in
    bfloat16."""
    from v32.model_runtime.checkpoint import load_checkpoint, write_checkpoint

    model = load_checkpoint(folder, dequantize=True, dtype=torch.bfloat16)
    write_checkpoint(scratch / "float", model.config, model.state_dict(), precision="bfloat16")
    return scratch / "float"


def _in_process(engine: EngineName, folder: Path, plan: Plan) -> list[Measurement]:
    command = [sys.executable, "-m", "v32.model_runtime.benchmark", engine, str(folder), json.dumps(asdict(plan))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"{engine} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return [Measurement(**json.loads(line)) for line in done.stdout.splitlines()]


class Runner(Protocol):
    """One engine with a loaded model."""

    def check(self, ids: list[int]) -> None:
        """Raise `BenchmarkError` unless the logits of these ids are right."""

    def prefill(self, ids: list[int]) -> Any:
        """Compute a prompt; what `decode` continues."""

    def decode(self, state: Any, num_tokens: int) -> int:
        """Greedy tokens, so many at least; how many."""

    def forget(self, state: Any) -> None:
        """Free what `prefill` returned, and all that is cached."""

    def complete(self, ids: list[int], num_tokens: int) -> list[int]:
        """The greedy tokens after a prompt; what an engine keeps for the next prompt by itself, it keeps."""

    def batch(self, prompts: list[list[int]], num_tokens: int) -> float | None:
        """Seconds of decoding after the prompts; None if this engine is not measured so."""


class V32Runner:
    def __init__(self, folder: Path, plan: Plan) -> None:
        from v32.model_runtime.checkpoint import load_checkpoint
        from v32.model_runtime.engine import Engine
        from v32.model_runtime.memory_budget import load_within

        if plan.memory_budget is None:
            model = load_checkpoint(folder, mtp=plan.num_drafts > 0)
            self.engine = Engine(model, kv_budget_bytes=4 << 30, num_drafts=plan.num_drafts)
        else:
            self.engine = load_within(folder, plan.memory_budget)
        self.model = self.engine.model

    @torch.inference_mode()
    def check(self, ids: list[int]) -> None:
        if self.model.model.native is None:
            return  # PyTorch is what computes
        found = self._logits(ids)
        self.model.model.uses_native = False
        check_close(found, self._logits(ids))
        self.model.model.uses_native = True

    def _logits(self, ids: list[int]) -> torch.Tensor:
        from v32.model_runtime.cache import BlockTable
        from v32.model_runtime.engine.paged_attention import PagedAttention, Segment

        table = BlockTable(self.engine.pool)
        table.reserve(len(ids))
        attention = PagedAttention(self.engine.pool, [Segment(table, 0, len(ids))], self.model.config.index_topk)
        logits = self.model.compute_logits(self.model(torch.tensor(ids), torch.arange(len(ids)), attention))
        table.close()
        return logits

    def prefill(self, ids: list[int]) -> Any:
        from v32.model_runtime.generators.generator import SamplingParams

        sequence = self.engine.add(ids, SamplingParams(temperature=0.0, max_new_tokens=4096))
        while sequence.num_new_tokens == 0:
            self.engine.step()
        return sequence

    def decode(self, state: Any, num_tokens: int) -> int:
        before = state.num_new_tokens
        while state.num_new_tokens < before + num_tokens:
            self.engine.step()
        return int(state.num_new_tokens - before)

    def forget(self, state: Any) -> None:
        self.engine.cancel(state)
        self.engine.reset_prefix_cache()

    def complete(self, ids: list[int], num_tokens: int) -> list[int]:
        from v32.model_runtime.generators.generator import SamplingParams

        sequence = self.engine.add(ids, SamplingParams(temperature=0.0, max_new_tokens=num_tokens))
        while not sequence.is_finished:
            self.engine.step()
        return sequence.token_ids[len(ids) :]

    def batch(self, prompts: list[list[int]], num_tokens: int) -> float | None:
        sequences = [self.prefill(prompt) for prompt in prompts]
        started = time.perf_counter()
        self.decode(sequences[0], num_tokens)
        seconds = time.perf_counter() - started
        for sequence in sequences:
            self.forget(sequence)
        return seconds


class TransformersRunner:
    def __init__(self, folder: Path) -> None:
        import transformers

        # Routing has to be computed as for one token at a time.
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def check(self, ids: list[int]) -> None:
        from v32.model_runtime.checkpoint import load_checkpoint
        from v32.model_runtime.scoring import full_logits

        ours = full_logits(load_checkpoint(Path(self.model.config.name_or_path)), ids)
        check_close(self.model(torch.tensor([ids])).logits[0].float(), ours)

    @torch.inference_mode()
    def prefill(self, ids: list[int]) -> Any:
        cache = None
        for start in range(0, len(ids), 512):  # faster than at once
            out = self.model(torch.tensor([ids[start : start + 512]]), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
        return cache, out.logits[:, -1:].argmax(-1)

    def decode(self, state: Any, num_tokens: int) -> int:
        cache, ids = state
        return len(self._continue(cache, ids, num_tokens))

    def forget(self, state: Any) -> None:
        del state

    def complete(self, ids: list[int], num_tokens: int) -> list[int]:
        cache, first = self.prefill(ids)
        return [int(first), *self._continue(cache, first, num_tokens - 1)]

    @torch.inference_mode()
    def _continue(self, cache: Any, ids: torch.Tensor, num_tokens: int) -> list[int]:
        found = []
        for _ in range(num_tokens):
            ids = self.model(ids, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
            found.append(int(ids))
        return found

    def batch(self, prompts: list[list[int]], num_tokens: int) -> float | None:
        return None


def check_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Raise `BenchmarkError` unless logits agree within TOLERANCE."""
    error = float((found - expected).abs().max() / expected.abs().max())
    if not error < TOLERANCE:
        raise BenchmarkError(f"logits differ from those of the reference by {error:.1e} of the largest: no speed given")


def measure(engine: EngineName, folder: Path, plan: Plan) -> Iterator[Measurement]:
    """All of the plan with one engine, in this process."""
    import resource

    started = time.perf_counter()
    runner: Runner = V32Runner(folder, plan) if engine == "v32" else TransformersRunner(folder)
    yield Measurement(engine, "load", 0, time.perf_counter() - started, "s")
    vocab_size = DeepseekV32Config.from_dir(folder).vocab_size

    def prompt(length: int, seed: int = 0) -> list[int]:
        generator = torch.Generator().manual_seed(1000 * length + seed)
        return torch.randint(10, vocab_size, (length,), generator=generator).tolist()

    runner.check(prompt(100))
    runner.forget(runner.prefill(prompt(32)))
    for length in plan.prefills:
        started = time.perf_counter()
        state = runner.prefill(prompt(length))
        seconds = time.perf_counter() - started
        runner.forget(state)
        yield Measurement(engine, "prefill", length, length / seconds, "tokens/s")
    decoded = {}
    for context in plan.contexts:
        sequence = runner.prefill(prompt(context))
        runner.decode(sequence, 2)
        num_tokens = max(plan.decode_tokens if engine == "v32" else plan.decode_tokens // 6, 2)
        started = time.perf_counter()
        num_decoded = runner.decode(sequence, num_tokens)
        seconds = time.perf_counter() - started
        runner.forget(sequence)
        decoded[context] = num_decoded / seconds
        yield Measurement(engine, "decode", context, decoded[context], "tokens/s")
    if plan.batch:
        prompts = [prompt(128, seed) for seed in range(plan.batch)]
        together = runner.batch(prompts, plan.decode_tokens)
        if together is not None:
            yield Measurement(engine, "batch", plan.batch, plan.batch * plan.decode_tokens / together, "tokens/s")
    if plan.turns:
        yield Measurement(engine, "session", plan.turns, _session(runner, plan.turns, prompt), "s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    yield Measurement(engine, "memory", 0, peak, "GiB")
    if isinstance(runner, V32Runner) and runner.model.model.native is not None and not plan.num_drafts:
        yield from _memory_floor(engine, runner.model, decoded)


def _session(runner: Runner, turns: int, words: Callable[[int, int], list[int]]) -> float:
    """Seconds of an agent's conversation: each turn a message, a call, its result, an answer. Every completion gets the
    whole prompt, as an agent sends it; a new message drops the reasoning of the turn before."""
    history: list[int] = []
    started = time.perf_counter()
    for turn in range(turns):
        said = [*history, *words(USER, turn)]
        history = list(said)
        for result in (words(RESULT, turn), []):
            produced = runner.complete(said, REASONING + SPOKEN)
            said += [*produced, *result]
            history += [*produced[REASONING:], *result]
    return time.perf_counter() - started


def _memory_floor(
    engine: EngineName, model: DeepseekV32ForCausalLM, decoded: dict[int, float]
) -> Iterator[Measurement]:
    """How near decoding comes to reading each active weight once, at the speed that memory is read here."""
    from v32.kernels.benchmark import read_bandwidth

    bandwidth, active = read_bandwidth(), active_bytes(model) / 1e9
    yield Measurement(engine, "bandwidth", 0, bandwidth, "GB/s")
    yield Measurement(engine, "active", 0, 1e3 * active, "MB a token")
    for context, speed in decoded.items():
        yield Measurement(engine, "share", context, 100 * speed * active / bandwidth, "% of bandwidth")


def active_bytes(model: DeepseekV32ForCausalLM) -> float:
    """Bytes of weights that one token reads."""
    config, chosen = model.config, model.config.num_experts_per_tok / model.config.n_routed_experts
    return sum(
        parameter.nbytes * (chosen if ".experts." in name else 1)
        for name, parameter in model.named_parameters()
        if "embed_tokens" not in name or config.tie_word_embeddings
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=("v32", "transformers"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("plan", nargs="?", default="{}", help="a Plan as JSON")
    arguments = parser.parse_args()
    fields: dict[str, Any] = json.loads(arguments.plan)
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    for measurement in measure(arguments.engine, arguments.folder, Plan(**fields)):
        print(json.dumps(asdict(measurement)), flush=True)


if __name__ == "__main__":
    main()
