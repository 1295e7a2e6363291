"""A start without what no command uses of torch: a quarter of the seconds of `import torch` goes into the shapes that
tracing and compiling models ask for. They stay away until somebody names them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_UNUSED = "torch._meta_registrations"


def shorten_torch_import() -> None:
    """For a process that is ours alone: `torch.compile` and `torch.export` would miss what is left out."""
    if "torch" not in sys.modules:
        sys.meta_path.insert(0, _Shortened())


class _Shortened(MetaPathFinder, Loader):
    """Finds, once, a module that gives way to the real one when something of it is used."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name == _UNUSED else None

    def exec_module(self, module: ModuleType) -> None:
        sys.meta_path.remove(self)
        with suppress(ImportError):  # the real module loads it as well, and torch.Generator needs it
            importlib.import_module("torch._prims.rng_prims")
        module.__dict__["__getattr__"] = _of_the_real_one


def _of_the_real_one(name: str) -> Any:
    if name.startswith("__"):  # of every module, asked by whoever lists them
        raise AttributeError(name)
    del sys.modules[_UNUSED]
    return getattr(importlib.import_module(_UNUSED), name)
