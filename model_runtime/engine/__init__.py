"""The engine: sequences, scheduler, batch, paged attention, sampler. Token ids only."""

from v32.model_runtime.engine.engine import Engine, SequenceEvent
from v32.model_runtime.engine.sequence import Sequence

__all__ = ["Engine", "Sequence", "SequenceEvent"]
