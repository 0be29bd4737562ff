"""How the arithmetic is done must not change what is learned: precision, checkpointing, accumulation, reporters."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.tiny_training import curve, row, save_backbones, save_corpus, tiny_recipe
from transformers.models.llama.modeling_llama import LlamaMLP

from llaso.cli import main
from llaso.training.recipe.recipe import load_recipe
from llaso.training.rows.corpora import open_corpus
from llaso.training.rows.training_rows import plan_of
from llaso.training.run import train as training
from llaso.training.run.distillation import Teacher
from llaso.training.run.train import NORM_ROWS, train
from llaso.training.run.trainer import LlasoTrainer
from modeling_llaso import LlasoForConditionalGeneration
from modeling_llaso.modeling_llaso import LlasoEncoder

STEPS = 4


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compute")
    save_backbones(folder)
    save_corpus(folder / "corpus", {"train": [row(i) for i in range(24)] + [row(i, task="IP") for i in range(8)]})
    save_corpus(folder / "text", {"train": [row(i, task="AQA", clips=0) for i in range(20)]})
    return folder


@pytest.fixture(scope="module")
def plain(root: Path) -> Path:
    """A Stage-2 run as it is without any of the options."""
    return Path(train(stage_2(root, "plain")).out)


def stage_2(root: Path, out: str, **changes: Any) -> dict[str, Any]:
    return tiny_recipe(root, out, train=["projector", "llm"], optimizer__max_steps=STEPS, **changes)


def assert_close_training(one: Path, other: Path, loss: float, norm: float) -> None:
    for first, second in zip(curve(one), curve(other), strict=True):
        assert second[1] == pytest.approx(first[1], rel=loss) and second[2] == pytest.approx(first[2], rel=norm)


def test_bf16_multiplies_in_bf16_and_keeps_weights_and_loss_in_float32(root, plain, monkeypatch):
    seen: set[tuple[str, torch.dtype]] = set()
    compute_loss = LlasoTrainer.compute_loss

    def watched(self, model, inputs, *args, **kwargs):
        inner = self.accelerator.unwrap_model(self.model).model
        for name in ("audio_tower.layers.0.fc1", "multi_modal_projector.linear_1", "language_model.layers.0.mlp"):
            module = inner.get_submodule(name)
            hook = module.register_forward_hook(lambda m, a, out, name=name: seen.add((name, out.dtype)))
            hooks.append(hook)
        loss = compute_loss(self, model, inputs, *args, **kwargs)
        while hooks:
            hooks.pop().remove()
        seen.add(("loss", loss.dtype))
        seen.update(("gradient", p.grad.dtype) for p in model.parameters() if p.grad is not None)
        return loss

    hooks: list[Any] = []
    monkeypatch.setattr(LlasoTrainer, "compute_loss", watched)
    out = Path(train(stage_2(root, "bf16", compute__precision="bf16")).out)
    assert {name for name, dtype in seen if dtype == torch.bfloat16} == {
        "audio_tower.layers.0.fc1",
        "multi_modal_projector.linear_1",
        "language_model.layers.0.mlp",
    }
    assert {name for name, dtype in seen if dtype == torch.float32} == {"loss", "gradient"}
    assert_close_training(plain, out, loss=0.02, norm=0.1)
    assert [a[1] for a in curve(out)] != [b[1] for b in curve(plain)]
    model = LlasoForConditionalGeneration.from_pretrained(out, dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("lora", [0, 2], ids=["projector", "lora"])
def test_frozen_weights_are_held_in_bf16_and_learned_ones_in_float32(root, monkeypatch, lora):
    changes: dict[str, Any] = {"compute__precision": "bf16"}
    if lora:
        changes |= {"train": ["projector", "llm"], "lora": {"rank": lora}}
    wide = Path(train(tiny_recipe(root, f"wide{lora}", optimizer__max_steps=STEPS, **changes)).out)

    held: set[tuple[str, bool, torch.dtype]] = set()
    moments: set[torch.dtype] = set()
    record_step = LlasoTrainer._record_step

    def watched(self, grad_norm):
        for name, parameter in self.model.named_parameters():
            held.add((name.split(".")[1], parameter.requires_grad, parameter.dtype))
        moments.update(value.dtype for state in self.optimizer.state.values() for value in state.values())
        record_step(self, grad_norm)

    monkeypatch.setattr(LlasoTrainer, "_record_step", watched)
    changes |= {"optimizer__max_steps": STEPS, "compute__frozen_weights": "bf16"}
    out = Path(train(tiny_recipe(root, f"narrow{lora}", **changes)).out)
    frozen, learned = torch.bfloat16, torch.float32
    assert {(part, dtype) for part, learns, dtype in held if learns} == {
        (part, learned)
        for part in (["multi_modal_projector", "language_model"] if lora else ["multi_modal_projector"])
    }
    assert {(part, dtype) for part, learns, dtype in held if not learns} == {
        ("audio_tower", frozen),
        ("language_model", frozen),
    }
    assert moments == {learned}
    assert_close_training(wide, out, loss=0.02, norm=0.1)
    exported, whole = (load_file(folder / "model.safetensors") for folder in (out, wide))
    for name, tensor in exported.items():
        merged = lora and "_proj" in name and "language_model" in name
        assert tensor.dtype == (learned if "projector" in name or merged else frozen), name
        if tensor.dtype == frozen:
            assert torch.equal(tensor, whole[name].to(frozen)), name
    loaded = LlasoForConditionalGeneration.from_pretrained(out).state_dict()
    assert all(torch.equal(loaded[name], tensor.float()) for name, tensor in exported.items())


@pytest.mark.parametrize("parts", [["projector"], ["projector", "llm"]], ids=["stage1", "stage2"])
def test_gradient_checkpointing_keeps_less_computes_again_and_learns_the_same(root, tmp_path, monkeypatch, parts):
    kept, outs, computed = {}, {}, {}
    layer_forward = LlamaMLP.forward
    for checkpointing in (False, True):
        sizes: list[int] = []
        calls: list[bool] = []

        def counted(self, *args, calls: list[bool] = calls):
            calls.append(torch.is_grad_enabled())
            return layer_forward(self, *args)

        monkeypatch.setattr(LlamaMLP, "forward", counted)

        def keep(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        recipe = stage_2(root, "unused", compute__gradient_checkpointing=checkpointing) | {"train": parts}
        recipe["out"] = str(tmp_path / str(checkpointing))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outs[checkpointing] = Path(train(recipe).out)
        kept[checkpointing], computed[checkpointing] = sum(sizes), len(calls)
        assert all(calls)
    layers, micro_batches = 2, 2 * STEPS
    assert computed == {False: layers * micro_batches, True: 2 * layers * micro_batches}
    assert kept[True] < 0.6 * kept[False]
    assert_close_training(outs[False], outs[True], loss=1e-6, norm=1e-5)


@pytest.mark.parametrize("padding", ["full", "trim"])
def test_the_encoder_reads_whole_windows_in_full_and_the_recording_in_trim(root, monkeypatch, padding):
    read: list[tuple[int, ...]] = []
    forward = LlasoEncoder.forward

    def watched(self, input_features, *args, **kwargs):
        read.append(tuple(input_features.shape))
        return forward(self, input_features, *args, **kwargs)

    monkeypatch.setattr(LlasoEncoder, "forward", watched)
    train(tiny_recipe(root, f"read-{padding}", optimizer__max_steps=2, model__audio_padding=padding))
    norms, *micro_batches = read  # the norms of projected audio are measured on a few rows before the first step
    assert norms[0] == NORM_ROWS
    assert len(micro_batches) == 4 and {windows for windows, _, _ in micro_batches} == {4}
    frames = {frames for _, _, frames in micro_batches}
    if padding == "full":
        assert frames == {3000}
    else:  # the longest clip of each batch
        longest = max(row(i, task=task)["duration"] for task, rows in (("ASR", 24), ("IP", 8)) for i in range(rows))
        assert len(frames) > 1 and max(frames) <= 100 * longest + 1


def test_an_exported_model_answers_as_its_adapters_did(root, monkeypatch):
    answers: list[torch.Tensor] = []
    batches: list[dict[str, Any]] = []
    export = training.export

    def noted(trainer, folder):
        batch = trainer.data_collator([row(0), row(1)])
        batches.append({name: value for name, value in batch.items() if name.startswith(("input", "attention"))})
        with torch.no_grad():
            answers.append(trainer.model.eval()(**batches[0]).logits)
        assert any("lora_B" in name and p.any() for name, p in trainer.model.named_parameters())
        export(trainer, folder)

    monkeypatch.setattr(training, "export", noted)
    out = train(stage_2(root, "merged", lora={"rank": 4}, optimizer__learning_rate=0.03)).out
    model = LlasoForConditionalGeneration.from_pretrained(out).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(**batches[0]).logits, answers[0], rtol=1e-4, atol=1e-4)


def test_a_teacher_in_bf16_teaches_what_one_in_float32_does(root, monkeypatch):
    """The student's LLM learns, so the teacher is a copy, which does not."""
    teachers: set[torch.dtype] = set()
    divergence = Teacher.divergence

    def watched(self, *args):
        teachers.update(parameter.dtype for parameter in self.language_model.parameters())
        return divergence(self, *args)

    monkeypatch.setattr(Teacher, "divergence", watched)
    outs = []
    for weights in ("fp32", "bf16"):
        changes = {"compute__precision": "bf16", "compute__frozen_weights": weights}
        outs.append(Path(train(stage_2(root, f"taught-{weights}", optimizer__distill_weight=0.5, **changes)).out))
        assert teachers == {torch.float32 if weights == "fp32" else torch.bfloat16}
        teachers.clear()
    assert_close_training(*outs, loss=0.02, norm=0.1)


