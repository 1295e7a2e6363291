"""Grammars that make sampled tool calls valid calls: from the offered tools to a mask over the next token."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from v32.model_runtime.grammar.compiler import ConstraintCompiler as ConstraintCompiler
    from v32.model_runtime.grammar.completion import CompletionGrammar as CompletionGrammar
    from v32.model_runtime.grammar.completion import completion_grammar as completion_grammar
    from v32.model_runtime.grammar.matcher import GrammarConstraint as GrammarConstraint
    from v32.model_runtime.grammar.matcher import GrammarMatcher as GrammarMatcher

# torch and xgrammar are imported by those who compile a grammar.
_HOMES = {
    "CompletionGrammar": "completion",
    "ConstraintCompiler": "compiler",
    "GrammarConstraint": "matcher",
    "GrammarMatcher": "matcher",
    "completion_grammar": "completion",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
