"""The training loop: stages on batches of demonstrations, resumable at any step.

What is saved is the model, the optimisers, the stage and the step; batches are addressed by number.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from v32.agent.tasks.kinds import KINDS, TaskKind
from v32.agent.training.batches import Batches, PackedBatch
from v32.agent.training.data_parallel import Ranks
from v32.agent.training.objective import Losses, Objective
from v32.agent.training.packed_attention import AttentionMode
from v32.agent.training.stage import Stage, optimizers
from v32.model_runtime.encoding.tokenizer import ChatTokenizer
from v32.model_runtime.model.moe import MoE
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM


class Trainer:
    """Runs stages over `folder`: `state.pt` to resume from, `log.jsonl` with one line a report."""

    def __init__(
        self,
        model: DeepseekV32ForCausalLM,
        tokenizer: ChatTokenizer,
        folder: Path,
        stages: list[Stage],
        *,
        seed: int = 0,
        tokens: int = 2048,
        save_every: int = 50,
        evaluate_every: int = 250,
        evaluation_batches: int = 12,
        toolless_kinds: Sequence[TaskKind] = (),
    ) -> None:
        self.model, self.folder, self.stages = model, folder, stages
        self.ranks = Ranks()
        self.batches = Batches(tokenizer, seed, self.ranks.rank, "train", tokens, toolless_kinds=toolless_kinds)
        self.held_out = replace(self.batches, split="held-out")
        self.save_every, self.evaluate_every, self.evaluation_batches = save_every, evaluate_every, evaluation_batches
        self.stage_idx, self.step, self.tokens_seen, self.seconds = 0, 0, 0, 0.0
        self.objective = Objective(model)
        self.optimizers = optimizers(model, stages[0])
        self._resume()

    def run(self) -> None:
        """Train until the last stage ends."""
        while self.stage_idx < len(self.stages):
            self._run_stage(self.stages[self.stage_idx])
            self.stage_idx, self.step = self.stage_idx + 1, 0
            if self.stage_idx < len(self.stages):
                self.optimizers = optimizers(self.model, self.stages[self.stage_idx])
            self._save()
        self.ranks.close()

    def _run_stage(self, stage: Stage) -> None:
        averages = _Averages()
        while self.step < stage.steps:
            started = time.monotonic()
            losses = self._train_step(stage)
            self.seconds += time.monotonic() - started
            self.step += 1
            averages.add(losses)
            if self.step % 20 == 0:
                self._log(averages.summary(), stage)
            if self.step % self.save_every == 0:
                self._save()
            if self.step % self.evaluate_every == 0 or self.step == stage.steps:
                self._evaluate(stage)

    def _train_step(self, stage: Stage) -> Losses:
        number = self.stage_idx * 1_000_000 + self.step
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        batches = self.batches.step(number, first_lessons=self.step < stage.lesson_steps)
        losses, loads = self._backward(stage, batches)
        params = [param for group in self._groups() for param in group["params"]]
        self.ranks.average_gradients(params)
        torch.nn.utils.clip_grad_norm_([param for param in params if param.grad is not None], 1.0)
        factor = stage.learning_rate_factor(self.step)
        for group in self._groups():
            group["lr"] = group["peak_lr"] * factor
        for optimizer in self.optimizers:
            optimizer.step()
        if stage.name in ("dense", "sparse"):
            self._balance_experts(loads, 1e-3 * factor)
        self.tokens_seen += sum(batch.num_tokens for batch in batches) * self.ranks.count
        return losses

    def _backward(self, stage: Stage, batches: list[PackedBatch]) -> tuple[Losses, list[Tensor]]:
        """Gradients of the mean over all written tokens of the batches; also how often each expert was used."""
        written = sum(batch.num_written for batch in batches)
        parts, loads = [], [torch.zeros(layer.gate.config.n_routed_experts) for layer in self._expert_layers()]
        for batch in batches:
            total, losses = self.objective.losses(stage.name, batch, self.step)
            (total * (batch.num_written / written)).backward()
            parts.append(losses)
            for load, layer in zip(loads, self._expert_layers()):
                assert layer.last_routing is not None
                load += torch.bincount(layer.last_routing.flatten(), minlength=len(load))
        return Losses.mean(parts), loads

    def _balance_experts(self, loads: list[Tensor], rate: float) -> None:
        """Auxiliary-loss-free balancing: the bias of an expert rises while it is used less than the average."""
        for layer, load in zip(self._expert_layers(), loads):
            load = self.ranks.total(load)
            layer.gate.e_score_correction_bias += rate * torch.sign(load.mean() - load)

    def _expert_layers(self) -> list[MoE]:
        layers = self.model.model.layers[: self.model.config.num_hidden_layers]
        return [layer.mlp for layer in layers if isinstance(layer.mlp, MoE)]

    def _groups(self) -> Iterator[dict[str, Any]]:
        for optimizer in self.optimizers:
            yield from optimizer.param_groups

    @torch.no_grad()
    def _evaluate(self, stage: Stage) -> None:
        """Share of held-out demonstrations whose every written token is the likeliest one: greedy decoding would
        reproduce them."""
        if stage.name == "mtp":
            return
        mode: AttentionMode = "sparse" if stage.name != "dense" else "dense"
        exact: Counter[str] = Counter()
        seen: Counter[str] = Counter()
        for number in range(self.evaluation_batches):
            batch = self.held_out.batch(number)
            is_exact = self.objective.is_exact(mode, batch)
            seen.update(batch.kinds)
            exact.update(kind for kind, ok in zip(batch.kinds, is_exact.tolist()) if ok)
        names = [kind.__name__ for kind in self.batches.toolless_kinds or KINDS]
        counts = self.ranks.total(torch.tensor([[exact[name], seen[name]] for name in names], dtype=torch.float32))
        by_kind = {name: f"{int(a)}/{int(b)}" for name, (a, b) in zip(names, counts.tolist()) if b}
        success = float(counts[:, 0].sum() / counts[:, 1].sum())
        self._log({"exact": round(success, 4), "attention": mode, "by_kind": by_kind}, stage)

    def _log(self, values: dict[str, Any], stage: Stage) -> None:
        if self.ranks.rank:
            return
        position = {"stage": stage.name, "step": self.step, "steps": stage.steps, "tokens": self.tokens_seen}
        line = position | {"seconds": round(self.seconds, 1)} | values
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    def _save(self) -> None:
        if self.ranks.rank:
            return
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "position": (self.stage_idx, self.step, self.tokens_seen, self.seconds),
        }
        unfinished = self.folder / "state.pt.tmp"
        torch.save(state, unfinished)
        os.replace(unfinished, self.folder / "state.pt")

    def _resume(self) -> None:
        file = self.folder / "state.pt"
        if not file.exists():
            return
        state = torch.load(file, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.stage_idx, self.step, self.tokens_seen, self.seconds = state["position"]
        if self.stage_idx < len(self.stages):
            self.optimizers = optimizers(self.model, self.stages[self.stage_idx])
            if self.step:
                for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                    optimizer.load_state_dict(saved)


class _Averages:
    """Running means of what a step reports."""

    def __init__(self, decay: float = 0.95) -> None:
        self.decay = decay
        self.values: dict[str, float] = {}

    def add(self, losses: Losses) -> None:
        now = {
            "loss": losses.language,
            "index_loss": losses.index,
            "accuracy": losses.correct / max(losses.written, 1),
        }
        for name, value in now.items():
            before = self.values.get(name, value)
            self.values[name] = self.decay * before + (1 - self.decay) * value

    def summary(self) -> dict[str, float]:
        return {name: round(value, 5) for name, value in self.values.items() if not math.isnan(value)}
