"""What `--dry-run` says of a run is what the run then does: parameters, steps, arithmetic and memory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_training import row, save_backbones, save_corpus, tiny_recipe
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaForCausalLM, WhisperModel

from llaso.training.cost.dry_run import config_of, dry_run, weigh
from llaso.training.cost.flops import COMPETING, ENCODER, LLM, LOGITS, BatchShape
from llaso.training.recipe.recipe import Recipe, load_recipe
from llaso.training.rows.collator import IGNORED, Collator, RowEncoder
from llaso.training.rows.corpora import open_corpus
from llaso.training.rows.training_rows import TrainingRows, plan_of
from llaso.training.run.history import History, read_history
from llaso.training.run.model_setup import freeze_all_but, open_model, set_up_parts
from llaso.training.run.operator_counter import COPIES, OperatorCounter
from llaso.training.run.train import train
from llaso.training.run.trainer import LlasoTrainer
from modeling_llaso.compatibility_llaso import checkpoint_activations


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dry")
    save_backbones(folder)
    save_corpus(folder / "corpus", {"train": [row(i) for i in range(12)] + [row(i, task="IP") for i in range(8)]})
    return folder


def one_step(recipe: Recipe, out: Path, counting: Any) -> BatchShape:
    """A real forward and backward pass over four rows of almost one length, inside `counting`; that batch's shape."""
    model, processor = open_model(recipe)
    frozen = set_up_parts(model, recipe)
    corpus = open_corpus(recipe.data, processor)
    rows = TrainingRows(
        corpus=corpus,
        plan=plan_of(recipe, corpus, 1),
        held_out=[],
        steps=1,
        collator=Collator(RowEncoder(processor, 2048), packing=recipe.batch.packing),
        cache=None,
    )
    trainer = LlasoTrainer(model, recipe, processor, rows, frozen, History(out / "history.jsonl"))
    first, second = corpus.lengths.argsort()[
        -2:
    ].tolist()  # not all alike, so that padding is masked as it is in a run
    batch = trainer.data_collator([corpus[number] for number in (second, second, second, first)])
    if recipe.compute.gradient_checkpointing:
        checkpoint_activations(model)
    model = trainer.accelerator.prepare_model(model)
    model.train()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    answers = batch["shift_labels"] != IGNORED
    with counting(model):
        loss = trainer.compute_loss(model, batch, num_items_in_batch=answers.sum())
        loss.backward()
    packed = batch.get("packed")
    one = slice(packed["row_lengths"][0] if packed else None)  # the first row
    is_audio = batch["input_ids"][0, one] == processor.audio_token_id
    return BatchShape(
        rows=4,
        text=int((~is_audio).sum()),
        answers=int(answers[0, one].sum()),
        windows=4,
        frames=packed["window_frames"][0] if packed else batch["input_features"].shape[-1],
        packed=bool(packed),
    )


CHANGES: dict[str, dict[str, Any]] = {
    "stage 1": {},
    "stage 1, checkpointed": {"compute__gradient_checkpointing": True},
    "stage 1, full windows, stride 2": {"model__audio_padding": "full", "model__projector_stride": 2},
    "stage 2": {"train": ["projector", "llm"]},
    "stage 2, checkpointed": {"train": ["projector", "llm"], "compute__gradient_checkpointing": True},
    "stage 2, all logits": {"train": ["projector", "llm"], "compute__answer_only_logits": False},
    "encoder, too": {"train": ["encoder", "projector", "llm"]},
    "stage 2, loss in chunks": {"train": ["projector", "llm"], "compute__loss_chunk": 5},
    "lora": {"train": ["projector", "llm"], "lora": {"rank": 2}},
}


@pytest.mark.parametrize("name", CHANGES)
def test_arithmetic_is_what_torch_counts_in_a_real_step(root, tmp_path, name):
    recipe = load_recipe(tiny_recipe(root, "unused", compute__attention="eager", **CHANGES[name]))
    counter = FlopCounterMode(display=False)
    shape = one_step(recipe, tmp_path, lambda model: counter)
    _, counted = weigh(recipe, config_of(recipe), shape)
    assert counted.flops.total() == pytest.approx(counter.get_total_flops(), rel=0.01)
    fused = load_recipe(recipe, ["compute.attention=sdpa"])  # whose products PyTorch does not count on a CPU
    assert weigh(fused, config_of(fused), shape)[1].flops.total() == pytest.approx(counted.flops.total(), rel=0.02)


