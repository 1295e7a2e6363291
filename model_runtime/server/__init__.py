"""An OpenAI-compatible server over a `ChatModel`; needs the extra `serve`."""

from __future__ import annotations

from v32.model_runtime.server.app import create_app

__all__ = ["create_app"]
