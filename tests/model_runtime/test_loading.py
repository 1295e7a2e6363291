"""Loading: folders, cached repositories and servers become chat models; what does not fit is named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from v32.model_runtime import CheckpointError, GeneratorError, SamplingParams, ToolsNotSupportedError, load_model
from v32.model_runtime.checkpoint import VariantWarning, write_checkpoint
from v32.model_runtime.encoding import V32
from v32.model_runtime.loading import sampling_defaults
from v32.model_runtime.messages import Completion, ToolSpec

from .generators.conftest import random_model
from .generators.fake_servers import FakeServer
from .grammar.conftest import tiny_tokenizer

BOOK = ToolSpec(
    "book",
    "Book a table.",
    {
        "type": "object",
        "properties": {"day": {"enum": ["mon", "tue"]}, "seats": {"type": "integer", "minimum": 1, "maximum": 20}},
        "required": ["day", "seats"],
    },
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a tokenizer of a thousand entries."""
    folder = tmp_path_factory.mktemp("checkpoints") / "DeepSeek-V3.2-Tiny"
    tokenizer = tiny_tokenizer()
    model = random_model(tokenizer.vocab_size + 9)
    write_checkpoint(folder, model.config, model.state_dict(), precision="float32")
    (folder / "tokenizer.json").write_text(tokenizer.backend.to_str())
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(written, tmp_path / written.name))


@pytest.mark.anyio
@pytest.mark.parametrize("seed", range(3))
async def test_a_random_model_under_the_grammar_writes_valid_calls(written: Path, seed: int) -> None:
    model = load_model(written, thinking_mode="chat", device="cpu", max_context=2_000)
    transcript = model.start_transcript(tools=[BOOK])
    transcript.append_user("Book a table for three on Tuesday.")
    params = SamplingParams(seed=seed, max_new_tokens=300)
    *_, completion = [item async for item in model.complete(transcript, tool_choice="book", params=params)]
    assert isinstance(completion, Completion)
    assert completion.finish_reason == "tool_calls"
    assert completion.parsed.deviations == []
    (call,) = completion.parsed.tool_calls
    jsonschema.validate(call.arguments, dict(BOOK.parameters))
    assert completion.usage.forced_tokens > completion.usage.completion_tokens / 3
    transcript.append_completion(completion)
    await model.aclose()


def test_a_context_beyond_the_model_s_is_refused_before_weights_are_read(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="max_context is 10,000,000; what the model was made for is"):
        load_model(folder, max_context=10_000_000)


def test_what_the_files_say_is_taken_over(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"temperature": 0.6, "top_p": 0.9, "eos_token_id": 1}')
    model = load_model(folder, max_context=500)
    assert (model.sampling.temperature, model.sampling.top_p) == (0.6, 0.9)
    assert model.max_context == 500
    described = model.describe()
    assert described["name"] == folder.name
    assert described["variant"] == "v3.2"
    assert described["dtype"] == "float32"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, (1.0, 0.95)),
        ("{}", (1.0, 0.95)),
        ('{"do_sample": false}', (0.0, 0.95)),
        ('{"do_sample": true, "temperature": 0.3}', (0.3, 0.95)),
    ],
)
def test_sampling_defaults(tmp_path: Path, content: str | None, expected: tuple[float, float]) -> None:
    if content is not None:
        (tmp_path / "generation_config.json").write_text(content)
    sampling = sampling_defaults(tmp_path)
    assert (sampling.temperature, sampling.top_p) == expected


def test_speciale_is_recognised_and_can_be_overridden(folder: Path) -> None:
    speciale = folder.rename(folder.with_name("DeepSeek-V3.2-Speciale"))
    (speciale / "v32.json").unlink(missing_ok=True)
    with pytest.raises(ToolsNotSupportedError, match=r"folder name 'DeepSeek-V3\.2-Speciale'.*variant='v3\.2'"):
        load_model(speciale).start_transcript(tools=[BOOK])
    assert load_model(speciale, variant="v3.2").start_transcript(tools=[BOOK]).tools == (BOOK,)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "cannot read the tokenizer"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "is not a tokenizer.json"),
        (lambda folder: _edit(folder / "config.json", vocab_size=500), "it belongs to another model"),
        (lambda folder: _edit(folder / "tokenizer.json", added_tokens=[]), "lacks the tokens"),
        (lambda folder: (folder / "generation_config.json").write_text('{"temperature": -1}'), "generation config"),
    ],
)
def test_a_folder_that_does_not_fit_together(folder: Path, damage: Any, message: str) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


def _edit(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_wrong_arguments_are_named(written: Path) -> None:
    with pytest.raises(ValueError, match="thinking_mode is 'deep'"):
        load_model(written, thinking_mode="deep")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="numerics is 'exact'; choose float or deepseek"):
        load_model(written, numerics="exact")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dtype is 'fp8'"):
        load_model(written, dtype="fp8")
    with pytest.raises(CheckpointError, match="no folder"):
        load_model("/does/not/exist")


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["vllm", "sglang"])
async def test_a_server(kind: str, written: Path) -> None:
    tokenizer = tiny_tokenizer()
    written_ids = tokenizer.encode_segments(V32.split(f"Hm.</think>Yes.{V32.eos}"))
    fake = FakeServer(written_ids, context=2_000)
    with fake.run() as url:
        with pytest.raises(CheckpointError, match="give tokenizer="):
            load_model(f"{kind}+{url}")
        model = load_model(f"{kind}+{url}", tokenizer=written)
        transcript = model.start_transcript(tools=[BOOK])
        transcript.append_user("?")
        *_, completion = [item async for item in model.complete(transcript)]
    assert isinstance(completion, Completion)
    assert (completion.parsed.reasoning_content, completion.parsed.content) == ("Hm.", "Yes.")
    assert list(completion.token_ids) == written_ids
    assert model.variant.name == "v3.2"
    assert "book" in json.dumps(fake.requests[0])


def test_a_server_of_unknown_variant_is_warned_about(written: Path) -> None:
    with pytest.raises(GeneratorError, match="is the server running there"):
        load_model("vllm+http://127.0.0.1:9", tokenizer=written)
    fake = FakeServer([])
    fake.model = "my-model"
    with fake.run() as url, pytest.warns(VariantWarning, match="variant is unknown"):
        load_model(f"sglang+{url}", tokenizer=written)


def test_importing_the_package_is_quick() -> None:
    code = "import sys, v32.model_runtime; print([m for m in ('torch', 'xgrammar', 'tokenizers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("count", [-1, 8])
def test_a_number_of_drafts_that_cannot_be_is_refused_before_loading(folder: Path, count: int) -> None:
    with pytest.raises(ValueError, match=f"speculative is {count}; choose .*, 0 to 7"):
        load_model(folder, speculative=count)


def test_drafts_of_a_checkpoint_without_an_mtp_layer_are_refused_before_loading(folder: Path) -> None:
    (folder / "model.safetensors").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="has no MTP layer to draft tokens with"):
        load_model(folder, speculative=True)
