"""A tool of your own: types and docstring become the schema; what goes wrong, the model reads, and tries again."""

from typing import Literal

from v32.agent import Agent, Limits
from v32.model_runtime import load_model
from v32.tools import ToolError, tool

AGES = {"Anna": 34, "Viktor": 61}


@tool(timeout=5)
def age(person: str, unit: Literal["years", "months"] = "years") -> int:
    """How old a person is.

    Args:
        person: Name of the person.
        unit: Years or months.
    """
    if person not in AGES:
        raise ToolError(f"unknown person {person!r}; known: {', '.join(AGES)}")
    return AGES[person] * (12 if unit == "months" else 1)


def main(model=None):
    agent = Agent(
        model or load_model(),
        tools=[age],
        limits=Limits(turns=8, seconds=120),
        max_parallel_calls=4,
    )
    result = agent.run_sync("What is the age of Viktor?")
    for step in result.steps:
        for call in step.results:
            print(f"{call.name}: {call.outcome}: {call.text}")
    print(result.output)
    print(f"stopped: {result.stop_reason}, {result.usage.tool_calls} calls, {result.usage.completion_tokens} tokens")


if __name__ == "__main__":
    main()
