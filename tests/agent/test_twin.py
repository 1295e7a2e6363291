"""The shipped Speciale twin: real weights that refuse tools and reason without them."""

from __future__ import annotations

from pathlib import Path

import pytest

from v32.agent import Agent
from v32.model_runtime import load_model
from v32.model_runtime.chat import ChatModel
from v32.model_runtime.errors import ToolsNotSupportedError
from v32.model_runtime.generators.generator import SamplingParams
from v32.tools import tool

TWIN = Path(__file__).parents[2] / "examples" / "tiny_v32" / "speciale"


@pytest.fixture(scope="module")
def twin() -> ChatModel:
    return load_model(TWIN)


@tool
def double(n: int) -> int:
    """Twice n."""
    return 2 * n


def test_it_is_recognised_by_its_manifest_and_refuses_tools(twin: ChatModel) -> None:
    assert twin.variant.name == "speciale"
    with pytest.raises(ToolsNotSupportedError, match=r"v32\.json"):
        Agent(twin, tools=[double])


def test_it_reasons_without_tools(twin: ChatModel) -> None:
    result = Agent(twin, params=SamplingParams(temperature=0.0)).run_sync("Which is the largest: 680, 92, 489?")
    assert result.output == "The largest is 680."
    assert "92 < 680." in result.steps[0].completion.parsed.reasoning_content
