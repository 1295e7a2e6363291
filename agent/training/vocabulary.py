"""The tokenizer of the tiny checkpoint: byte-level BPE with the real role markers, trained on demonstrations.

Digits and leading capitals stand alone, so that a name or a number has the same ids after a space, a quote or a
newline: a small model copies ids, not letters. `｜DSML｜` is ordinary text of several tokens, as in V3.2.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from v32.model_runtime.encoding.dialect import V32

PAD = "<｜▁pad▁｜>"
SPECIAL = (V32.bos, V32.eos, PAD, V32.user, V32.assistant)
UNFLAGGED = (V32.think_open, V32.think_close)
"""Added tokens that the published tokenizer does not flag as special."""
PIECES = r"[^\r\n\p{L}\p{N}]?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """BPE over plain texts (no role markers in them), `vocab_size` entries with the markers."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"),
            pre_tokenizers.Split(Regex(r"[A-Z](?=[a-z])"), "isolated"),
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL, *UNFLAGGED],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json in Hugging Face layout; think markers unflagged."""
    data = json.loads(tokenizer.to_str())
    for token in data["added_tokens"]:
        token["special"] = token["content"] not in UNFLAGGED
    folder.mkdir(parents=True, exist_ok=True)
    # Several ranks may write the same file at once.
    unfinished = folder / f"tokenizer.json.{os.getpid()}"
    unfinished.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    os.replace(unfinished, folder / "tokenizer.json")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": V32.bos,
        "eos_token": V32.eos,
        "pad_token": PAD,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False, indent=1), encoding="utf-8")
