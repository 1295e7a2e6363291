"""A small vocabulary and a smaller model than the shipped one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from random import Random

import pytest

from v32.agent.tasks.kinds import KINDS
from v32.agent.tasks.task import Toolset
from v32.agent.tasks.toolsets import record_tools
from v32.agent.training.demonstrations import conversation
from v32.agent.training.initialization import initialize
from v32.agent.training.recipe import CONFIG
from v32.agent.training.vocabulary import save_tokenizer, train_tokenizer
from v32.model_runtime.encoding.tokenizer import ChatTokenizer
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM

SMALL = dataclasses.replace(
    CONFIG, vocab_size=512, hidden_size=64, intermediate_size=64, moe_intermediate_size=32, num_hidden_layers=3,
    q_lora_rank=32, kv_lora_rank=32, index_topk=24,
)  # fmt: skip


@pytest.fixture(scope="session")
def small_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    random, texts = Random(3), []
    for number in range(60):
        toolset = Toolset(("search", "python"), record_tools(random, 2))
        task = KINDS[number % len(KINDS)](random, "train", toolset)
        texts += [str(message.get("content")) for message in conversation(task)]
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(texts, 512), folder)
    return ChatTokenizer.from_dir(folder)


@pytest.fixture
def small_model() -> DeepseekV32ForCausalLM:
    model = DeepseekV32ForCausalLM(SMALL, with_mtp=True)
    initialize(model, seed=1)
    return model