def test_accumulated_micro_batches_are_one_large_batch(root, tmp_path):
    """In token normalization, in which rows of many answer tokens weigh as much as they would side by side."""
    rows_of_a_step = [row(number, seed=3) for number in range(8)]
    assert len({len(one["target"].split()) for one in rows_of_a_step}) > 3
    corpus, outs = save_corpus(tmp_path / "corpus", {"train": rows_of_a_step}), []
    for rows, micro_batches in ((2, 4), (8, 1)):
        recipe = stage_2(root, "unused", data__path=str(corpus))
        recipe["batch"] |= {"per_device": rows, "accumulation": micro_batches}
        recipe["out"] = str(tmp_path / str(rows))
        outs.append(Path(train(recipe).out))
    assert_close_training(*outs, loss=1e-5, norm=1e-4)
    answers = [
        [json.loads(line)["answer_tokens"] for line in (out / "history.jsonl").read_text().splitlines()]
        for out in outs
    ]
    assert answers[0] == answers[1] and len(answers[0]) == STEPS


def test_the_attention_asked_for_is_used_and_learns_the_same(root, plain, monkeypatch):
    used = set()
    compute_loss = LlasoTrainer.compute_loss

    def watched(self, *args, **kwargs):
        config = self.model.config
        used.add((config.audio_config._attn_implementation, config.text_config._attn_implementation))
        return compute_loss(self, *args, **kwargs)

    monkeypatch.setattr(LlasoTrainer, "compute_loss", watched)
    out = Path(train(stage_2(root, "eager", compute__attention="eager")).out)
    assert used == {("eager", "eager")}
    assert_close_training(plain, out, loss=1e-5, norm=1e-4)


