"""Which tools a conversation offers: random sets of the built-in ones and of record tools under varying names."""

from __future__ import annotations

from random import Random

from v32.agent.tasks.names import invented_word
from v32.agent.tasks.task import RecordTool, Toolset
from v32.agent.tasks.world import RELATIONS, Relation

INSTRUCTIONS = (
    None,
    None,
    None,
    "You are a helpful assistant.",
    "You are a careful assistant. Use the tools.",
    "Answer the user's question.",
)
NAME_FORMS = (
    "{label}", "{label}", "get_{label}", "find_{label}", "{label}_of", "lookup_{label}", "{label}_lookup",
    "{word}_{label}", "{label}_{word}",
)  # fmt: skip
INVENTED_SHARE = 0.4
"""So many parameters have a name that nobody could guess: it has to be read in the tool's schema."""
ANY_PARAMETERS = ("name", "key", "query", "subject", "entity", "item", "target", "of", "x", "term", "label", "title")
PLACE_PARAMETERS = ("city", "city", "place", "country", "town", "region", "location", "where", *ANY_PARAMETERS)
PERSON_PARAMETERS = ("person", "person", "who", "employee", "full_name", "user", "individual", *ANY_PARAMETERS)
DESCRIPTIONS = ("The {label} of a {p}.", "Look up the {label} of a {p}.", "Returns the {label}.", "{Label} of a {p}.")
PARAMETER_DESCRIPTIONS = ("Name of the {p}, in English.", "Name of the {p}.", "The {p}.", "")
SPECIAL_DESCRIPTIONS = {
    "population": "Number of inhabitants of a {p}.",
    "age": "How old a {p} is, in years.",
    "height": "How tall a {p} is, in centimetres.",
    "area": "Size of a {p} in square kilometres.",
}


def random_toolset(random: Random) -> Toolset:
    """Half of the time the built-in tools, half of the time record tools; rarely nothing."""
    draw = random.random()
    if draw < 0.48:
        return builtin_toolset(random)
    return record_toolset(random) if draw < 0.97 else Toolset(())


def builtin_toolset(random: Random) -> Toolset:
    """Search and Python most of the time; sometimes one of them, or more tools than needed."""
    draw = random.random()
    if draw < 0.83:
        return Toolset(tuple(random.sample(("search", "python"), 2)))
    if draw < 0.92:
        return Toolset(random.choice((("search",), ("python",), ("python", "bash"))))
    return Toolset(random.choice((("search", "open_page", "find", "python"), ("search", "python", "bash"))))


def record_toolset(random: Random) -> Toolset:
    """One to three record tools, sometimes beside built-in ones."""
    builtin = random.choice(((), (), (), ("python",), ("search", "python")))
    return Toolset(builtin, record_tools(random, random.choice((1, 1, 2, 3))))


def choice_toolset(random: Random) -> Toolset:
    """Several record tools, sometimes beside built-in ones: the right one has to be found."""
    builtin = random.choice(((), (), ("python",), ("search",), ("search", "python")))
    return Toolset(builtin, record_tools(random, random.choice((1, 2, 3, 4) if "search" in builtin else (2, 3, 4, 5))))


def record_tools(random: Random, count: int) -> tuple[RecordTool, ...]:
    """Tools over different relations, without tables yet."""
    return tuple(_record_tool(random, relation) for relation in random.sample(RELATIONS, count))


def relation_named(tool_name: str) -> Relation:
    """The relation a record tool is about, from its name."""
    matches = [relation for relation in RELATIONS if relation.label.replace(" ", "_") in tool_name]
    return max(matches, key=lambda relation: len(relation.label))


def _record_tool(random: Random, relation: Relation) -> RecordTool:
    if random.random() < INVENTED_SHARE:
        parameter = invented_word(random)
    else:
        parameter = random.choice(PLACE_PARAMETERS if relation.subject == "place" else PERSON_PARAMETERS)
    noun = parameter if parameter in ("city", "country", "town", "region") else relation.subject
    label = relation.label
    description = random.choice(DESCRIPTIONS)
    if label in SPECIAL_DESCRIPTIONS and random.random() < 0.5:
        description = SPECIAL_DESCRIPTIONS[label]
    return RecordTool(
        name=random.choice(NAME_FORMS).format(label=label.replace(" ", "_"), word=invented_word(random)),
        description=description.format(label=label, Label=label.capitalize(), p=noun),
        parameter=parameter,
        parameter_description=random.choice(PARAMETER_DESCRIPTIONS).format(p=noun),
        records={},
    )
