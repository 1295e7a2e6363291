"""A run that survives its process: kill it at any point, start it again, and it goes on where its journal ends."""

import asyncio
import sys
from pathlib import Path

from v32.agent import Agent
from v32.model_runtime import load_model
from v32.tools import tool


@tool
def population(city: str) -> int:
    """Number of inhabitants of a city."""
    return {"Paris": 2_102_650}[city]


async def answer(agent: Agent, journal: Path, question: str) -> str:
    is_new = not journal.exists()
    async with agent.session(journal) if is_new else agent.resume(journal) as session:
        result = await session.run(question if is_new else None)  # None: finish what is open
    return result.output


def main(model=None, journal="session.jsonl"):
    agent = Agent(model or load_model(), tools=[population])
    print(asyncio.run(answer(agent, Path(journal), "What is the population of Paris?")))


if __name__ == "__main__":
    main(None, *sys.argv[1:])
