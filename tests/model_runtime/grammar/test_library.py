"""xgrammar comes without transformers, and works with it all the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from v32.model_runtime.grammar.library import load_xgrammar
xgrammar = load_xgrammar()
print("transformers" in sys.modules)
from transformers import PreTrainedTokenizerFast
print(xgrammar.TokenizerInfo.from_huggingface(PreTrainedTokenizerFast(tokenizer_file=sys.argv[1])).vocab_size)
"""


@pytest.mark.slow
def test_transformers_is_not_loaded_and_may_be_used_later(tokenizer_file: Path) -> None:
    run = subprocess.run([sys.executable, "-c", PROGRAM, str(tokenizer_file)], capture_output=True, text=True)
    assert run.stdout.split() == ["False", "128815"], run.stderr