def test_an_encoder_that_is_named_learns(root, plain):
    out = Path(train(stage_2(root, "unfrozen") | {"train": ["encoder", "projector", "llm"]}).out)
    frozen, learned = (load_file(folder / "model.safetensors") for folder in (plain, out))
    moved = {name for name in frozen if "audio_tower" in name and not torch.equal(frozen[name], learned[name])}
    still = {name for name in frozen if "audio_tower" in name} - moved
    assert len(moved) > 10 and all("embed_positions" in name or "k_proj.bias" in name for name in still)


def test_text_rows_are_mixed_in_at_their_share(root):
    recipe = load_recipe(tiny_recipe(root, "unused", data__text_path=str(root / "text"), data__text_share=0.25))
    corpus = open_corpus(recipe.data)
    plan = plan_of(recipe, corpus, 1)
    numbers = [chain.from_iterable(chain.from_iterable(plan.epoch(epoch))) for epoch in range(2)]
    epochs = [[corpus[int(number)]["id"] for number in of_epoch] for of_epoch in numbers]
    for ids in epochs:
        text = [row_id for row_id in ids if row_id.startswith("aqa")]
        assert len(ids) == len(set(ids))
        assert len(text) / len(ids) == pytest.approx(0.25, abs=0.02)
        assert len(ids) - len(text) == 32  # every row with audio, once
    assert sorted(epochs[0]) != sorted(epochs[1])  # other text rows each epoch


