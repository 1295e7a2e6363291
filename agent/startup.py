"""A start without what a command does not use of torch: half of the seconds of `import torch` go into the shapes that
tracing and compiling models ask for. They stay away until somebody names them.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

_UNUSED = "torch._meta_registrations"


def shorten_torch_import() -> None:
    """For a process that is ours alone: `torch.compile` and `torch.export` would miss what is left out."""
    if "torch" not in sys.modules:
        sys.modules[_UNUSED] = _Later(_UNUSED)


class _Later(ModuleType):
    """Gives way to the module of its name when something of it is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # of every module, asked by whoever lists them
            raise AttributeError(name)
        del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)
