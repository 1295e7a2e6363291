"""The command line: quick to answer, one JSON object a line, failures in one line that say what helps."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from v32.agent.cli import COMMANDS, main

CORPUS = Path(__file__).parents[2] / "examples" / "tiny_v32" / "corpus"
SHORT = ["--max-new-tokens", "12", "--max-turns", "2", "--seed", "1"]


def v32(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "v32.agent.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload, no-any-return]


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    program = "import sys; from v32.agent.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    program += "print([m for m in ('torch', 'xgrammar', 'pydantic', 'rich', 'jsonschema') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"
    assert all(f"    {name} " in run.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_describes_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    assert f"v32 {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "a question is missing; give one, or --resume PATH"),
        (["run", " \n"], "a question is missing; give one, or --resume PATH"),
        (["run", "q", "--journal", "a", "--resume", "b"], "give one of them"),
        (["run", "q", "--tools", "serach"], "--tools: unknown tool 'serach'; known: search, open_page"),
        (["run", "q", "--tools", "search"], "need --docs DIR"),
        (["run", "q", "--tools", "search", "--web", "bing"], "unknown search service 'bing'; offered: searxng, brave"),
        (["run", "q", "--tools", "search", "--web", "brave", "--docs", "."], "--docs and --web are both places"),
        (["run", "q", "--offline"], "say where with --recording DIR"),
        (["run", "q", "--recording", "r"], "choose a service with --web"),
        (["run", "q", "--mcp", ""], "--mcp: a command or a URL is missing"),
        (["run", "q", "--mcp", "echo 'a"], "cannot be read as a command: No closing quotation"),
        pytest.param(
            ["run", "q", "--mcp", "/no/such/server --flag"],
            "the MCP server ['/no/such/server', '--flag'] cannot be used",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["chat", "--mcp", "http://127.0.0.1:1/mcp"],
            "the MCP server http://127.0.0.1:1/mcp cannot be used",
            marks=pytest.mark.slow,
        ),
        (["run", "q", "--tools", "search", "--docs", "/nowhere"], "--docs: /nowhere is no folder"),
        (["run", "q", "--temperature", "-1"], "temperature is -1.0; it must be 0"),
        (["run", "q", "--max-context", "1000000"], "max_context is 1,000,000; what the model was made for is "),
        (["run", "q", "--max-turns", "0"], "Limits.turns is 0; it must be more than 0"),
        (["run", "q", "--context", "discard-50%"], "unknown context strategy 'discard-50%'"),
        (["run", "q", "--model", "/nowhere/model"], "/nowhere/model"),
        (["run", "q", "--device", "warp"], "--device: cannot use 'warp'"),
        (["eval", "huge"], "unknown suite 'huge'; choose tiny"),
        (["eval", "tiny", "--limit", "0"], "--limit is 0; it must be 1 or more"),
    ],
)
def test_a_mistake_is_one_line_with_the_remedy(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_folder_without_documents_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "q", "--tools", "search", "--docs", str(tmp_path)]) == 2
    assert "holds no documents; put .md, .txt or .jsonl files there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"), [([], "required: COMMAND"), (["rnu"], "argument COMMAND: invalid choice: 'rnu'")]
)
def test_a_missing_or_unknown_command_is_a_usage_error(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_run_prints_one_json_object_a_line_and_the_result_last(tmp_path: Path) -> None:
    run = v32("run", "What is 2 + 3?", "--json", "--tools", "search,python", "--docs", str(CORPUS), *SHORT)
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    assert rows[0] == {"type": "user_said", "text": "What is 2 + 3?", "note": ""}
    assert [row["type"] for row in rows].count("result") == 1
    result = rows[-1]
    assert result["type"] == "result"
    assert result["usage"]["completion_tokens"] > 0
    assert isinstance(result["output"], str)
    assert isinstance(result["tool_calls"], list)
    assert run.returncode == (0 if result["stop_reason"] == "answer" else 1)
    assert {row["type"] for row in rows} >= {"completed", "stopped"}


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_and_a_journal_can_be_resumed(tmp_path: Path) -> None:
    first, second = (v32("run", "What is 2 + 3?", "--json", *SHORT) for _ in range(2))
    ids = [[json.loads(line).get("token_ids") for line in run.stdout.splitlines()] for run in (first, second)]
    assert ids[0] == ids[1]
    path = tmp_path / "s.jsonl"
    v32("run", "What is 2 + 3?", "--json", "--journal", str(path), *SHORT)
    again = v32("run", "--resume", str(path), "--json", *SHORT)
    assert json.loads(again.stdout.splitlines()[-1])["type"] == "result"
    taken = v32("run", "What is 2 + 3?", "--journal", str(path), *SHORT)
    assert taken.returncode == 2
    assert "exists; continue it with" in taken.stderr


@pytest.mark.slow
def test_drafts_change_no_word() -> None:
    runs = (v32("run", "What is 2 + 3?", *SHORT, *more) for more in ((), ("--speculative", "2")))
    plain, drafted = (run.stdout.splitlines()[:-1] for run in runs)  # the last line tells the time
    assert plain
    assert drafted == plain


@pytest.mark.slow
def test_ctrl_c_ends_a_run_and_its_journal_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    command = [sys.executable, "-m", "v32.agent.cli", "run", "--max-turns", "2", "--seed", "1", "--json"]
    command += ["What is 2 + 3?", "--journal", str(path)]
    reader, writer = _full_pipe()  # what it says finds no room, so it cannot end before the signal
    hears = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
    with subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE, preexec_fn=hears) as run:
        os.close(writer)
        while not (path.exists() and b"user_said" in path.read_bytes()):
            assert run.poll() is None
            time.sleep(0.01)
        run.send_signal(signal.SIGINT)
        with open(reader, "rb") as said:
            said.read()
        _, error = run.communicate(timeout=60)
    assert (run.returncode, error) == (130, b"interrupted\n")
    resumed = v32("run", "--resume", str(path), "--json", *SHORT)
    result = json.loads(resumed.stdout.splitlines()[-1])
    assert result["stop_reason"] != "cancelled"
    assert result["usage"]["completion_tokens"] > 0


def _full_pipe() -> tuple[int, int]:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    return reader, writer


def test_ctrl_c_while_a_command_gets_ready_ends_it_at_once() -> None:
    program = "import os, signal; from v32.agent.commands.interrupt import ends_at_once\n"
    program += "with ends_at_once(): os.kill(os.getpid(), signal.SIGINT)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert (run.returncode, run.stderr) == (130, b"interrupted\n")


@pytest.mark.slow
def test_speciale_with_tools_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "What is 2 + 3?", "--tools", "python", "--variant", "speciale"]) == 2
    error = capsys.readouterr().err
    assert "Speciale" in error
    assert "variant='v3.2'" in error
    assert main(["run", "What is 2 + 3?", "--variant", "speciale", *SHORT]) in (0, 1)


def test_a_closed_standard_input_is_said_or_ends_the_talk(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", None)  # what Python makes of `<&-`
    assert main(["run", "-"]) == 2
    assert "standard input is closed; give the question as an argument" in capsys.readouterr().err
    assert main(["chat"]) == 0


@pytest.mark.slow
def test_chat_answers_one_message_a_line_when_there_is_no_terminal() -> None:
    run = v32("chat", *SHORT, input="Hello.\n\nWhat is 2 + 3?\n")
    assert run.returncode == 0
    assert run.stdout.count(" produced (") == 2
    assert "\x1b" not in run.stdout


@pytest.mark.slow
def test_eval_ends_with_its_report() -> None:
    run = v32("eval", "tiny", "--json", "--limit", "1", "--seed", "1", "--max-new-tokens", "12")
    report = json.loads(run.stdout.splitlines()[-1])
    assert {"suite", "n", "success", "ci95", "by_kind", "tool_calls", "tokens", "seconds"} <= report.keys()
    assert (report["suite"], report["n"]) == ("tiny", 1)


def test_importing_the_agent_is_quick_and_loads_no_torch() -> None:
    program = "import sys, v32.agent; print('torch' in sys.modules)"
    seconds = []
    for _ in range(3):
        before = os.times()
        run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
        assert run.stdout == "False\n"
    assert min(seconds) < 0.3