TRACKIO = '''
"""What transformers' TrackioCallback calls, writing what it is told to a file."""
import json, os, types

__version__ = "0.43.0"
context_vars = types.SimpleNamespace(current_space_id=types.SimpleNamespace(get=lambda: None))
config = {}
def _note(kind, content):
    if "NOTES" in os.environ:  # the module stays loaded after its test
        with open(os.environ["NOTES"], "a") as file:
            file.write(json.dumps([kind, content]) + "\\n")
class _Config(dict):
    def update(self, values, **kwargs):
        super().update(values)
config = _Config()
def init(**kwargs):
    _note("init", {key: kwargs[key] for key in ("project", "name")})
def log(values):
    _note("log", values)
def finish():
    _note("finish", {})
'''


def test_trackio_is_the_reporter_where_it_is_installed(root, tmp_path, monkeypatch):
    """A stand-in package, found as the real one would be; with the real one, `pip install 'llaso[watch]'`."""
    (tmp_path / "trackio").mkdir()
    (tmp_path / "trackio" / "__init__.py").write_text(TRACKIO)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("NOTES", str(tmp_path / "notes.jsonl"))
    train(stage_2(root, "silent"))
    assert not (tmp_path / "notes.jsonl").exists()  # reporters: [none]
    train(stage_2(root, "watched") | {"watch": {"log_every": 2}})
    notes = [json.loads(line) for line in (tmp_path / "notes.jsonl").read_text().splitlines()]
    assert notes[0] == ["init", {"project": "llaso", "name": "watched"}] and notes[-1] == ["finish", {}]
    logged = [values for kind, values in notes if kind == "log" and "train/loss" in values]
    assert [values["train/global_step"] for values in logged] == [2, 4]
    assert {"train/loss", "train/loss_ASR", "train/loss_IP", "train/padding"} <= logged[0].keys()


def test_the_command_ends_bad_input_with_one_line_and_code_2(root, tmp_path, capfd):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(stage_2(root, "never")))
    for setting, message in (
        ("batch.per_devise=3", "no setting `batch.per_devise`; the nearest is `batch.per_device`"),
        ("data.path=./nowhere", "no corpus at ./nowhere; build it with `llaso data build`"),
        (f"model.checkpoint={root / 'llm'}", "is a llama model, not a LLaSO one"),
    ):
        assert main(["train", str(recipe), "--set", setting]) == 2
        error = capfd.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("llaso: error: ") and message in error
    assert not any((root / "never").glob("*"))