@pytest.mark.parametrize(
    "name", [name for name in CHANGES if name.startswith("stage 2") or name in ("stage 1", "lora")]
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_memory_is_what_a_real_step_holds(root, tmp_path, name, precision):
    recipe = load_recipe(tiny_recipe(root, "unused", **CHANGES[name]))
    recipe = load_recipe(recipe, [f"compute.precision={precision}", f"compute.frozen_weights={precision}"])
    real: list[OperatorCounter] = []

    def holding(model):
        real.append(OperatorCounter(model))
        return real[0].on("step")

    shape = one_step(recipe, tmp_path, holding)
    parts, counted = weigh(recipe, config_of(recipe), shape)
    assert counted.peak.total() == pytest.approx(real[0].peak.total(), rel=0.1)
    model, _ = open_model(recipe)
    freeze_all_but(model, recipe.train)
    if not recipe.lora.rank:
        held = sum(p.numel() * (4 if p.requires_grad or precision == "fp32" else 2) for p in model.parameters())
        assert sum(part.weight_bytes for part in parts) == held


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("parts", [["projector"], ["encoder", "projector", "llm"]], ids=["stage 1", "all"])
def test_packed_rows_cost_what_a_real_step_costs(root, tmp_path, parts, attention):
    recipe = load_recipe(tiny_recipe(root, "unused", train=parts, compute__attention=attention, batch__packing=True))
    real: list[OperatorCounter] = []

    def counting(model):
        real.append(OperatorCounter(model))
        return real[0].on("step")

    shape = one_step(recipe, tmp_path, counting)
    assert shape.packed
    _, counted = weigh(recipe, config_of(recipe), shape)
    assert counted.flops.total() == pytest.approx(real[0].flops.total(), rel=0.03)  # the rows are not all alike
    assert counted.peak.total() == pytest.approx(real[0].peak.total(), rel=0.1)


def test_the_dry_run_counts_what_each_setting_saves_in_memory(root):
    recipe = load_recipe(tiny_recipe(root, "unused", train=["projector", "llm"]))
    config, shape = config_of(recipe), BatchShape(4, 60, 12, 4, 3000)

    def peak(*changes: str) -> OperatorCounter:
        return weigh(load_recipe(recipe, changes), config, shape)[1]

    plain = peak()
    assert peak("compute.gradient_checkpointing=true").peak[LLM] < 0.2 * plain.peak[LLM]
    assert not plain.peak[COPIES] and peak("compute.precision=bf16").peak[COPIES]
    config.text_config.vocab_size = config.audio_token_id = 30_000
    few, all_of_them = peak(), peak("compute.answer_only_logits=false")
    assert all_of_them.flops[LOGITS] == (60 + 1500) / 12 * few.flops[LOGITS]
    assert all_of_them.peak[LOGITS] >= 4 * (60 + 1500) * 30_000 * 4 and few.peak.total() < all_of_them.peak.total() / 4
    assert few.peak[LOGITS] >= 4 * 12 * 30_000 * 4 and few.flops == peak("compute.loss_chunk=48").flops
    chunks = peak("compute.loss_chunk=12")
    assert chunks.peak.total() < few.peak.total() and chunks.peak[LOGITS] < few.peak[LOGITS] / 2
    teacher = ("compute.loss_chunk=12", "optimizer.distill_weight=0.5")
    assert peak(*teacher).peak == few.peak  # it needs all logits
    config.audio_padding = "trim"
    short = weigh(recipe, config, BatchShape(4, 60, 12, 4, 300))[1]
    assert short.flops[ENCODER] < 0.1 * plain.flops[ENCODER]


def test_full_recipes_are_weighed_without_weights_data_or_network():
    align, instruct = dry_run("stage1_align"), dry_run("stage2_instruct")
    assert [(part.name, part.parameters) for part in align.parts] == [
        ("encoder", 636_968_960),
        ("projector", 13_375_488),
        ("llm", 3_212_765_184),
    ]
    assert [part.trainable for part in align.parts] == [0, 13_375_488, 0]
    assert [part.trainable for part in instruct.parts] == [0, 13_375_488, 3_212_765_184]
    assert (align.batch, align.steps) == (64, 187_500)
    assert (instruct.batch, instruct.steps) == (32, 421_875)
    assert not align.measured and align.tokens == 12_000_000 * 1600
    assert align.memory["weights"] == 4 * 13_375_488 + 2 * (636_968_960 + 3_212_765_184)
    assert instruct.memory["weights"] == 4 * (13_375_488 + 3_212_765_184) + 2 * 636_968_960
    assert instruct.memory["Adam's moments"] == 8 * (13_375_488 + 3_212_765_184)
    # By hand, a token: two FLOPs a weight for each pass, and attention's products with 1600 others.
    weights, attention = 2 * (3_212_765_184 - 128_261 * 3072), 28 * 4 * 1600 * 3072
    encoder = (2 * 635_048_960 + 32 * 4 * 1500 * 1280) * 1500 / 1600
    not_again = 2 * 28 * 8192 * 3072  # a checkpointed layer's last product, which its backward pass does not need
    assert align.flops / align.tokens == pytest.approx(2 * weights + 3 * attention + encoder, rel=0.02)
    both = 4 * weights + 4 * attention - not_again + encoder
    assert instruct.flops / instruct.tokens == pytest.approx(both, rel=0.02)
    trimmed = dry_run("stage1_align", ["model.audio_padding=trim"])
    assert trimmed.tokens == 12_000_000 * 600 and trimmed.flops < 0.4 * align.flops
    with pytest.raises(ValueError, match="--dry-run reads no Hub"):
        dry_run("stage1_align", ["model.llm=somewhere/else"])
    with pytest.raises(ValueError, match="data.seconds_per_row and data.text_tokens_per_row"):
        dry_run("stage1_align", ["data.rows=0"])


def test_rows_tokens_and_steps_are_those_of_the_run(root):
    """With a budget of tokens, so that steps hold different numbers of rows."""
    recipe = tiny_recipe(root, "run", batch__max_tokens=400, optimizer__max_steps=0, optimizer__epochs=2)
    estimate = dry_run(load_recipe(recipe))
    result = train(recipe)
    assert estimate.measured and estimate.rows == 20 and estimate.steps == result.steps
    records = [r for r in read_history(Path(result.out) / "history.jsonl") if r["kind"] == "step"]
    assert 2 * estimate.tokens == pytest.approx(sum(record["tokens"] for record in records), rel=0.1)
    assert "20 (read from the corpus)" in "\n".join(estimate.lines())


@pytest.mark.parametrize("padding", ["full", "trim"])
def test_text_alone_is_weighed_too(root, tmp_path, padding):
    rows = [row(i, task="AQA", clips=0) for i in range(16)]
    save_corpus(tmp_path / "corpus", {"train": rows})
    recipe = tiny_recipe(root, "unused", data__path=str(tmp_path / "corpus"), model__audio_padding=padding)
    estimate = dry_run(load_recipe(recipe))
    assert estimate.flops > 0 and estimate.tokens / estimate.rows < 500  # a window of audio alone is 1500


def test_the_dry_run_says_which_model_its_sizes_are_of(root, tmp_path):
    recipe = load_recipe(tiny_recipe(root, "unused"))
    assert dry_run(recipe).lines()[0] == f"sizes of {root / 'encoder'} and {root / 'llm'}"
    model, processor = open_model(recipe)
    later = load_recipe(recipe, [f"model.checkpoint={tmp_path / 'stage1'}"])
    assert f"{tmp_path / 'stage1'} is not at hand" in dry_run(later).lines()[0]
    model.save_pretrained(tmp_path / "stage1")
    processor.save_pretrained(tmp_path / "stage1")
    assert dry_run(later).lines()[0] == f"sizes of {tmp_path / 'stage1'}"
    with pytest.raises(ValueError, match="is a llama model, not a LLaSO one"):
        dry_run(recipe, [f"model.checkpoint={root / 'llm'}"])


def test_weights_are_weighed_as_they_are_trained_not_as_they_are_stored(root, tmp_path):
    recipe = load_recipe(tiny_recipe(root, "unused"))
    for name, kind in (("encoder", WhisperModel), ("llm", LlamaForCausalLM)):
        shutil.copytree(root / name, tmp_path / name)
        kind.from_pretrained(root / name, dtype=torch.float16).save_pretrained(tmp_path / name)
    halves = load_recipe(recipe, [f"model.encoder={tmp_path / 'encoder'}", f"model.llm={tmp_path / 'llm'}"])
    assert config_of(halves).text_config.dtype == torch.float16
    assert dry_run(halves).memory["weights"] == dry_run(recipe).memory["weights"]


def test_without_the_llm_a_step_costs_the_encoder_and_the_projector(root):
    recipe = load_recipe(tiny_recipe(root, "unused"))
    config, shape = config_of(recipe), BatchShape(4, 60, 12, 4, 3000)
    answers, aligned = (
        weigh(load_recipe(recipe, [f"optimizer.ctc_weight={weight}"]), config, shape)[1] for weight in (0, 1)
    )
    assert aligned.flops[ENCODER] == answers.flops[ENCODER]
    width, vectors = config.text_config.hidden_size, 4 * 1500
    assert aligned.flops[LLM] == 2 * vectors * width * (config.audio_config.d_model + width) < answers.flops[LLM]
    assert aligned.flops[LOGITS] == 2 * vectors * width * min(COMPETING, config.text_config.vocab_size)
