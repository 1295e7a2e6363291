"""The stages of training and what each of them changes.

dense    every parameter but the indexer, dense attention
warmup   only the indexer, towards the dense attention (report section 2.1.1)
sparse   every parameter, top-k attention; the indexer learns on the selected positions
mtp      only the multi-token prediction module, on the frozen model
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from v32.agent.training.muon import Muon
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM

StageName = Literal["dense", "warmup", "sparse", "mtp"]


@dataclass(frozen=True, slots=True)
class Stage:
    """`muon_lr` for matrices, `adam_lr` for the rest; the `lesson_steps` first steps are copying lessons."""

    name: StageName
    steps: int
    muon_lr: float
    adam_lr: float
    warm_steps: int = 40
    decay_share: float = 0.4
    final_lr: float = 0.02
    lesson_steps: int = 0

    def learning_rate_factor(self, step: int) -> float:
        """Linear warm-up, a plateau, linear decay over the last `decay_share` of the steps."""
        rise = min(1.0, (step + 1) / self.warm_steps)
        fall = min(1.0, (self.steps - step) / (self.steps * self.decay_share))
        return rise * (self.final_lr + (1 - self.final_lr) * fall)


def optimizers(model: DeepseekV32ForCausalLM, stage: Stage) -> list[torch.optim.Optimizer]:
    """Muon and AdamW for what the stage trains; each group keeps its `peak_lr`."""
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for name, param in _trained(model, stage.name):
        (matrices if _is_for_muon(name, param) else others).append(param)
    made: list[torch.optim.Optimizer] = []
    if matrices:
        made.append(Muon(matrices, stage.muon_lr))
    if others:
        made.append(torch.optim.AdamW(others, lr=stage.adam_lr, betas=(0.9, 0.98), weight_decay=0.0))
    for optimizer in made:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return made


def _trained(model: DeepseekV32ForCausalLM, stage: StageName) -> Iterable[tuple[str, torch.nn.Parameter]]:
    """The parameters a stage changes; only those require a gradient afterwards."""
    draft = f"model.layers.{model.config.num_hidden_layers}."
    for name, param in model.named_parameters():
        is_draft, is_index = name.startswith(draft), ".indexer." in name
        is_trained = {
            "dense": not is_draft and not is_index,
            "warmup": not is_draft and is_index,
            "sparse": not is_draft,
            "mtp": is_draft,
        }[stage]
        param.requires_grad_(is_trained)
        if is_trained:
            yield name, param


def _is_for_muon(name: str, param: Tensor) -> bool:
    """Muon for the projections of the attention; AdamW for all else and the indexer."""
    return ".self_attn." in name and param.dim() == 2 and ".indexer." not in name
