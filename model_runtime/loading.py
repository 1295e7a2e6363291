"""From a source as a user writes it to a chat model: a checkpoint in this process, or a server elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from v32.model_runtime.chat import ChatModel
from v32.model_runtime.checkpoint.source import resolve_source
from v32.model_runtime.checkpoint.variant import VariantChoice, detect_variant
from v32.model_runtime.config import Numerics
from v32.model_runtime.encoding import ChatTokenizer
from v32.model_runtime.errors import CheckpointError
from v32.model_runtime.generators.generator import SamplingParams
from v32.model_runtime.messages import ThinkingMode
from v32.model_runtime.sizes import parse_bytes

if TYPE_CHECKING:
    import torch

    from v32.model_runtime.generators import LocalGenerator, SGLangGenerator, VLLMGenerator

_SERVER = re.compile(r"(vllm|sglang)\+(https?://.+)")
_DTYPES = ("auto", "float32", "bfloat16", "float16")


class _Weights(NamedTuple):
    """Where weights go, and in which form; see `load_model`."""

    device: str
    dtype: str
    numerics: Numerics
    dequantize: bool | Literal["auto"]
    expert_cache: int | None = None


def load_model(
    source: str | Path | None = None,
    *,
    variant: VariantChoice = "auto",
    device: str = "auto",
    dtype: str = "auto",
    numerics: Numerics = "float",
    dequantize: bool | Literal["auto"] = "auto",
    thinking_mode: ThinkingMode = "thinking",
    grammar: bool = True,
    expert_cache: int | str | None = None,
    memory_budget: int | str | None = None,
    kv_budget_bytes: int | None = None,
    max_context: int | None = None,
    max_batch_tokens: int = 512,
    settle_ahead: bool = True,
    speculative: bool | int = False,
    kv_dtype: str = "auto",
    keep_kv: bool = False,
    tensor_parallel: int = 1,
    tokenizer: str | Path | None = None,
    server_model: str | None = None,
    server_headers: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ChatModel:
    """A chat model, ready to complete.

    `source`: a folder in Hugging Face layout, the id of a repository in the local Hugging Face cache,
    `vllm+http://host:port` or `sglang+http://host:port`, or nothing for the tiny checkpoint that comes with v32.
    `variant`: what the model is, where its name and files do not say. `dtype`: of activations and of weights that are
    not FP8; "auto" is float32 on a CPU, else bfloat16. `numerics`: "deepseek" rounds activations, latents and index
    heads to FP8 as the published kernels do, "float" does not. `dequantize`: whether FP8 weights become `dtype` while
    they are loaded; "auto": where that is the faster form and fits. `expert_cache`: routed experts lie in host memory,
    and those used last in so many bytes of the device, such as "8GiB". `memory_budget`: bytes, or "4GiB", that weights,
    keys, values and the work of a pass may take of a CPU's memory beside the program itself; routed experts for which
    there is no room are read from the files when tokens choose them. `grammar`: whether calls are held to the schemas
    of the offered tools while they are sampled. `tokenizer`: the folder of a tokenizer.json, needed for a server;
    `server_model`: which of its models. `settle_ahead`: whether idle time is used to prefill what the next user message
    builds on. `speculative`: whether the checkpoint's MTP layer drafts tokens (how many a step: 1 unless a number is
    given), which never changes what is generated. `kv_dtype`: of cached keys and values, the model's unless said; "fp8"
    is V3.2's record of 656 bytes a token and layer, which PyTorch reads, slower than the native step. `keep_kv`:
    whether a journaled session leaves what it computed beside its journal when it is closed, so that resuming it need
    not prefill. `tensor_parallel`: over so many processes of this machine, which are started and ended with the model,
    the weights are cut; under torchrun they are cut over its processes, of which the others have to call
    `v32.model_runtime.ranks.follow`. These are for a checkpoint in this process. Raises `CheckpointError` or
    `GeneratorError` with the remedy.
    """
    if thinking_mode not in ("thinking", "chat"):
        raise ValueError(f"thinking_mode is {thinking_mode!r}; choose thinking or chat")
    if numerics not in get_args(Numerics):
        raise ValueError(f"numerics is {numerics!r}; choose {' or '.join(get_args(Numerics))}")
    num_ranks = _num_ranks(tensor_parallel)
    server = _SERVER.fullmatch(str(source))
    if server:
        if num_ranks > 1:
            raise ValueError(f"{source} computes elsewhere; run this in one process")
        from v32.model_runtime.grammar.server import ServerConstraintCompiler

        folder = _tokenizer_folder(tokenizer, str(source))
        chat_tokenizer = ChatTokenizer.from_dir(folder)
        remote = _connect(server[1], server[2], server_model, server_headers, max_context)
        return ChatModel(
            remote,
            chat_tokenizer,
            variant=detect_variant(remote.model, variant),
            thinking_mode=thinking_mode,
            grammar=grammar,
            compiler=ServerConstraintCompiler(chat_tokenizer),
            sampling=sampling_defaults(folder),
        )
    folder = resolve_source(source)
    _check_options_of_ranks(num_ranks, numerics, dequantize, speculative, keep_kv, expert_cache)
    if memory_budget is not None:
        _check_options_of_budget(num_ranks, device, dequantize, speculative, expert_cache)
    # What is cheap to check comes first: the weights may take minutes.
    check_drafts(folder, int(speculative))
    _check_context(folder, max_context)
    chat_tokenizer, vocab_size = _checked_tokenizer(folder, Path(tokenizer) if tokenizer else folder)
    recognised, sampling = detect_variant(folder, variant), sampling_defaults(folder)
    weights = _Weights(device, dtype, numerics, dequantize, None if expert_cache is None else parse_bytes(expert_cache))
    local = _load(
        folder,
        weights,
        kv_budget_bytes,
        max_context,
        max_batch_tokens,
        int(speculative),
        kv_dtype,
        progress,
        num_ranks,
        memory_budget,
    )
    return ChatModel(
        local,
        chat_tokenizer,
        variant=recognised,
        thinking_mode=thinking_mode,
        grammar=grammar,
        sampling=sampling,
        vocab_size=vocab_size,
        settle_ahead=settle_ahead,
        keep_kv=keep_kv,
    )


def _num_ranks(tensor_parallel: int) -> int:
    """Over how many processes the weights are cut."""
    from v32.model_runtime.model.sharding import Shard

    if tensor_parallel < 1:
        raise ValueError(f"tensor_parallel is {tensor_parallel}; it must be 1 or more")
    launched = Shard.launched().num_ranks
    if launched > 1 and tensor_parallel not in (1, launched):
        raise ValueError(f"torchrun has started {launched} processes; leave tensor_parallel={tensor_parallel} out")
    return max(launched, tensor_parallel)


def _check_options_of_ranks(
    count: int,
    numerics: str,
    dequantize: bool | str,
    speculative: bool | int,
    keep_kv: bool,
    expert_cache: int | str | None,
) -> None:
    others = {
        "numerics": numerics == "float",
        "dequantize": dequantize == "auto",
        "speculative": not speculative,
        "keep_kv": not keep_kv,
        "expert_cache": expert_cache is None,
    }
    if count > 1 and (wrong := [name for name, is_default in others.items() if not is_default]):
        raise ValueError(f"{count} processes work without {wrong[0]}= only; leave it out or load in one process")


def _check_options_of_budget(
    num_ranks: int, device: str, dequantize: bool | str, speculative: bool | int, expert_cache: int | str | None
) -> None:
    others = {
        "tensor_parallel": num_ranks == 1,
        "device": _device(device).type == "cpu",
        "dequantize": dequantize is not True,
        "expert_cache": expert_cache is None,
        "speculative": not speculative,
    }
    if wrong := [name for name, is_default in others.items() if not is_default]:
        raise ValueError(f"memory_budget= works on one CPU process, with weights as stored; leave out {wrong[0]}=")


def check_drafts(folder: Path, count: int) -> None:
    """Raises ValueError unless a checkpoint can draft so many tokens a step."""
    from v32.model_runtime.config import DeepseekV32Config
    from v32.model_runtime.engine.speculative import MOST_DRAFTS

    if not 0 <= count <= MOST_DRAFTS:
        raise ValueError(f"speculative is {count}; choose how many tokens are drafted a step, 0 to {MOST_DRAFTS}")
    if count and not DeepseekV32Config.from_dir(folder).num_nextn_predict_layers:
        raise ValueError(f"{folder} has no MTP layer to draft tokens with; leave speculative= out")


def _check_context(folder: Path, max_context: int | None) -> None:
    from v32.model_runtime.config import DeepseekV32Config
    from v32.model_runtime.generators.generator import context_within

    positions = DeepseekV32Config.from_dir(folder).max_position_embeddings
    context_within({"what the model was made for": positions}, max_context)


def sampling_defaults(folder: Path) -> SamplingParams:
    """The sampling that generation_config.json recommends; where it says nothing, the model card's."""
    file = folder / "generation_config.json"
    if not file.is_file():
        return SamplingParams()
    defaults = SamplingParams()
    try:
        recommended: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if recommended.get("do_sample") is False:
            return SamplingParams(temperature=0.0)
        temperature = float(recommended.get("temperature", defaults.temperature))
        return SamplingParams(temperature, float(recommended.get("top_p", defaults.top_p)))
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is no generation config: {error}; repair or delete it") from error


