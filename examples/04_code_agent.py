"""A code agent: every session has Python and a shell in a sandbox of its own, with their variables and files."""

import asyncio

from v32.agent import Agent
from v32.model_runtime import load_model
from v32.sandboxes import SandboxPolicy


async def answer(agent: Agent) -> None:
    async with agent.session() as session:
        for question in ("What is 784 + 4829?", "What is 17 * 23?"):
            result = await session.run(question)
            for call in result.tool_calls:
                print(f"{call['name']}: {call['arguments']}")
            print(f"{question} {result.output}")


def main(model=None):
    agent = Agent(model or load_model(), sandbox=SandboxPolicy(wall_seconds=10, memory_bytes=512 << 20))
    asyncio.run(answer(agent))


if __name__ == "__main__":
    main()
