"""HTTP servers that speak as vLLM and SGLang do, and write what they were told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CONTEXT = 200


class FakeServer:
    """Answers every generation with the same token ids, or refuses; remembers the requests."""

    def __init__(self, token_ids: Sequence[int], **behaviour: Any) -> None:
        self.token_ids = list(token_ids)
        self.requests: list[dict[str, Any]] = []
        self.refusal: str | None = behaviour.get("refusal")
        self.breaks_off = behaviour.get("breaks_off", False)
        self.is_cumulative = behaviour.get("is_cumulative", True)
        self.trims_stop = behaviour.get("trims_stop", False)
        self.error: str | None = behaviour.get("error")
        self.seconds_per_token = behaviour.get("seconds_per_token", 0.0)
        self.was_left = threading.Event()
        self.model = "org/DeepSeek-V3.2"
        self.context = behaviour.get("context", CONTEXT)

    @contextmanager
    def run(self) -> Iterator[str]:
        """Serve; gives the URL."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def events(self, path: str, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        is_vllm = path == "/v1/completions"
        sampling = request if is_vllm else request["sampling_params"]
        ids, reason, stop_id = self._written(
            sampling["max_tokens" if is_vllm else "max_new_tokens"], sampling["stop_token_ids"]
        )
        yield from self._vllm(ids, reason, stop_id) if is_vllm else self._sglang(ids, reason, stop_id)

    def _written(self, room: int, stop_ids: list[int]) -> tuple[list[int], str, int | None]:
        for count, token_id in enumerate(self.token_ids[:room], start=1):
            if token_id in stop_ids:
                return self.token_ids[: count - self.trims_stop], "stop", token_id
        return self.token_ids[:room], "length" if len(self.token_ids) >= room else "stop", None

    def _vllm(self, ids: list[int], reason: str, stop_id: int | None) -> Iterator[dict[str, Any]]:
        for start in range(0, len(ids), 2):
            piece = ids[start : start + 2]
            logprobs = {"token_logprobs": [-token_id / 1000 for token_id in piece]}
            yield {"choices": [{"index": 0, "text": "..", "token_ids": piece, "logprobs": logprobs}]}
        yield {"choices": [{"index": 0, "text": "", "token_ids": [], "finish_reason": reason, "stop_reason": stop_id}]}
        yield {"choices": [], "usage": {"prompt_tokens": 7, "prompt_tokens_details": {"cached_tokens": 3}}}

    def _sglang(self, ids: list[int], reason: str, stop_id: int | None) -> Iterator[dict[str, Any]]:
        for start in range(0, max(len(ids), 1), 2):
            end = min(start + 2, len(ids))
            first = 0 if self.is_cumulative else start
            is_last = end == len(ids)
            finish = {"type": reason, "matched": stop_id} if is_last else None
            meta = {
                "finish_reason": finish,
                "completion_tokens": end,
                "cached_tokens": 3,
                "output_token_logprobs": [[-token_id / 1000, token_id, None] for token_id in ids[first:end]],
            }
            yield {"output_ids": ids[first:end], "meta_info": meta}

    def _handler(fake) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                answers: dict[str, Any] = {
                    "/v1/models": {"data": [{"id": fake.model, "max_model_len": fake.context}]},
                    "/get_model_info": {"model_path": fake.model},
                    "/get_server_info": {"context_length": fake.context},
                }
                self._answer(200, json.dumps(answers[self.path]))

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fake.requests.append(request)
                if fake.refusal is not None:
                    self._answer(400, fake.refusal)
                    return
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                try:
                    self._stream(request)
                except OSError:
                    fake.was_left.set()

            def _stream(self, request: dict[str, Any]) -> None:
                for number, event in enumerate(fake.events(self.path, request)):
                    if fake.breaks_off and number == 1:
                        return
                    if fake.error and number == 1:
                        event = {"error": {"message": fake.error}}
                    self.wfile.write(f": keep-alive\n\ndata: {json.dumps(event)}\n\n".encode())
                    self.wfile.flush()
                    time.sleep(fake.seconds_per_token)
                self.wfile.write(b"data: [DONE]\n\n")

            def _answer(self, status: int, body: str) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body.encode())))
                self.end_headers()
                self.wfile.write(body.encode())

        return Handler
