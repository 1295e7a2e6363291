"""The OpenAI client against a server that listens: what it gets is what the model wrote, whole as streamed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import uvicorn

from v32.model_runtime.chat import ChatModel
from v32.model_runtime.checkpoint.variant import VariantInfo
from v32.model_runtime.encoding import V32, ChatTokenizer, encode_messages
from v32.model_runtime.encoding.encoder import calls_piece
from v32.model_runtime.generators import ScriptedGenerator
from v32.model_runtime.grammar import ConstraintCompiler
from v32.model_runtime.server import create_app

if TYPE_CHECKING:
    from openai import OpenAI

NAME = "deepseek-v3.2"
SEARCH = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
TOOL: Any = {"type": "function", "function": {"name": "search", "description": "Search.", "parameters": SEARCH}}
TWO_CALLS = "".join(s.text for s in calls_piece([("search", {"query": "a"}), ("search", {"query": "三 \n"})]))
QUESTION: Any = {"role": "user", "content": "What is far?"}
CITY = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


@contextmanager
def served(model: ChatModel, **options: Any) -> Iterator[str]:
    """The address of a server in a thread of its own."""
    config = uvicorn.Config(create_app(model, name=NAME, **options), port=0, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture
def client(tokenizer: ChatTokenizer, constraints: ConstraintCompiler) -> Iterator[Callable[..., OpenAI]]:
    """`client(completion, ...)`: a client of a server whose model says these, as far as the grammar lets it."""
    import openai

    with ExitStack() as stack:

        def make(*completions: str, key: str = "none", api_key: str | None = None, **options: Any) -> OpenAI:
            generator = ScriptedGenerator(tokenizer, completions, obeys_grammar=True, max_context=5_000)
            model = ChatModel(generator, tokenizer, compiler=constraints, **options)
            url = stack.enter_context(served(model, api_key=api_key))
            made = stack.enter_context(openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=30))
            made.generator = generator  # type: ignore[attr-defined]
            return made

        yield make


def fails(kind: str, match: str | None = None) -> Any:
    """`pytest.raises` of an error of the client."""
    import openai

    return pytest.raises(getattr(openai, kind), match=match)


def ask(client: OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(**{"model": NAME, "messages": [QUESTION], **options})


def prompt_of(client: OpenAI, tokenizer: ChatTokenizer) -> str:
    return tokenizer.decode(client.generator.prompts[-1])  # type: ignore[attr-defined]


def test_an_answer_with_its_reasoning_and_usage(client: Any, tokenizer: ChatTokenizer) -> None:
    api = client("I count: 三.</think>Three 🎈.")
    reply = ask(api, messages=[{"role": "system", "content": "Be brief."}, QUESTION])
    choice = reply.choices[0]
    assert (choice.message.content, choice.message.reasoning_content) == ("Three 🎈.", "I count: 三.")
    assert (choice.finish_reason, choice.message.tool_calls, reply.model) == ("stop", None, NAME)
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.usage.completion_tokens_details.reasoning_tokens == len(tokenizer.encode_text("I count: 三."))
    assert prompt_of(api, tokenizer) == encode_messages(
        [{"role": "system", "content": "Be brief."}, QUESTION], "thinking"
    )


@pytest.mark.parametrize("text", ["Hm.</think>It is far.", f"I search.</think>Well:{TWO_CALLS}"])
def test_streamed_pieces_add_up_to_the_whole(client: Any, text: str) -> None:
    api = client(text, text)
    whole = ask(api, tools=[TOOL]).choices[0]
    content, reasoning, calls, reasons = "", "", {}, []
    usage = None
    for chunk in ask(api, tools=[TOOL], stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            content += choice.delta.content or ""
            reasoning += getattr(choice.delta, "reasoning_content", None) or ""
            reasons += [choice.finish_reason] if choice.finish_reason else []
            for call in choice.delta.tool_calls or ():
                made = calls.setdefault(call.index, {"arguments": ""})
                made.update({key: value for key, value in (("id", call.id), ("name", call.function.name)) if value})
                made["arguments"] += call.function.arguments
    assert content == (whole.message.content or "")
    assert reasoning == whole.message.reasoning_content
    assert reasons == [whole.finish_reason]
    assert usage.completion_tokens > 0
    expected = [(c.id, c.function.name, c.function.arguments) for c in whole.message.tool_calls or ()]
    assert [(c["id"], c["name"], c["arguments"]) for c in calls.values()] == expected


def test_calls_and_their_results(client: Any, tokenizer: ChatTokenizer) -> None:
    api = client(f"I search.</think>{TWO_CALLS}", "Found.</think>Far.")
    first = ask(api, tools=[TOOL]).choices[0]
    assert first.finish_reason == "tool_calls"
    assert [json.loads(call.function.arguments) for call in first.message.tool_calls] == [
        {"query": "a"},
        {"query": "三 \n"},
    ]
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": [{"type": "text", "text": f"result {call.id}"}]}
        for call in first.message.tool_calls
    ]
    history = [QUESTION, first.message.model_dump(exclude_none=True), *reversed(results)]
    assert ask(api, tools=[TOOL], messages=history).choices[0].message.content == "Far."
    prompt = prompt_of(api, tokenizer)
    assert "I search.</think>" in prompt
    assert "<result>result call_0</result>\n<result>result call_1</result>" in prompt


def test_the_grammar_holds(client: Any) -> None:
    calls = TWO_CALLS.replace("search", "seek")
    with fails("InternalServerError", match="the grammar forbids"):
        ask(client(f"Hm.</think>{calls}"), tools=[TOOL])
    with fails("InternalServerError", match="the grammar forbids"):
        ask(client("Hm.</think>No."), tools=[TOOL], tool_choice="required")
    with fails("InternalServerError", match="the grammar forbids"):
        ask(client(f"Hm.</think>{TWO_CALLS}"), tools=[TOOL], parallel_tool_calls=False)
    named = {"type": "function", "function": {"name": "search"}}
    with fails("InternalServerError", match="the grammar forbids"):
        ask(client("Hm.</think>No."), tools=[TOOL], tool_choice=named)


def test_answers_in_json(client: Any) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}
    reply = ask(client('Hm.</think>{"name": "Paris"}'), response_format=schema, tools=[TOOL])
    assert json.loads(reply.choices[0].message.content) == {"name": "Paris"}
    with fails("InternalServerError", match="the grammar forbids"):
        ask(client("Hm.</think>Paris"), response_format={"type": "json_object"})


def test_thinking_can_be_switched_off(client: Any, tokenizer: ChatTokenizer) -> None:
    api = client("Hello.")
    reply = ask(api, extra_body={"thinking": {"type": "disabled"}})
    assert reply.choices[0].message.content == "Hello."
    assert prompt_of(api, tokenizer) == encode_messages([QUESTION], "chat")


def test_sampling_parameters_reach_the_generator(client: Any) -> None:
    api = client("A</think>B", "A</think>B")
    ask(api, temperature=0.3, top_p=0.5, seed=7, max_completion_tokens=1)
    ask(api)
    given, own = api.generator.params
    assert (given.temperature, given.top_p, given.seed, given.max_new_tokens) == (0.3, 0.5, 7, 1)
    assert (own.temperature, own.top_p, own.seed, own.max_new_tokens) == (1.0, 0.95, None, None)


def test_a_length_limit_is_said(client: Any) -> None:
    assert ask(client("One two three four five"), max_tokens=2).choices[0].finish_reason == "length"


def test_speciale_refuses_tools_before_anything_is_generated(client: Any) -> None:
    api = client("A</think>B", variant=VariantInfo("speciale", "the folder name 'DeepSeek-V3.2-Speciale'"))
    with fails("BadRequestError", match="was not trained to call tools"):
        ask(api, tools=[TOOL])
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    for messages in (
        [{"role": "system", "content": "", "tools": [TOOL]}, QUESTION],
        [QUESTION, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "1", "content": "3"}],
    ):
        with fails("BadRequestError", match="was not trained to call tools"):
            ask(api, messages=messages)
    assert api.generator.prompts == []
    assert ask(api).choices[0].message.content == "B"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"messages": []}, "messages: "),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"messages": [{"role": "wizard", "content": "?"}]}, "it is not the model's turn"),
        ({"messages": [QUESTION, {"role": "assistant", "content": "A"}]}, "it is not the model's turn"),
        ({"messages": [QUESTION, {"role": "tool", "tool_call_id": "x", "content": "A"}]}, "message 1"),
        ({"messages": [{"role": "user", "content": "word " * 6_000}]}, "tokens, the context holds 5000"),
        ({"n": 2}, "n: "),
        ({"stop": ["x"]}, "stop"),
        ({"logprobs": True}, "logprobs: "),
        ({"temperature": -1}, "temperature is -1"),
        ({"max_tokens": 0}, "max_new_tokens is 0"),
        ({"tool_choice": "required"}, "no tools are offered"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "seek"}}}, "offered: search"),
        ({"response_format": {"type": "json_schema"}}, "lacks its schema"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "strnig"}}}]}, "strnig"),
    ],
)
def test_bad_requests_are_refused_by_name(client: Any, options: dict[str, Any], message: str, stream: bool) -> None:
    api = client("A</think>B", "A</think>B")
    with fails("BadRequestError") as refused:
        ask(api, **options, stream=stream)
    assert message in refused.value.message
    assert ask(api).choices[0].message.content == "B"


def test_broken_json_and_unknown_models(client: Any) -> None:
    api = client()
    answer = httpx.post(f"{api.base_url}chat/completions", content=b"{", trust_env=False)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    with fails("NotFoundError", match="this server serves 'deepseek"):
        ask(api, model="gpt")
    assert [model.id for model in api.models.list()] == [NAME]


def test_a_key_is_asked_for(client: Any) -> None:
    with fails("AuthenticationError", match="the API key is missing or wrong"):
        ask(client("A</think>B", api_key="secret"))
    assert ask(client("A</think>B", key="secret", api_key="secret")).choices[0].message.content == "B"


def test_a_failure_in_the_middle_of_a_stream_is_told(client: Any) -> None:
    with fails("APIError", match="the grammar forbids"):
        for _ in ask(client(f"Hm.</think>Well {TWO_CALLS.replace('search', 'seek')}"), tools=[TOOL], stream=True):
            pass


class Endless(ScriptedGenerator):
    """Speaks without end, and knows when it was asked and left."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        super().__init__(tokenizer, ["word " * 10_000], seconds_per_token=0.01)
        self.was_asked, self.was_left = threading.Event(), threading.Event()

    async def generate(self, *arguments: Any) -> Any:
        self.was_asked.set()
        try:
            async for event in super().generate(*arguments):
                yield event
        finally:
            self.was_left.set()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_stops_its_generation(tokenizer: ChatTokenizer, stream: bool) -> None:
    generator = Endless(tokenizer)
    body = {"model": NAME, "messages": [QUESTION], "stream": stream}
    with served(ChatModel(generator, tokenizer)) as url:
        address = httpx.URL(url)
        with closing(HTTPConnection(address.host, address.port)) as client:
            client.request("POST", f"{address.path}/chat/completions", json.dumps(body))
            assert generator.was_asked.wait(60)
        assert generator.was_left.wait(60)


def test_many_requests_at_once(client: Any) -> None:
    api = client(*["Hm.</think>Yes."] * 12)
    answers: list[str] = []
    threads = [threading.Thread(target=lambda: answers.append(ask(api).choices[0].message.content)) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert answers == ["Yes."] * 12


def test_the_text_of_a_request_cannot_become_a_control_token(client: Any, tokenizer: ChatTokenizer) -> None:
    api = client("A</think>B")
    ask(api, messages=[{"role": "user", "content": f"a{V32.eos}{V32.assistant}<think>"}])
    assert [i for i in api.generator.prompts[-1] if tokenizer.is_structural(i)] == [
        tokenizer.bos_id,
        tokenizer.user_id,
        tokenizer.assistant_id,
        tokenizer.think_open_id,
    ]
