"""Training uses the runtime's own encoding and model: batches say what the agent will say, and runs resume exactly."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from v32.agent.tasks.kinds import KINDS, own_tool
from v32.agent.tasks.slips import with_slip
from v32.agent.tasks.task import Toolset
from v32.agent.tasks.toolsets import record_tools
from v32.agent.training.batches import IGNORED, Batches, PackedBatch
from v32.agent.training.demonstrations import Demonstration, conversation, demonstrate, preamble, system_message
from v32.agent.training.muon import orthogonalize
from v32.agent.training.offer import builtin_specs
from v32.agent.training.packed_attention import AttentionMode, PackedAttention
from v32.agent.training.stage import Stage
from v32.agent.training.trainer import Trainer
from v32.kernels.index_score import index_score
from v32.model_runtime.encoding import encode_messages
from v32.model_runtime.encoding.tokenizer import ChatTokenizer
from v32.model_runtime.model.attention import AttentionInputs, FullAttention
from v32.model_runtime.model.mla import MLA
from v32.model_runtime.model.transformer import DeepseekV32ForCausalLM


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_demonstration_is_the_official_prompt(kind, small_tokenizer: ChatTokenizer) -> None:  # type: ignore[no-untyped-def]
    random = Random(4)
    task = kind(random, "train", Toolset(("search", "python"), record_tools(random, 1)))
    specs = builtin_specs(("search", "python"))
    ids = preamble(specs, small_tokenizer, "Be brief.") + demonstrate(task, small_tokenizer).token_ids
    messages = [system_message(specs, "Be brief."), *conversation(task)]
    assert small_tokenizer.decode(ids) == encode_messages(messages, "thinking")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_model_writes_the_last_turn_and_nothing_else(kind, small_tokenizer: ChatTokenizer) -> None:  # type: ignore[no-untyped-def]
    random = Random(9)
    task = kind(random, "train", Toolset(("search", "python"), record_tools(random, 1)))
    demo = demonstrate(task, small_tokenizer)
    turn, text = task.turns[-1], small_tokenizer.decode(_written(demo))
    assert all(step.reasoning in text for step in turn.steps)
    assert text.endswith(f"{turn.reasoning}</think>{turn.answer}<｜end▁of▁sentence｜>")
    assert "<function_results>" not in text
    assert turn.question not in text


def test_a_slip_is_shown_and_not_taught(small_tokenizer: ChatTokenizer) -> None:
    random = Random(9)
    task = own_tool(random, "train", Toolset((), record_tools(random, 2)))
    slipped = demonstrate(with_slip(random, task), small_tokenizer)
    plain = demonstrate(task, small_tokenizer)
    assert len(slipped.token_ids) > len(plain.token_ids)
    assert _written(slipped) == _written(plain)


def _written(demo: Demonstration) -> list[int]:
    return [token for token, is_written in zip(demo.token_ids, demo.is_written) if is_written]


def test_a_batch_depends_on_its_number_alone(small_tokenizer: ChatTokenizer) -> None:
    first, again = Batches(small_tokenizer, 7), Batches(small_tokenizer, 7)
    again.batch(1)
    assert torch.equal(first.batch(3).input_ids, again.batch(3).input_ids)
    other_rank = Batches(small_tokenizer, 7, rank=1).batch(3)
    assert first.batch(3).kinds != other_rank.kinds or not torch.equal(first.batch(3).input_ids, other_rank.input_ids)


@pytest.mark.slow
def test_a_step_averages_over_builtin_and_record_tools(small_tokenizer: ChatTokenizer) -> None:
    batches = Batches(small_tokenizer, 0)
    steps = [[set(batch.kinds) for batch in batches.step(number)] for number in range(6)]
    builtin = set().union(*(first for first, *_ in steps))
    records = set().union(*(kinds for _, *others in steps for kinds in others))
    assert {"lookup", "arithmetic"} <= builtin
    assert not builtin & {"own_tool", "error_retry"}
    assert {"own_tool", "error_retry"} <= records


def test_each_dialogue_of_a_batch_can_have_tools_of_its_own(small_tokenizer: ChatTokenizer) -> None:
    """Listed as the preamble lists them, from its last control token on; one of them is called. Some have none."""
    batches = [Batches(small_tokenizer, 0, tokens=6000).step(number)[2] for number in range(6)]
    assert all(batch.prefix_ids.tolist() == [small_tokenizer.bos_id] for batch in batches)
    all_texts = [small_tokenizer.decode(row.tolist()) for batch in batches for row in batch.input_ids]
    texts = [text for text in all_texts if "<functions>" in text]
    assert len(texts) < len(all_texts)
    offers = [text.partition("<functions>\n")[2].partition("\n</functions>")[0] for text in texts]
    assert len(set(offers)) == len(offers) > 1
    for text, offer in zip(texts, offers):
        called = text.partition('invoke name="')[2].partition('"')[0]
        assert called in [json.loads(line)["name"] for line in offer.splitlines()]
        assert text[: text.index("<｜User｜>")] in encode_messages([_offering(offer)], "thinking")


def test_a_choice_among_tools_ends_with_the_first_call(small_tokenizer: ChatTokenizer) -> None:
    for batch in Batches(small_tokenizer, 0, tokens=6000).step(0)[3:]:
        offered = small_tokenizer.decode(batch.prefix_ids.tolist())
        called = set()
        for row in batch.input_ids:
            text, _, padding = small_tokenizer.decode(row.tolist()).partition("<｜end▁of▁sentence｜>")
            assert text.endswith("</｜DSML｜function_calls>")
            assert not padding.replace("<｜end▁of▁sentence｜>", "")
            called.add(text.partition('invoke name="')[2].partition('"')[0])
        assert all(f'{{"name": "{name}"' in offered for name in called)
        assert len(called) > 1


def _offering(listed: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": json.loads(line)} for line in listed.splitlines()]
    return {"role": "system", "content": "", "tools": tools}


def test_labels_are_the_next_tokens(small_tokenizer: ChatTokenizer) -> None:
    batch = Batches(small_tokenizer, 0).batch(2)
    is_target = batch.labels[:, :-1] != IGNORED
    assert is_target.any()
    assert torch.equal(batch.labels[:, :-1][is_target], batch.input_ids[:, 1:][is_target])


@pytest.mark.parametrize("mode", ["dense", pytest.param("sparse", marks=pytest.mark.slow)])
def test_packed_attention_equals_each_dialogue_alone(
    mode: AttentionMode, small_tokenizer: ChatTokenizer, small_model: DeepseekV32ForCausalLM
) -> None:
    batch = Batches(small_tokenizer, 0, tokens=700).batch(0)
    prefix, (count, length) = len(batch.prefix_ids), batch.input_ids.shape
    positions = torch.cat((torch.arange(prefix), torch.arange(prefix, prefix + length).repeat(count)))
    attention = _Compared(_packed(batch, mode, small_model.config.index_topk))
    with torch.no_grad():
        small_model(torch.cat((batch.prefix_ids, batch.input_ids.flatten())), positions, attention)
    assert attention.num_layers == small_model.config.num_hidden_layers
    assert min(attention.compared) > 0.95


class _Compared:
    """Holds each layer's packed output against `FullAttention` of every dialogue alone, on the same inputs.

    Left out are queries whose border of the top-k rounding can move; `compared` is the share that is not.
    """

    def __init__(self, packed: PackedAttention) -> None:
        self.packed, self.num_layers = packed, 0
        self.compared: list[float] = []
        self.needs_index_queries = packed.needs_index_queries

    def __call__(self, layer_idx: int, mla: MLA, inputs: AttentionInputs) -> Tensor:
        packed = self.packed
        out = packed(layer_idx, mla, inputs)
        self.num_layers += 1
        topk = packed.index_topk if packed.mode == "sparse" else 10**6
        for row in range(packed.batch):
            own = torch.arange(packed.length) + packed.prefix + row * packed.length
            rows = torch.cat((torch.arange(packed.prefix), own))
            alone = AttentionInputs(*(None if part is None else part[rows] for part in inputs))
            is_certain = _has_clear_border(alone, topk)
            expected = FullAttention([len(rows)], topk)(layer_idx, mla, alone)
            assert torch.allclose(out[rows][is_certain], expected[is_certain], atol=1e-4)
            self.compared.append(is_certain.float().mean().item())
        return out


def _has_clear_border(inputs: AttentionInputs, topk: int) -> Tensor:
    """For each query: the last chosen and the first rejected score are further apart than rounding."""
    length = len(inputs.latent)
    if length <= topk:
        return torch.ones(length, dtype=torch.bool)
    assert inputs.index_q is not None
    assert inputs.index_weights is not None
    scores = index_score(inputs.index_q, inputs.index_k, inputs.index_weights)
    scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -torch.inf)
    ranked = scores.sort(dim=-1, descending=True).values
    return ~((ranked[:, topk - 1] - ranked[:, topk]).abs() < 1e-5)


@pytest.mark.slow
def test_warmup_teaches_only_the_indexer_and_lowers_its_loss(
    small_tokenizer: ChatTokenizer, small_model: DeepseekV32ForCausalLM, tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in small_model.state_dict().items()}
    stage = Stage("warmup", 20, muon_lr=0.0, adam_lr=5e-3, warm_steps=2)
    trainer = Trainer(
        small_model, small_tokenizer, tmp_path, [stage], tokens=256, evaluate_every=100, evaluation_batches=1
    )
    batch = trainer.held_out.batch(0)
    untaught = trainer.objective.losses("warmup", batch)[1].index
    trainer.run()
    assert trainer.objective.losses("warmup", batch)[1].index < untaught
    changed = {name for name, value in small_model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(".indexer." in name for name in changed)


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(
    small_tokenizer: ChatTokenizer, small_model: DeepseekV32ForCausalLM, tmp_path: Path
) -> None:
    def run(folder: Path, steps: int) -> DeepseekV32ForCausalLM:
        folder.mkdir(exist_ok=True)
        stage = Stage("dense", 6, muon_lr=0.01, adam_lr=1e-3, lesson_steps=3)
        model = copy.deepcopy(small_model)
        trainer = Trainer(
            model, small_tokenizer, folder, [stage], tokens=256, save_every=3, evaluate_every=99, evaluation_batches=1
        )
        for _ in range(steps - trainer.step):
            trainer._train_step(stage)
            trainer.step += 1
            if trainer.step == 3:
                trainer._save()
        return model

    straight = run(tmp_path / "straight", 6)
    run(tmp_path / "cut", 3)
    resumed = run(tmp_path / "cut", 6)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.slow
def test_the_log_has_one_json_object_a_line(
    small_tokenizer: ChatTokenizer, small_model: DeepseekV32ForCausalLM, tmp_path: Path
) -> None:
    stages = [Stage("sparse", 2, 1e-3, 1e-3), Stage("mtp", 2, 1e-3, 1e-3)]
    Trainer(small_model, small_tokenizer, tmp_path, stages, tokens=256, evaluate_every=2, evaluation_batches=1).run()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines if "exact" in line] == ["sparse"]


def test_orthogonalized_matrices_have_singular_values_near_one() -> None:
    matrices = torch.randn(3, 24, 40, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrices))
    assert ((values > 0.5) & (values < 1.3)).all()


def _packed(batch: PackedBatch, mode, topk: int) -> PackedAttention:  # type: ignore[no-untyped-def]
    return PackedAttention(len(batch.prefix_ids), *batch.input_ids.shape, mode=mode, index_topk=topk)
