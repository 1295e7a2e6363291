"""Every event of a run as it happens: reasoning and answer piece by piece, calls and their results, the account."""

import asyncio

from v32.agent import Agent, ContentDelta, ReasoningDelta, RunResult, ToolFinished, ToolStarted
from v32.model_runtime import load_model
from v32.tools import tool


@tool
def population(city: str) -> int:
    """Number of inhabitants of a city."""
    return {"Paris": 2_102_650, "Rome": 2_750_000}[city]


async def show(agent: Agent, prompt: str) -> None:
    async for event in agent.stream(prompt):
        match event:
            case ReasoningDelta(text) | ContentDelta(text):
                print(text, end="", flush=True)
            case ToolStarted(_, name, arguments):
                print(f"\n-> {name}{dict(arguments)}")
            case ToolFinished(result):
                print(f"<- {result.text}")
            case RunResult(usage=usage):
                print(f"\n{usage.completion_tokens} tokens, {usage.reasoning_tokens} of them reasoning")


def main(model=None):
    agent = Agent(model or load_model(), tools=[population])
    asyncio.run(show(agent, "What is the population of Paris?"))


if __name__ == "__main__":
    main()
