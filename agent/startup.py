"""A start without what no command uses of torch: a third of the seconds of `import torch` goes into the shapes and the
primitives that tracing and compiling models ask for. They stay away until somebody names them.
"""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_UNUSED = "torch._meta_registrations"
_COMPILER = "torch._dynamo"


def shorten_torch_import() -> None:
    """For a process that is ours alone."""
    if "torch" not in sys.modules:
        sys.meta_path.insert(0, _Shortened())


@contextmanager
def without_collections() -> Iterator[None]:
    """What imports make stays; looking through it again and again for garbage takes a tenth of a start."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


class _Shortened(MetaPathFinder, Loader):
    """Finds, once, a module that gives way to the real one when something of it is used, or the compiler is."""

    def __init__(self) -> None:
        self._stand_in: ModuleType | None = None

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name == _UNUSED and self._stand_in is None:
            return ModuleSpec(name, self)
        if name == _COMPILER:
            self._give_way()
        return None

    def exec_module(self, module: ModuleType) -> None:
        self._stand_in = module
        module.__dict__["__getattr__"] = self._of_the_real_one
        with suppress(ImportError, AttributeError):  # the real module does this on its way, for torch.Generator
            import torch
            from torch._opaque_base import OpaqueBaseMeta

            torch._C._set_generator_metaclass(OpaqueBaseMeta)

    def _of_the_real_one(self, name: str) -> Any:
        if name.startswith("__"):  # of every module, asked by whoever lists them
            raise AttributeError(name)
        return getattr(self._give_way(), name)

    def _give_way(self) -> ModuleType:
        if sys.modules.get(_UNUSED) is self._stand_in:
            sys.modules.pop(_UNUSED, None)
        return importlib.import_module(_UNUSED)
