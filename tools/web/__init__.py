"""The web: fetching pages safely, reading them, searching with the services that offer it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from v32.tools.web.browse import Browser, web_tools
    from v32.tools.web.cassette import Cassette
    from v32.tools.web.fetch import Fetched, Fetcher, FetchPolicy
    from v32.tools.web.providers import PROVIDERS, WebSearch, web_search

_LAZY = {
    "PROVIDERS": "providers",
    "Browser": "browse",
    "Cassette": "cassette",
    "FetchPolicy": "fetch",
    "Fetched": "fetch",
    "Fetcher": "fetch",
    "WebSearch": "providers",
    "web_search": "providers",
    "web_tools": "browse",
}

__all__ = [
    "PROVIDERS",
    "Browser",
    "Cassette",
    "FetchPolicy",
    "Fetched",
    "Fetcher",
    "WebSearch",
    "web_search",
    "web_tools",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