def _checked_tokenizer(folder: Path, tokenizer_folder: Path) -> tuple[ChatTokenizer, int]:
    """The tokenizer of a checkpoint, and the size of the model's vocabulary, which holds all of its ids."""
    from v32.model_runtime.checkpoint import check_tokenizer
    from v32.model_runtime.config import DeepseekV32Config

    config = DeepseekV32Config.from_dir(folder)
    tokenizer = ChatTokenizer.from_dir(tokenizer_folder)
    check_tokenizer(config, tokenizer.vocab_size, str(tokenizer_folder / "tokenizer.json"))
    return tokenizer, config.vocab_size


def _load(
    folder: Path,
    weights: _Weights,
    kv_budget_bytes: int | None,
    max_context: int | None,
    max_batch_tokens: int,
    num_drafts: int,
    kv_dtype: str,
    progress: Callable[[int, int], None] | None,
    num_ranks: int,
    memory_budget: int | str | None,
) -> LocalGenerator:
    import torch

    from v32.model_runtime.engine import Engine
    from v32.model_runtime.generators import LocalGenerator

    place, dtype = _device(weights.device), _dtype(weights.dtype)
    bounds: dict[str, Any] = {"max_context": max_context, "max_batch_tokens": max_batch_tokens}
    if num_ranks > 1:
        from v32.model_runtime.ranks import load_shards, parallel_engine

        dtypes = {"dtype": dtype, "kv_dtype": _kv_dtype(kv_dtype)}
        engine = parallel_engine(
            load_shards(folder, num_ranks, device=str(place), **dtypes),
            kv_dtype=dtypes["kv_dtype"],
            kv_budget_bytes=kv_budget_bytes or _kv_budget(place),
            **bounds,
        )
    elif memory_budget is not None:
        from v32.model_runtime.memory_budget import load_within

        engine = load_within(
            folder,
            parse_bytes(memory_budget),
            dtype=dtype or torch.float32,
            kv_dtype=_kv_dtype(kv_dtype),
            numerics=weights.numerics,
            kv_budget_bytes=kv_budget_bytes,
            progress=progress,
            **bounds,
        )
    else:
        from v32.model_runtime.checkpoint import load_checkpoint

        model = load_checkpoint(
            folder,
            device=place,
            dtype=dtype,
            dequantize=weights.dequantize,
            numerics=weights.numerics,
            expert_cache_bytes=weights.expert_cache,
            mtp=num_drafts > 0,
            progress=progress,
        )
        engine = Engine(
            model,
            kv_budget_bytes=kv_budget_bytes or _kv_budget(place),
            num_drafts=num_drafts,
            kv_dtype=_kv_dtype(kv_dtype),
            **bounds,
        )
    return LocalGenerator(engine, name=folder.name, fingerprint=_fingerprint(folder))


