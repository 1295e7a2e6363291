"""A search agent over a folder of documents, as V3.2 was trained to be one: developer role, cited answer.

$ python examples/search_agent.py DIR "question"
"""

import sys
from pathlib import Path

from v32.agent import Agent, Limits
from v32.model_runtime import load_model
from v32.tools import CodeSession, LocalIndex, document_tools, python_tool

CORPUS = Path(__file__).parent / "tiny_v32" / "corpus"
INSTRUCTIONS = "Answer from the documents alone. Cite every fact with the id of its document, like [doc 3]."


def main(model=None, folder=CORPUS, question="What is the capital of Brenia?"):
    index = LocalIndex.from_folder(folder)
    agent = Agent(
        model or load_model(),
        tools=[*document_tools(index), python_tool(CodeSession())],
        instructions=INSTRUCTIONS,
        role="developer",
        limits=Limits(turns=32),
        context="discard-all",  # the strategy that did best in the V3.2 report
    )
    result = agent.run_sync(question)
    print(result.output)
    print(f"({len(result.steps)} turns, {result.usage.tool_calls} calls, {result.stop_reason})")


if __name__ == "__main__":
    main(None, *sys.argv[1:])
