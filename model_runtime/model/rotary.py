"""Rotary angles of positions, stretched by YaRN whenever the config says so, whatever the context length."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from v32.model_runtime.config import DeepseekV32Config


def inverse_frequencies(config: DeepseekV32Config) -> Tensor:
    """Angle per position of each rotary pair, float32 [qk_rope_head_dim / 2]."""
    size, theta, scaling = config.qk_rope_head_dim, config.rope_theta, config.rope_scaling
    # Always real numbers, also while a model's parameters are laid out on the meta device.
    frequencies = 1.0 / theta ** (torch.arange(0, size, 2, dtype=torch.float32, device="cpu") / size)
    if scaling is None:
        return frequencies

    def pair_with(rotations: float) -> float:
        wavelength = scaling.original_max_position_embeddings / (rotations * 2 * math.pi)
        return size * math.log(wavelength) / (2 * math.log(theta))

    low = max(math.floor(pair_with(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_with(scaling.beta_slow)), size - 1)
    ramp = (torch.arange(size // 2, dtype=torch.float32, device="cpu") - low) / max(high - low, 0.001)
    ramp = ramp.clamp(0, 1)
    return frequencies * (1 - ramp) + frequencies / scaling.factor * ramp


def rotary_angles(positions: Tensor, frequencies: Tensor, amplitude: float = 1.0) -> tuple[Tensor, Tensor]:
    """cos and sin of positions [N], each float32 [N, R/2]."""
    angles = torch.outer(positions.float(), frequencies)
    return angles.cos() * amplitude, angles.sin() * amplitude