def _fingerprint(folder: Path) -> str:
    """The manifest's, which loading has checked; without one it is computed from the headers."""
    from v32.model_runtime.checkpoint.index import CheckpointIndex
    from v32.model_runtime.checkpoint.manifest import Manifest

    manifest = Manifest.read(folder)
    return manifest.fingerprint if manifest and manifest.fingerprint else CheckpointIndex.from_dir(folder).fingerprint


def _connect(
    kind: str, url: str, model: str | None, headers: Mapping[str, str] | None, max_context: int | None
) -> VLLMGenerator | SGLangGenerator:
    from v32.model_runtime.generators import SGLangGenerator, VLLMGenerator
    from v32.model_runtime.generators.server import Server

    server = Server(url, headers=headers)
    if kind == "vllm":
        return VLLMGenerator.connect(server, model, max_context)
    return SGLangGenerator.connect(server, model, max_context)


def _tokenizer_folder(tokenizer: str | Path | None, source: str) -> Path:
    if tokenizer is None:
        raise CheckpointError(
            f"{source} takes and gives token ids; give tokenizer=, the folder with the model's tokenizer.json"
        )
    return Path(tokenizer) if Path(tokenizer).is_dir() else resolve_source(tokenizer)


def _device(device: str) -> torch.device:
    import torch

    if device != "auto":
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _dtype(dtype: str) -> torch.dtype | None:
    import torch

    if dtype not in _DTYPES:
        raise ValueError(f"dtype is {dtype!r}; choose from {', '.join(_DTYPES)}")
    chosen: torch.dtype | None = None if dtype == "auto" else getattr(torch, dtype)
    return chosen


def _kv_dtype(dtype: str) -> torch.dtype | None:
    from v32.model_runtime.cache.pages import FP8_RECORDS

    return FP8_RECORDS if dtype == "fp8" else _dtype(dtype)


def _kv_budget(device: torch.device) -> int:
    """On a GPU most of what the weights have left, else 1 GiB."""
    import torch

    if device.type != "cuda":
        return 1 << 30
    free, _ = torch.cuda.mem_get_info(device)
    return int(free * 0.8)
