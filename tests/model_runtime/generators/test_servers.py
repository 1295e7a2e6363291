"""vLLM and SGLang: what is sent to them, the forms in which they answer, and what goes wrong."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from v32.model_runtime.encoding import ChatTokenizer
from v32.model_runtime.errors import GeneratorError
from v32.model_runtime.generators import Finished, SamplingParams, SGLangGenerator, Token, VLLMGenerator
from v32.model_runtime.generators.server import Server
from v32.model_runtime.grammar import ConstraintCompiler
from v32.model_runtime.grammar.library import load_xgrammar
from v32.model_runtime.grammar.server import ServerConstraintCompiler
from v32.model_runtime.messages import ToolSpec

from .fake_servers import FakeServer

pytestmark = pytest.mark.anyio
IDS = [100, 200, 300, 400, 1]
KINDS = {"vllm": VLLMGenerator, "sglang": SGLangGenerator}
NOW = ToolSpec("now", "", {"type": "object", "properties": {}})


async def generate(kind: str, url: str, params: SamplingParams, **options: Any) -> tuple[list[Token], Finished]:
    generator = KINDS[kind].connect(Server(url, silence_seconds=5))
    *tokens, finished = [event async for event in generator.generate([0, 7], params, options.get("constraint"))]
    return tokens, finished  # type: ignore[return-value]


@pytest.mark.parametrize("is_cumulative", [True, False])
@pytest.mark.parametrize("trims_stop", [True, False])
@pytest.mark.parametrize("kind", KINDS)
async def test_every_form_of_answer_gives_the_same_tokens(kind: str, trims_stop: bool, is_cumulative: bool) -> None:
    with FakeServer(IDS, trims_stop=trims_stop, is_cumulative=is_cumulative).run() as url:
        tokens, finished = await generate(kind, url, SamplingParams(stop_token_ids=(1,), logprobs=True))
    assert [token.id for token in tokens] == IDS
    assert [token.logprob for token in tokens[:4]] == [-0.1, -0.2, -0.3, -0.4]
    assert finished.reason == "stop"
    assert finished.cached_tokens == 3


async def test_repeated_tokens_are_not_taken_for_a_repetition_of_the_answer() -> None:
    with FakeServer([5] * 7, is_cumulative=False).run() as url:
        tokens, _ = await generate("sglang", url, SamplingParams(max_new_tokens=7))
    assert [token.id for token in tokens] == [5] * 7


@pytest.mark.parametrize("kind", KINDS)
async def test_the_request_carries_ids_sampling_and_grammar(kind: str, tokenizer: ChatTokenizer) -> None:
    fake = FakeServer(IDS)
    constraint = ServerConstraintCompiler(tokenizer).compile([NOW], "required")
    params = SamplingParams(temperature=0.5, top_p=0.8, seed=3, max_new_tokens=9, stop_token_ids=(1,))
    with fake.run() as url:
        await generate(kind, url, params, constraint=constraint)
    (request,) = fake.requests
    if kind == "vllm":
        sampling, grammar = request, request["structured_outputs"]["grammar"]
        assert request["prompt"] == [0, 7]
        assert request["model"] == "org/DeepSeek-V3.2"
        assert (request["max_tokens"], request["seed"], request["return_token_ids"]) == (9, 3, True)
    else:
        sampling, grammar = request["sampling_params"], request["sampling_params"]["ebnf"]
        assert request["input_ids"] == [0, 7]
        assert (sampling["max_new_tokens"], sampling["sampling_seed"]) == (9, 3)
    assert (sampling["temperature"], sampling["top_p"], sampling["stop_token_ids"]) == (0.5, 0.8, [1])
    assert sampling["skip_special_tokens"] is False
    assert grammar == constraint.grammar.ebnf
    assert f"Token({tokenizer.think_close_id})" in grammar
    assert tokenizer.dialect.user in grammar


async def test_a_servers_grammar_is_one_that_xgrammar_compiles(tokenizer: ChatTokenizer) -> None:
    xgrammar = load_xgrammar()
    constraint = ServerConstraintCompiler(tokenizer).compile([NOW])
    words = [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)]
    info = xgrammar.TokenizerInfo(words, stop_token_ids=[tokenizer.eos_id])
    matcher = xgrammar.GrammarMatcher(xgrammar.GrammarCompiler(info).compile_grammar(constraint.grammar.ebnf))
    assert matcher.accept_token(tokenizer.think_close_id)
    assert not matcher.accept_token(tokenizer.user_id)
    with pytest.raises(GeneratorError, match="made for a server"):
        constraint.start()


@pytest.mark.parametrize("kind", KINDS)
async def test_leaving_closes_the_connection(kind: str) -> None:
    fake = FakeServer([5] * 10_000, seconds_per_token=0.01)
    with fake.run() as url:
        generator = KINDS[kind].connect(Server(url))
        with anyio.CancelScope() as scope:
            async for _ in generator.generate([0, 7], SamplingParams()):
                scope.cancel()
        assert await anyio.to_thread.run_sync(fake.was_left.wait, 60)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ({"refusal": '{"error": {"message": "prompt too long"}}'}, "answered 400: prompt too long"),
        ({"refusal": "<html>Bad gateway</html>"}, "answered 400: <html>"),
        ({"breaks_off": True}, "ended its answer in the middle"),
        ({"error": "out of memory"}, "failed: out of memory"),
    ],
)
async def test_failures_name_the_server(kind: str, behaviour: dict[str, Any], message: str) -> None:
    with FakeServer(IDS, **behaviour).run() as url, pytest.raises(GeneratorError, match=message) as caught:
        await generate(kind, url, SamplingParams())
    assert url in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_silent_server_is_not_waited_for_without_end(kind: str) -> None:
    with FakeServer([5] * 20, seconds_per_token=0.6).run() as url:
        generator = KINDS[kind].connect(Server(url, silence_seconds=0.2))
        with pytest.raises(GeneratorError, match=r"sent nothing for 0\.2 s"):
            [event async for event in generator.generate([0, 7], SamplingParams())]


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_is_not_there(kind: str) -> None:
    with pytest.raises(GeneratorError, match="is the server running there"):
        KINDS[kind].connect(Server("http://127.0.0.1:9"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_is_not_there(kind: str) -> None:
    with FakeServer(IDS).run() as url:
        with pytest.raises(GeneratorError, match=r"no model 'other'; it serves org/DeepSeek-V3\.2"):
            KINDS[kind].connect(Server(url), "other")
        assert KINDS[kind].connect(Server(url), max_context=50).max_context == 50
        with pytest.raises(
            ValueError, match=rf"max_context is 1,000,000; the context of {url} is [\d,]+: ask for at most"
        ):
            KINDS[kind].connect(Server(url), max_context=1_000_000)


async def test_a_server_takes_no_compiled_constraint_of_another_kind(tokenizer: ChatTokenizer) -> None:
    class Own:
        def start(self) -> Any:
            raise AssertionError

    with FakeServer(IDS).run() as url, pytest.raises(GeneratorError, match="cannot be given a Own"):
        await generate("vllm", url, SamplingParams(), constraint=Own())
    assert ConstraintCompiler(tokenizer).compiled([NOW]) is None
