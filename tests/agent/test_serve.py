"""`v32 serve` as a user starts it: the embedded checkpoint behind the OpenAI client; wrong use in one line."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys

import pytest

from v32.agent.cli import main

SERVE = [sys.executable, "-m", "v32.agent.cli", "serve", "--port"]


@pytest.mark.slow
def test_the_embedded_checkpoint_answers_the_openai_client() -> None:
    import openai

    with subprocess.Popen([*SERVE, "0", "--seed", "1"], stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            name, url = re.search(r"serving (\S+) at (\S+)", server.stderr.readline()).groups()  # type: ignore[union-attr]
            with openai.OpenAI(base_url=url, api_key="none", timeout=60) as client:
                reply = client.chat.completions.create(
                    model=name, messages=[{"role": "user", "content": "What is 2 + 2?"}], max_tokens=12
                )
            assert reply.usage is not None
            assert 0 < reply.usage.completion_tokens <= 12
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(20)
    assert server.returncode in (0, -signal.SIGTERM)


def test_a_taken_port_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "--port", port]) == 2
    error = capsys.readouterr().err
    assert f"cannot listen on 127.0.0.1:{port}" in error
    assert error.count("\n") == 1
