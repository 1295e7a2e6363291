"""What a plan cannot be made of."""

from __future__ import annotations

from v32.model_runtime.errors import ModelRuntimeError


class PlanError(ModelRuntimeError):
    """A plan was asked for something unknown; the message names what is known."""
