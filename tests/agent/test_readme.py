"""What the documents print can be run: commands parse, named files are there, Python blocks say what they promise."""

from __future__ import annotations

import asyncio
import re
import shlex
from pathlib import Path

import pytest

from v32.agent.cli import COMMANDS, command_parser

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md"]
DOCUMENTS += sorted(path for depth in ("", "*/", "*/*/", "*/*/*/") for path in ROOT.glob(f"{depth}README.md"))
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(rf"^(?:torchrun \S+ \S+ -m )?v32 ((?:{'|'.join(COMMANDS)})\b.*)", re.MULTILINE)
TESTS = re.compile(r"`pytest ([^`]+)`|`(tests/[\w/]+\.py)`")


def commands(document: Path) -> list[str]:
    """Those of code blocks, and those in the text that leave nothing out."""
    text = document.read_text()
    inline = [span for span in re.findall(r"`([^`\n]+)`", text) if not re.search(r"…|\[|\|", span)]
    return [
        match[1]
        for source in (*[block for _, block in FENCED.findall(text)], *inline)
        for match in COMMAND.finditer(source)
    ]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_parses_and_every_test_is_there(document: Path) -> None:
    for command in commands(document):
        name, *arguments = shlex.split(command, comments=True)
        command_parser(name).parse_args(arguments)
    for words, path in TESTS.findall(document.read_text()):
        for place in (word for word in (words or path).split() if word.startswith("tests/")):
            assert (ROOT / place).exists(), place


def test_there_are_commands_to_parse() -> None:
    assert len(commands(ROOT / "README.md")) > 10


@pytest.mark.slow
def test_the_first_example_answers_its_question(capsys: pytest.CaptureFixture[str]) -> None:
    exec(python_blocks(ROOT / "README.md")[0], {"__name__": "readme"})
    assert " answer Usage(" in capsys.readouterr().out


@pytest.mark.slow
def test_the_sandbox_example_prints_what_stands_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = python_blocks(ROOT / "sandboxes" / "README.md")
    body = "".join(f"    {line}\n" for line in block.splitlines())
    scope: dict[str, object] = {}
    exec(f"async def example():\n{body}", scope)
    asyncio.run(scope["example"]())  # type: ignore[operator]
    assert capsys.readouterr().out.splitlines() == re.findall(r"print\(.*#\s(.*)", block)


def python_blocks(document: Path) -> list[str]:
    return [block for language, block in FENCED.findall(document.read_text()) if language == "python"]
