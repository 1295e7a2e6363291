"""The smallest agent: a model, a tool, a question. `load_model()` takes the checkpoint that comes along."""

from v32.agent import Agent
from v32.model_runtime import load_model
from v32.tools import tool


@tool
def population(city: str) -> int:
    """Number of inhabitants of a city."""
    return {"Paris": 2_102_650}[city]


def main(model=None):
    print(Agent(model or load_model(), tools=[population]).run_sync("What is the population of Paris?").output)


if __name__ == "__main__":
    main()
