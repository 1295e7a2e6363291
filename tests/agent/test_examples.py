"""Every example runs as printed, above a scripted engine; the tools and the sandbox are the real ones."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
Scripted = Callable[..., Any]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_at_most_a_screen(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= 50
    assert lines[0].startswith('"""')


def test_the_first_has_less_than_fifteen_lines_of_code() -> None:
    assert sum(bool(line.strip()) for line in (EXAMPLES / "01_hello_agent.py").read_text().splitlines()) < 15


def test_hello_agent(scripted: Scripted, say: Any, capsys: pytest.CaptureFixture[str]) -> None:
    load("01_hello_agent").main(scripted(say.calls(("population", {"city": "Paris"})), say.answer("2,100,000")))
    assert capsys.readouterr().out == "2,100,000\n"


def test_own_tool(scripted: Scripted, say: Any, capsys: pytest.CaptureFixture[str]) -> None:
    calls = [("age", {"person": "Otto"}), ("age", {"person": "Anna", "unit": "months"}), ("age", {"person": 5})]
    load("02_own_tool").main(scripted(say.calls(*calls), say.answer("408 months")))
    out = capsys.readouterr().out
    assert "age: error: Error: unknown person 'Otto'; known: Anna, Viktor" in out
    assert "age: ok: 408" in out
    assert "age: invalid_arguments: Error: invalid arguments for age" in out
    assert "stopped: answer, 3 calls" in out


def test_streaming(scripted: Scripted, say: Any, capsys: pytest.CaptureFixture[str]) -> None:
    load("03_streaming").main(scripted(say.calls(("population", {"city": "Paris"})), say.answer("2,100,000")))
    out = capsys.readouterr().out
    assert "-> population{'city': 'Paris'}" in out
    assert "<- 2102650" in out
    assert "2,100,000" in out


@pytest.mark.slow
def test_code_agent(scripted: Scripted, say: Any, capsys: pytest.CaptureFixture[str]) -> None:
    script = [
        say.calls(("python", {"code": "x = 784 + 4829\nprint(x)"})),
        say.answer("5613"),
        say.calls(("python", {"code": "print(x - 5613 + 17 * 23)"})),
        say.answer("391"),
    ]
    model = scripted(*script)
    load("04_code_agent").main(model)
    assert "What is 17 * 23? 391" in capsys.readouterr().out
    assert "<result>391</result>" in model.tokenizer.decode(model.generator.prompts[-1])


def test_resume(scripted: Scripted, say: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    example, journal = load("05_resume"), tmp_path / "s.jsonl"
    with pytest.raises(Exception, match="the script has no completion"):
        example.main(scripted(say.calls(("population", {"city": "Paris"}))), journal)
    example.main(scripted(say.answer("2,100,000")), journal)
    example.main(scripted(), journal)
    assert capsys.readouterr().out == "2,100,000\n2,100,000\n"


@pytest.mark.slow
def test_search_agent(scripted: Scripted, say: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "brenia.md").write_text("# Brenia\n\nThe capital of Brenia is Vostok.\n")
    script = [
        say.calls(("search", {"query": "capital of Brenia"}), ("python", {"code": "print(6 * 7)"})),
        say.answer("Vostok [brenia.md]."),
    ]
    model = scripted(*script)
    load("search_agent").main(model, tmp_path, "What is the capital of Brenia?")
    assert "Vostok [brenia.md]." in capsys.readouterr().out
    prompt = model.tokenizer.decode(model.generator.prompts[-1])
    assert "The capital of Brenia is Vostok." in prompt
    assert "<result>42</result>" in prompt


@pytest.mark.slow
def test_evaluation(scripted: Scripted, say: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The demonstrations of the tasks, played through the real loop and the real tools, succeed every time."""
    from v32.agent.evals.suite import suite_tasks

    script: list[str] = []
    for turn in [turn for task in suite_tasks("tiny", 1, 11) for turn in task.turns]:
        script += [say.calls(*[(call.name, call.arguments) for call in step.calls]) for step in turn.steps]
        script.append(say.answer(turn.answer))
    load("06_evaluation").main(scripted(*script), 11, concurrency=1)
    assert "100% of 11 tasks" in capsys.readouterr().out
