"""Starting weights: scaled normal, with the heads that copying needs already in place.

MLA has no biases and one rotary key shared by all heads, so heads that look at a fixed distance are hard to discover by
gradient descent, and so is what builds on them: finding where the last few tokens stood before, and copying what
followed. The model therefore starts with both, wired through its own projections:

- first layer: heads that write the tokens at t-1, t-2 and t-3 into subspaces of the residual stream;
- last two layers: one head that compares the last three tokens with those before each earlier position, and adds what
  stands there to the prediction.

Only an initialisation: the architecture is unchanged and every weight is trained.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from v32.model_runtime.config import DeepseekV32Config
from v32.model_runtime.model.mla import MLA
from v32.model_runtime.model.rotary import inverse_frequencies
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM

EMBEDDING_STD = 0.1
FAST_PAIRS = 3
"""Rotary pairs that tell neighbours apart."""
POSITION_SHARPNESS = 6.0
LOOK_BACK = (1, 2, 3)
LOOK_BACK_GAIN = 0.25
INDUCTION_LAYERS = (-2, -1)
MATCH_GAIN = 1.3
COPY_GAIN = 0.5
ZERO_START = ("o_proj.weight", "down_proj.weight")
"""Each block starts as the identity, apart from the heads above."""


@dataclass(frozen=True, slots=True)
class Subspaces:
    """Orthonormal rows in the residual stream [hidden_size]."""

    constant: Tensor  # [hidden]: a direction that every embedding shares
    token: Tensor  # [width, hidden]: where heads read a token from its embedding
    preceding: tuple[Tensor, ...]  # [width, hidden] each: where the look-back heads write that reading

    @classmethod
    def draw(cls, hidden_size: int, width: int, generator: torch.Generator) -> Subspaces:
        square = torch.randn(hidden_size, hidden_size, generator=generator)
        rows = torch.linalg.qr(square).Q.T
        token, *preceding = rows[1 : 1 + width * (1 + len(LOOK_BACK))].split(width)
        return cls(rows[0], token, tuple(preceding))


@torch.no_grad()
def initialize(model: DeepseekV32ForCausalLM, seed: int) -> None:
    """Fill every parameter in place."""
    generator = torch.Generator().manual_seed(seed)
    for name, param in model.named_parameters():
        _initialize_parameter(name, param, generator)
    config = model.config
    subspaces = Subspaces.draw(config.hidden_size, _reading_width(config), generator)
    _initialize_embeddings(model.model.embed_tokens.weight, subspaces)
    attentions = [part for part in model.model.layers[: config.num_hidden_layers].modules() if isinstance(part, MLA)]
    _add_look_back_heads(attentions[0], config, subspaces)
    for layer_idx in INDUCTION_LAYERS:
        _add_induction_head(attentions[layer_idx], config, subspaces, generator)


def _reading_width(config: DeepseekV32Config) -> int:
    """Dimensions a token is read in: as many as the heads, the latents and the residual stream have room for."""
    readings = 1 + len(LOOK_BACK)
    return min(
        config.v_head_dim,
        config.qk_nope_head_dim,
        config.kv_lora_rank // readings,
        config.q_lora_rank // len(LOOK_BACK),
        (config.hidden_size - 1) // readings,
    )


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


def _initialize_embeddings(embeddings: Tensor, subspaces: Subspaces) -> None:
    """Leave room for the preceding tokens, and add the constant direction."""
    for rows in subspaces.preceding:
        embeddings -= 0.8 * (embeddings @ rows.T) @ rows
    embeddings -= torch.outer(embeddings @ subspaces.constant, subspaces.constant)
    embeddings += subspaces.constant


def _add_look_back_heads(mla: MLA, config: DeepseekV32Config, subspaces: Subspaces) -> None:
    """The key of every token carries angle 0 in the fast pairs; head h asks for the angle LOOK_BACK[h] earlier."""
    size, width = config.hidden_size, len(subspaces.token)
    # The constant direction as it looks after the input norm, and after the norm of the query latent.
    constant = size**0.5 / (1 + EMBEDDING_STD**2 * size) ** 0.5
    query_constant = 3 * constant
    query_constant /= ((query_constant**2 + config.q_lora_rank) / config.q_lora_rank) ** 0.5

    key_rows = mla.kv_a_proj_with_mqa.weight[config.kv_lora_rank :]
    key_rows -= torch.outer(key_rows @ subspaces.constant, subspaces.constant)
    key_rows *= 0.3
    key_angles = torch.zeros(config.qk_rope_head_dim)
    key_angles[0 : 2 * FAST_PAIRS : 2] = 1.0
    key_rows += torch.outer(key_angles, subspaces.constant) * (POSITION_SHARPNESS / constant)

    mla.q_a_proj.weight[0] = 3 * subspaces.constant
    mla.kv_a_proj_with_mqa.weight[:width] = subspaces.token
    queries = mla.q_b_proj.weight.unflatten(0, (mla.heads, -1))
    values = mla.kv_b_proj.weight.unflatten(0, (mla.heads, -1))[:, config.qk_nope_head_dim :]
    outputs = mla.o_proj.weight.unflatten(1, (mla.heads, -1))
    frequencies = inverse_frequencies(config)[:FAST_PAIRS]
    for head, (distance, rows) in enumerate(zip(LOOK_BACK, subspaces.preceding)):
        angles = torch.zeros(config.qk_rope_head_dim)
        angles[0 : 2 * FAST_PAIRS : 2] = torch.cos(-frequencies * distance)
        angles[1 : 2 * FAST_PAIRS : 2] = torch.sin(-frequencies * distance)
        queries[head] *= 0.3
        queries[head, config.qk_nope_head_dim :, 0] += angles * (POSITION_SHARPNESS / query_constant)
        values[head] = torch.eye(config.v_head_dim, config.kv_lora_rank)
        outputs[:, head, :width] = LOOK_BACK_GAIN * rows.T


def _add_induction_head(mla: MLA, config: DeepseekV32Config, subspaces: Subspaces, generator: torch.Generator) -> None:
    """Head 0: query (t, t-1, t-2) against key (s-1, s-2, s-3); its value is the token at s."""
    width, nope = len(subspaces.token), config.qk_nope_head_dim
    mixers = torch.cat([torch.linalg.qr(torch.randn(nope, width, generator=generator)).Q for _ in LOOK_BACK], 1)
    mla.q_a_proj.weight[: 3 * width] = torch.cat((2 * subspaces.token, *subspaces.preceding[:2]))
    mla.kv_a_proj_with_mqa.weight[: 4 * width] = torch.cat((*subspaces.preceding, 2 * subspaces.token))
    query = mla.q_b_proj.weight.unflatten(0, (mla.heads, -1))[0]
    key, value = mla.kv_b_proj.weight.unflatten(0, (mla.heads, -1))[0].split((nope, config.v_head_dim))
    query.zero_()
    query[:nope, : 3 * width] = MATCH_GAIN * mixers
    key.zero_()
    key[:, : 3 * width] = MATCH_GAIN * mixers
    value.zero_()
    value[:width, 3 * width : 4 * width] = torch.eye(width)
    mla.o_proj.weight.unflatten(1, (mla.heads, -1))[:, 0, :width] = COPY_GAIN * subspaces.token.T
