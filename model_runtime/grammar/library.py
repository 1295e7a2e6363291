"""xgrammar, loaded without transformers: 0.75 s that every start would wait for what nobody here uses.

xgrammar asks whether a tokenizer is one of Hugging Face's and derives a class of its own from one of theirs. While it
is loaded, stand-ins take the place of these three classes; they answer for the real ones where somebody has those.
"""

from __future__ import annotations

import sys
import threading
from types import ModuleType
from typing import Any

_NAMES = ("PreTrainedTokenizerBase", "PreTrainedTokenizerFast", "LogitsProcessor")
_lock = threading.Lock()


def load_xgrammar() -> Any:
    """The module xgrammar."""
    with _lock:
        if "xgrammar" in sys.modules or "transformers" in sys.modules:
            import xgrammar
        else:
            stand_in = ModuleType("transformers")
            vars(stand_in).update({name: _StandIn(name, (), {}) for name in _NAMES})
            sys.modules["transformers"] = stand_in
            try:
                import xgrammar
            finally:
                del sys.modules["transformers"]
    return xgrammar


class _StandIn(type):
    """Has the instances of the class of its name in transformers, if that has been imported."""

    def __instancecheck__(cls, instance: object) -> bool:
        transformers = sys.modules.get("transformers")
        return transformers is not None and isinstance(instance, getattr(transformers, cls.__name__))
