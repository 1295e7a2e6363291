"""Before loading: whether a model fits, where its parts go, how long its context is and what a turn will take."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from v32.model_runtime.planning.errors import PlanError as PlanError
    from v32.model_runtime.planning.plan import Plan as Plan
    from v32.model_runtime.planning.plan import Turn as Turn
    from v32.model_runtime.planning.plan import make_plan as make_plan
    from v32.model_runtime.planning.report import as_text as as_text

_HOMES = {"make_plan": "plan", "Plan": "plan", "PlanError": "errors", "Turn": "plan", "as_text": "report"}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
