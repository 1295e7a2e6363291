"""A tool of your own: types and docstring become the schema; what goes wrong, the model reads, and tries again."""

from typing import Literal

from v32.agent import Agent, Limits
from v32.model_runtime import load_model
from v32.tools import ToolError, tool

STOCK = {"bolt": 120, "nut": 80, "washer": 0}


@tool(timeout=5)
def stock(part: str, unit: Literal["pieces", "dozens"] = "pieces") -> float:
    """Look up how many of a part are in stock.

    Args:
        part: Name of the part, in lower case.
        unit: Count in pieces or in dozens.
    """
    if part not in STOCK:
        raise ToolError(f"unknown part {part!r}; known: {', '.join(STOCK)}")
    return STOCK[part] / (12 if unit == "dozens" else 1)


def main(model=None):
    agent = Agent(
        model or load_model(),
        tools=[stock],
        limits=Limits(turns=8, seconds=120),
        max_parallel_calls=4,
    )
    result = agent.run_sync("What is the stock of bolt?")
    for step in result.steps:
        for call in step.results:
            print(f"{call.name}: {call.outcome}: {call.text}")
    print(result.output)
    print(f"stopped: {result.stop_reason}, {result.usage.tool_calls} calls, {result.usage.completion_tokens} tokens")


if __name__ == "__main__":
    main()
