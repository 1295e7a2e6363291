"""Starting weights: scaled normal, and heads of the first layers that look at the preceding tokens.

MLA has no biases and one rotary key shared by all heads, so a head that looks at position t-1 is hard to discover by
gradient descent; starting with three of them made the trial runs learn to copy several times sooner. Only an
initialisation: the architecture is unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from v32.model_runtime.config import DeepseekV32Config
from v32.model_runtime.model.mla import MLA
from v32.model_runtime.model.rotary import inverse_frequencies
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM

EMBEDDING_STD = 0.1
FAST_PAIRS = 3
"""Rotary pairs that tell neighbours apart."""
SHARPNESS = 6.0
LOOK_BACK = (1, 2, 3)
POSITIONAL_LAYERS = (0, 1)
ZERO_START = ("o_proj.weight", "down_proj.weight")
"""Each block starts as the identity."""


@torch.no_grad()
def initialize(model: DeepseekV32ForCausalLM, seed: int) -> None:
    """Fill every parameter in place."""
    generator = torch.Generator().manual_seed(seed)
    for name, param in model.named_parameters():
        _initialize_parameter(name, param, generator)
    direction = torch.randn(model.config.hidden_size, generator=generator)
    direction /= direction.norm()
    model.model.embed_tokens.weight.add_(direction)
    for layer_idx in POSITIONAL_LAYERS:
        attention = model.model.layers[layer_idx].self_attn
        assert isinstance(attention, MLA)
        _add_positional_heads(attention, model.config, direction, generator)


def _initialize_parameter(name: str, param: nn.Parameter, generator: torch.Generator) -> None:
    if param.dim() < 2:
        param.fill_(0.0 if name.endswith("bias") else 1.0)
    elif name.endswith("embed_tokens.weight"):
        param.normal_(0, EMBEDDING_STD, generator=generator)
    elif name.endswith(ZERO_START):
        param.zero_()
    else:
        gain = 0.5 if name.endswith("gate.weight") else 1.0
        param.normal_(0, gain * param.shape[1] ** -0.5, generator=generator)


def _add_positional_heads(mla: MLA, config: DeepseekV32Config, direction: Tensor, generator: torch.Generator) -> None:
    """The key of every token carries angle 0 in the fast pairs; head h asks for the angle LOOK_BACK[h] earlier."""
    size = config.hidden_size
    # The constant direction as it looks after the input norm, and after the norm of the query latent.
    constant = size**0.5 / (1 + EMBEDDING_STD**2 * size) ** 0.5
    query_constant = 3 * constant
    query_constant /= ((query_constant**2 + config.q_lora_rank) / config.q_lora_rank) ** 0.5

    key_rows = mla.kv_a_proj_with_mqa.weight[config.kv_lora_rank :]
    key_rows -= torch.outer(key_rows @ direction, direction)
    key_rows *= 0.3
    key_angles = torch.zeros(config.qk_rope_head_dim)
    key_angles[0 : 2 * FAST_PAIRS : 2] = 1.0
    key_rows += torch.outer(key_angles, direction) * (SHARPNESS / constant)

    mla.q_a_proj.weight[0] = 3 * direction
    heads = mla.q_b_proj.weight.unflatten(0, (mla.heads, -1))
    frequencies = inverse_frequencies(config)[:FAST_PAIRS]
    for head, distance in zip(heads, LOOK_BACK):
        query_angles = torch.zeros(config.qk_rope_head_dim)
        query_angles[0 : 2 * FAST_PAIRS : 2] = torch.cos(-frequencies * distance)
        query_angles[1 : 2 * FAST_PAIRS : 2] = torch.sin(-frequencies * distance)
        head *= 0.3
        head[config.qk_nope_head_dim :, 0] += query_angles * (SHARPNESS / query_constant)
    width = mla.o_proj.weight.shape[1]
    mla.o_proj.weight.normal_(0, 0.5 * width**-0.5, generator=generator)
