"""A chat model whose words are scripted; encoder, parser, tools and sandbox above it are the real ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from v32.model_runtime.chat import ChatModel
from v32.model_runtime.encoding import V32, ChatTokenizer
from v32.model_runtime.generators.scripted import ScriptedGenerator


@pytest.fixture
def scripted(tokenizer: ChatTokenizer) -> Callable[..., ChatModel]:
    """`scripted(completion, ...)`: a model that says these completions, one after another."""

    def model(*completions: str, max_context: int = 100_000, **options: Any) -> ChatModel:
        generator = ScriptedGenerator(tokenizer, completions, max_context=max_context)
        return ChatModel(generator, tokenizer, **{"grammar": False, **options})

    return model


class Say:
    """Completions as the model would write them."""

    @staticmethod
    def answer(content: str, reasoning: str = "I know this.") -> str:
        return f"{reasoning}{V32.think_close}{content}{V32.eos}"

    @staticmethod
    def calls(*calls: tuple[str, dict[str, Any]], reasoning: str = "I look it up.") -> str:
        invokes = "\n".join(_invoke(*call) for call in calls)
        return f"{reasoning}{V32.think_close}{V32.block_open}{invokes}\n{V32.block_close}{V32.eos}"


@pytest.fixture
def say() -> type[Say]:
    return Say


def _invoke(name: str, arguments: dict[str, Any]) -> str:
    parameters = [
        V32.parameter_open(key, is_string=isinstance(value, str))
        + (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        + V32.parameter_close
        for key, value in arguments.items()
    ]
    return V32.invoke_open(name) + "\n".join(parameters) + "\n" + V32.invoke_close
