"""The recipe of the tiny checkpoints: architecture, vocabulary, stages, export. A folder in, a checkpoint out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch

from v32.agent.tasks.kinds import kinds_for
from v32.agent.tasks.reasoning import REASONING_KINDS
from v32.agent.tasks.toolsets import INSTRUCTIONS, random_toolset
from v32.agent.training.batches import specs_of
from v32.agent.training.demonstrations import conversation, system_message
from v32.agent.training.initialization import initialize
from v32.agent.training.stage import Stage
from v32.agent.training.trainer import Trainer
from v32.agent.training.vocabulary import save_tokenizer, train_tokenizer
from v32.model_runtime.checkpoint.manifest import Variant
from v32.model_runtime.checkpoint.writer import Precision, write_checkpoint
from v32.model_runtime.config import DeepseekV32Config
from v32.model_runtime.encoding.dialect import V32
from v32.model_runtime.encoding.encoder import encode_segments
from v32.model_runtime.encoding.tokenizer import ChatTokenizer
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM

VOCAB_SIZE = 1024
CONFIG = DeepseekV32Config(
    vocab_size=VOCAB_SIZE,
    hidden_size=192,
    intermediate_size=384,
    moe_intermediate_size=128,
    num_hidden_layers=4,
    num_nextn_predict_layers=1,
    first_k_dense_replace=1,
    num_attention_heads=4,
    q_lora_rank=128,
    kv_lora_rank=128,
    qk_nope_head_dim=32,
    qk_rope_head_dim=32,
    v_head_dim=32,
    index_n_heads=8,
    index_head_dim=64,
    index_topk=128,
    n_routed_experts=8,
    n_shared_experts=1,
    num_experts_per_tok=2,
    n_group=4,
    topk_group=2,
    routed_scaling_factor=1.0,
    rope_theta=1000.0,
    rope_scaling=None,
    max_position_embeddings=4096,
    tie_word_embeddings=True,
)
"""Head and embedding are tied while training and written as two tensors, as the published checkpoints have them."""
STAGES = [
    Stage("dense", 5000, muon_lr=2e-3, adam_lr=1.5e-3, lesson_steps=400, decay_share=0.7, final_lr=0.05),
    Stage("warmup", 60, muon_lr=0.0, adam_lr=2e-3, warm_steps=10),
    Stage("sparse", 90, muon_lr=1.5e-4, adam_lr=1e-4, warm_steps=10, decay_share=1.0),
    Stage("mtp", 80, muon_lr=4e-3, adam_lr=2e-3, warm_steps=20),
]
SPECIALE_STAGES = [
    Stage("dense", 1200, muon_lr=2e-3, adam_lr=1.5e-3, decay_share=0.6, final_lr=0.1),
    Stage("warmup", 30, muon_lr=0.0, adam_lr=2e-3, warm_steps=10),
    Stage("sparse", 90, muon_lr=1.5e-4, adam_lr=1e-4, warm_steps=10, decay_share=1.0),
    Stage("mtp", 40, muon_lr=2e-3, adam_lr=1e-3, warm_steps=20),
]
"""On reasoning without tools, from the weights that STAGES end with."""
TOKENIZER_TASKS = 6000
PREAMBLE_EVERY = 12
"""One conversation in so many shows its tools preamble to the tokenizer."""


def make_tokenizer(folder: Path) -> ChatTokenizer:
    """Train it, unless the folder has one already."""
    if not (folder / "tokenizer.json").exists():
        save_tokenizer(train_tokenizer(_texts(Random(11)), VOCAB_SIZE), folder)
    return ChatTokenizer.from_dir(folder)


def train(folder: Path, stages: list[Stage], *, seed: int = 0) -> DeepseekV32ForCausalLM:
    """Run or resume the stages in `folder`; returns the trained model."""
    tokenizer = make_tokenizer(folder)
    model = build_model(seed)
    Trainer(model, tokenizer, folder, stages, seed=seed).run()
    return model


def train_speciale(
    folder: Path, stages: list[Stage], base: DeepseekV32ForCausalLM, *, seed: int = 0
) -> DeepseekV32ForCausalLM:
    """The same for the twin that reasons without tools; `base` gives the starting weights and becomes the result."""
    tokenizer = make_tokenizer(folder)
    Trainer(base, tokenizer, folder, stages, seed=seed, toolless_kinds=REASONING_KINDS).run()
    return base


def trained_model(folder: Path) -> DeepseekV32ForCausalLM:
    """The model that training in `folder` has saved."""
    model = build_model(0)
    model.load_state_dict(torch.load(folder / "state.pt", weights_only=True)["model"])
    return model


def build_model(seed: int) -> DeepseekV32ForCausalLM:
    """Starting weights; the draft layer shares embedding and head with the model."""
    model = DeepseekV32ForCausalLM(CONFIG, with_mtp=True)
    initialize(model, seed)
    for layer in model.mtp_layers:
        layer.embed_tokens = model.model.embed_tokens
        layer.shared_head.head = model.lm_head
    return model


def export(
    folder: Path,
    model: DeepseekV32ForCausalLM,
    checkpoint: Path,
    *,
    variant: Variant = "v3.2",
    precision: Precision = "fp8",
) -> str:
    """Write the checkpoint, by default FP8 in blocks of 128 x 128, with its tokenizer; returns its fingerprint."""
    config = dataclasses.replace(CONFIG, tie_word_embeddings=False)
    state = model.state_dict()
    fingerprint = write_checkpoint(checkpoint, config, state, precision=precision, variant=variant, overwrite=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (checkpoint / name).write_bytes((folder / name).read_bytes())
    return fingerprint


def _texts(random: Random) -> Iterator[str]:
    """What stands between the role markers of random demonstrations."""
    for number in range(TOKENIZER_TASKS):
        toolset = random_toolset(random)
        task = random.choice(kinds_for(toolset))(random, "train", toolset)
        messages = conversation(task)
        if number % PREAMBLE_EVERY == 0:
            messages = [system_message(specs_of(toolset), random.choice(INSTRUCTIONS)), *messages]
        yield from _plain_runs(messages)


def _plain_runs(messages: list[dict[str, object]]) -> Iterator[str]:
    run = ""
    for text, is_control in encode_segments(messages, "thinking"):
        if is_control and text in V32.role_markers:
            yield run
            run = ""
        else:
            run += text
    yield run
