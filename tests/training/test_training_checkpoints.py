"""Checkpoints of what learns, rates of parts, settings changed on resume, loss in chunks, seconds of a step."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_training import curve, row, save_backbones, save_corpus, tiny_recipe, weights_digest
from torch import nn
from transformers import WhisperModel

from llaso.training.recipe.recipe import load_recipe
from llaso.training.rows.training_rows import set_up_rows
from llaso.training.run import checkpoints
from llaso.training.run import trainer as trainer_module
from llaso.training.run.background_save import BackgroundSave, WaitForSave
from llaso.training.run.callbacks import time_shares
from llaso.training.run.checkpoints import FROZEN, WEIGHTS
from llaso.training.run.history import History, read_history
from llaso.training.run.model_setup import open_model, part_of, set_up_parts
from llaso.training.run.operator_counter import OperatorCounter
from llaso.training.run.step_timer import StepTimer
from llaso.training.run.train import train
from llaso.training.run.trainer import LlasoTrainer
from modeling_llaso import LlasoForConditionalGeneration

STEPS = 6


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    save_backbones(folder)
    save_corpus(folder / "corpus", {"train": [row(i) for i in range(16)]})
    return folder


def recipe_for(root: Path, out: str, **changes: Any) -> dict[str, Any]:
    return tiny_recipe(root, out, optimizer__max_steps=STEPS, **changes)


def train_until(recipe: dict[str, Any], step: int, **settings: Any) -> Path:
    """Train and stop by a signal during the step after `step`; returns the checkpoint that is left."""

    def ask_to_stop(line: str) -> None:
        if line.startswith(f"step {step:>6}/"):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        train(recipe, settings, report=ask_to_stop)
    return max(Path(recipe["out"]).glob("checkpoint-*"), key=lambda folder: int(folder.name.partition("-")[2]))


@pytest.fixture(scope="module")
def undisturbed(root: Path) -> Path:
    return Path(train(recipe_for(root, "undisturbed")).out)


STAGE_2: dict[str, Any] = {"train": ["projector", "llm"]}


@pytest.mark.parametrize(
    ("changes", "learns"),
    [
        ({}, ("projector",)),
        (STAGE_2, ("projector", "language_model")),
        (STAGE_2 | {"lora": {"rank": 2}}, ("lora",)),
        ({"train": ["encoder", "projector"], "encoder_lora": {"rank": 2}}, ("audio_tower.layers.0.fc1.lora_A",)),
        ({"train": ["encoder", "projector"], "encoder_last_layers": 1}, ("audio_tower.layers.0.fc1",)),
    ],
    ids=["stage1", "stage2", "lora", "encoder-lora", "encoder-last-layers"],
)
def test_a_checkpoint_holds_what_learns_and_digests_of_the_rest(root, tmp_path, changes, learns):
    recipe = recipe_for(root, "unused", **changes) | {"out": str(tmp_path / "run")}
    checkpoint = train_until(recipe, 2)
    assert not (checkpoint / "model.safetensors").exists()
    saved = load_file(checkpoint / WEIGHTS)
    model, _ = open_model(load_recipe(recipe))
    set_up_parts(model, load_recipe(recipe))
    assert set(saved) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(any(part in name for name in saved) for part in learns)
    assert "model.audio_tower.conv1.weight" not in saved
    frozen = json.loads((checkpoint / FROZEN).read_text())
    assert frozen["encoder"]["source"] == str(root / "encoder") and len(frozen["encoder"]["sha256"]) == 64


@pytest.mark.parametrize("whole_first", [False, True], ids=["trainable", "whole-then-trainable"])
def test_a_resumed_run_is_the_undisturbed_one_from_either_form_of_checkpoint(root, tmp_path, undisturbed, whole_first):
    recipe = recipe_for(root, "unused") | {"out": str(tmp_path / "run")}
    checkpoint = train_until(recipe, 3, **({"watch.save_whole": True} if whole_first else {}))
    assert (checkpoint / "model.safetensors").exists() == whole_first
    if whole_first:
        LlasoForConditionalGeneration.from_pretrained(checkpoint)
    train(recipe)
    assert curve(tmp_path / "run") == curve(undisturbed) and len(curve(undisturbed)) == STEPS
    assert weights_digest(tmp_path / "run") == weights_digest(undisturbed)


def test_what_is_written_beside_the_training_is_of_the_step_that_was_saved(root, tmp_path, monkeypatch):
    """A thread that writes slowly sees the weights and the optimizer's states before the next update."""
    threads: list[str] = []

    def slowly(*args: Any) -> None:
        threads.append(threading.current_thread().name)
        time.sleep(0.3)  # far longer than a step
        save_file(*args)

    monkeypatch.setattr(checkpoints, "save_file", slowly)
    saved = []
    for beside in (True, False):
        recipe = recipe_for(root, "unused", **STAGE_2) | {"out": str(tmp_path / str(beside))}
        recipe["watch"] |= {"save_beside": beside, "keep": 9}
        train_until(recipe, 4)
        folder = tmp_path / str(beside) / "checkpoint-4"
        saved.append((load_file(folder / WEIGHTS), torch.load(folder / "optimizer.pt", weights_only=True)["state"]))
    assert set(threads) == {"save-checkpoint"}
    (weights, state), (expected, expected_state) = saved
    torch.testing.assert_close(weights, expected, rtol=0, atol=0)
    torch.testing.assert_close(state, expected_state, rtol=0, atol=0)


def test_an_error_of_the_thread_that_writes_ends_the_run_at_the_next_step(root, tmp_path, monkeypatch):
    def fail(*args: Any) -> None:
        raise OSError("[Errno 5] Input/output error")

    monkeypatch.setattr(checkpoints, "save_file", fail)
    recipe = recipe_for(root, "unused", watch__save_every=3) | {"out": str(tmp_path / "run")}
    with pytest.raises(
        OSError, match=r"checkpoint-3 could not be written: .*error\. Earlier checkpoints are kept; make"
    ):
        train(recipe)
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    assert [record["step"] for record in read_history(tmp_path / "run" / "history.jsonl")] == [1, 2, 3, 4]


def test_only_copies_are_written_while_weights_are_updated():
    writer, may_end = BackgroundSave(), threading.Event()
    writer.start(may_end.wait)
    WaitForSave(writer, copies=True, timer=StepTimer(cuda=False)).on_pre_optimizer_step(None, None, None)
    assert writer.started
    may_end.set()
    WaitForSave(writer, copies=False, timer=StepTimer(cuda=False)).on_pre_optimizer_step(None, None, None)
    assert not writer.started


def test_a_frozen_part_that_changed_is_refused_by_name(root, tmp_path):
    for name in ("encoder", "llm", "corpus"):
        shutil.copytree(root / name, tmp_path / name)
    recipe = recipe_for(tmp_path, "run")
    train_until(recipe, 2)
    encoder = WhisperModel.from_pretrained(tmp_path / "encoder")
    with torch.no_grad():
        encoder.encoder.layers[0].fc1.weight[0, 0] += 1
    encoder.save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match=rf"weights of the encoder, read from {tmp_path}/encoder, have changed since"):
        train(recipe)


# ---- Rates ----


def test_parts_learn_at_their_own_rates(root, tmp_path):
    """AdamW's first step moves a weight by the learning rate, whatever its gradient is."""
    changes = STAGE_2 | {"optimizer__warmup_ratio": 0.0, "optimizer__schedule": "constant"}
    recipe = recipe_for(root, "unused", **changes) | {"out": str(tmp_path / "run")}
    rates = {"optimizer.max_steps": 1, "optimizer.projector.learning_rate": 3e-3, "optimizer.llm.learning_rate": 1e-4}
    before = open_model(load_recipe(recipe))[0].state_dict()
    after = load_file(Path(train(recipe, rates).out) / "model.safetensors")
    moved = {name: (after[name] - before[name]).abs().max().item() for name in after}
    assert max(moved[name] for name in after if "projector" in name) == pytest.approx(3e-3, rel=0.01)
    assert max(moved[name] for name in after if "language_model" in name) == pytest.approx(1e-4, rel=0.01)
    assert max(moved[name] for name in after if "audio_tower" in name) == 0


def make_trainer(root: Path, out: Path, **changes: Any) -> LlasoTrainer:
    recipe = load_recipe(recipe_for(root, "unused", **changes) | {"out": str(out)})
    model, processor = open_model(recipe)
    frozen = set_up_parts(model, recipe)
    rows = set_up_rows(recipe, model, processor, world=1)
    return LlasoTrainer(model, recipe, processor, rows, frozen, History(out / "history.jsonl"))


def test_the_norms_of_audio_and_text_are_said_at_the_start(root, tmp_path):
    lines: list[str] = []
    trainer = make_trainer(root, tmp_path / "unused")
    batch = trainer.data_collator([row(i) for i in range(8)])
    embeddings = trainer.model.get_input_embeddings().weight
    ids = batch["input_ids"][(batch["input_ids"] != trainer.processor.audio_token_id) & batch["attention_mask"].bool()]
    train(recipe_for(root, "unused") | {"out": str(tmp_path / "run")}, {"optimizer.max_steps": 1}, lines.append)
    (said,) = (line for line in lines if line.startswith("mean norm of projected audio"))
    audio, text = (float(word.strip(",")) for word in said.split() if word.strip(",").replace(".", "").isdigit())
    assert text == pytest.approx(embeddings[ids].norm(dim=-1).mean().item(), rel=1e-2) and 0 < audio


def test_weight_decay_and_betas_are_the_recipes(root, tmp_path):
    own = {"weight_decay": 0.1, "projector": {"weight_decay": 0.3}, "beta1": 0.8, "beta2": 0.95, "learning_rate": 1e-3}
    trainer = make_trainer(root, tmp_path, **STAGE_2, optimizer=own | {"max_steps": 2})
    groups = trainer.create_optimizer().param_groups
    assert {(group["weight_decay"], group["betas"], group["lr"]) for group in groups} == {
        (decay, (0.8, 0.95), 1e-3) for decay in (0.0, 0.1, 0.3)
    }
    parameters = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(parameters) == sorted(id(p) for p in trainer.model.parameters() if p.requires_grad)
    with pytest.raises(ValueError, match="`optimizer.encoder` has values of its own, but `train` does not name"):
        load_recipe(recipe_for(root, "unused"), {"optimizer.encoder.learning_rate": 1e-5})


def test_a_part_that_starts_late_is_frozen_until_then(root, tmp_path):
    out = tmp_path / "run"
    late = {"learning_rate": 1e-3, "start": 0.5}
    own = {"learning_rate": 1e-3, "weight_decay": 0.1, "encoder": late, "max_steps": 6}
    changes = {"train": ["projector", "encoder"], "optimizer": own, "watch__save_every": 1, "watch__keep": 9}
    recipe = recipe_for(root, "unused", **changes) | {"out": str(out)}
    trainer = make_trainer(root, tmp_path / "other", **changes)
    start = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    train_until(recipe, 4)  # which saves after step 5
    saved = [load_file(out / f"checkpoint-{step}" / WEIGHTS) for step in range(1, 6)]
    for step, weights in enumerate(saved, 1):
        moved = {part_of(name) for name, weight in weights.items() if not torch.equal(weight, start[name])}
        assert weights.keys() == start.keys() and moved == ({"projector"} if step <= 3 else {"projector", "encoder"})
    train(recipe)
    train(recipe | {"out": str(tmp_path / "whole")})
    assert weights_digest(out) == weights_digest(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"until optimizer.projector.start nothing would learn"):
        load_recipe(recipe_for(root, "unused"), {"optimizer.projector.start": 0.1})


def test_settings_change_on_resume_when_they_are_named(root, tmp_path):
    recipe = recipe_for(root, "unused") | {"out": str(tmp_path / "run")}
    train_until(recipe, 3)  # which saves after step 4
    new = {"optimizer.learning_rate": 1e-3, "optimizer.schedule": "linear", "optimizer.max_steps": 10}
    with pytest.raises(ValueError, match=r"learning_rate was 0.003, is 0.001.*with the new values, add --change"):
        train(recipe, new)
    with pytest.raises(ValueError, match="seed cannot be changed in a run; only optimizer.learning_rate, .* can be"):
        train(recipe, new, change=["seed"])
    with pytest.raises(ValueError, match="no setting `optimizer.learning_rat`; the nearest is"):
        train(recipe, new, change=["optimizer.learning_rat"])
    of_part = {"optimizer.projector.learning_rate": 1e-3}
    with pytest.raises(ValueError, match="the parts of this run had no settings of their own when it began"):
        train(recipe, of_part, change=list(of_part))
    with pytest.raises(ValueError, match="asks for 3 steps, but step 4 has been trained; set optimizer.max_steps=4"):
        train(recipe, {"optimizer.max_steps": 3}, change=["optimizer.max_steps"])
    train(recipe, new, change=list(new))
    records = read_history(tmp_path / "run" / "history.jsonl")
    (change,) = (record for record in records if record["kind"] == "change")
    assert change["step"] == 4 and change["settings"]["optimizer.learning_rate"] == [0.003, 0.001]
    rates = {record["step"]: record["learning_rate"] for record in records if record["kind"] == "step"}
    assert list(rates) == list(range(1, 11))
    for step in range(5, 11):  # linear from 1 to 0 over the nine steps after one of warm-up
        assert rates[step] == pytest.approx(1e-3 * (10 - (step - 1)) / 9)
    with pytest.raises(ValueError, match=r"another recipe \(optimizer.max_steps was 10, is 12\)"):
        train(recipe, new | {"optimizer.max_steps": 12}, change=["optimizer.max_steps"])  # finished


# ---- Loss in chunks ----


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_loss_and_gradients_in_chunks_are_those_of_all_logits_together(root, tmp_path, precision):
    found = []
    for chunk in (1024, 5):
        changes = STAGE_2 | {"compute__loss_chunk": chunk, "compute__precision": precision}
        trainer = make_trainer(root, tmp_path / str(chunk), **changes)
        trainer.model = trainer.accelerator.prepare_model(trainer.model)
        batch = trainer.data_collator([row(i) for i in range(4)])
        answers = (batch["shift_labels"] != -100).sum()
        assert 20 < answers
        loss = trainer.training_step(trainer.model, batch, answers)
        gradients = {name: p.grad for name, p in trainer.unwrapped.named_parameters() if p.grad is not None}
        found.append((loss, gradients))
    (loss, gradients), (chunked_loss, chunked) = found
    torch.testing.assert_close(chunked_loss, loss, rtol=1e-6, atol=1e-6)
    assert gradients.keys() == chunked.keys()
    for name, gradient in gradients.items():
        tolerance = 1e-5 if precision == "fp32" else 2e-2
        torch.testing.assert_close(chunked[name], gradient, rtol=tolerance, atol=tolerance * gradient.abs().max())


def test_chunks_take_less_than_half_the_memory_of_all_logits(root, tmp_path):
    peaks = []
    for chunk in (1024, 8):
        trainer = make_trainer(root, tmp_path / str(chunk), compute__loss_chunk=chunk)
        trainer.model.lm_head = nn.Linear(32, 50_000, bias=False)
        batch = trainer.data_collator([row(i) for i in range(12)])
        answers = (batch["shift_labels"] != -100).sum()
        assert answers > 64
        counter = OperatorCounter(trainer.model)
        with counter.on("step"):
            trainer.training_step(trainer.model, batch, answers)
        peaks.append(counter.peak.total())
    assert peaks[1] < 0.5 * peaks[0] and peaks[0] > 64 * 50_000 * 4


# ---- Seconds ----


def test_the_history_says_where_the_seconds_of_a_step_went(root, tmp_path):
    lines: list[str] = []
    recipe = recipe_for(root, "unused") | {"out": str(tmp_path / "run")}
    train(recipe, {"watch.show_seconds": True, "watch.save_every": 3}, lines.append)
    records = [r["seconds"] for r in read_history(tmp_path / "run" / "history.jsonl") if r["kind"] == "step"]
    assert all({"reading", "encoder", "llm", "backward", "total"} <= seconds.keys() for seconds in records)
    assert all(value >= 0 for seconds in records for value in seconds.values())
    assert "optimizer" not in records[0] and all("optimizer" in seconds for seconds in records[1:])
    assert [number for number, seconds in enumerate(records, 1) if "saving" in seconds] == [4, 5]  # saved after step 3
    assert sum("reading" in line and "%" in line for line in lines) == STEPS


def test_shares_of_the_time_are_of_all_steps_together():
    records = [{"seconds": {"reading": 1.0, "llm": 2.0, "total": 4.0}}, {"seconds": {"llm": 4.0, "total": 4.0}}, {}]
    assert time_shares(records) == {"llm": 0.75, "reading": 0.125}


def test_the_rate_of_a_part_changes_on_resume_and_one_that_no_part_reads_does_not(root, tmp_path):
    recipe = recipe_for(root, "unused", optimizer__projector={"learning_rate": 2e-3}) | {"out": str(tmp_path / "run")}
    recipe["optimizer"] |= {"schedule": "constant", "warmup_ratio": 0.0}
    train_until(recipe, 3)
    unread = {"optimizer.learning_rate": 1e-5}
    with pytest.raises(ValueError, match="would change nothing: .* change optimizer.projector.learning_rate"):
        train(recipe, unread, change=list(unread))
    new = {"optimizer.projector.learning_rate": 1e-3}
    train(recipe, new, change=list(new))
    records = read_history(tmp_path / "run" / "history.jsonl")
    rates = [record["learning_rate"] for record in records if record["kind"] == "step"]
    assert rates == [2e-3] * 4 + [1e-3] * 2


def test_a_part_that_starts_late_is_never_digested_as_frozen(root, tmp_path, monkeypatch):
    """A checkpoint is digested beside the step in which the part does not require gradients yet."""
    own = {"learning_rate": 1e-3, "encoder": {"start": 0.9}, "max_steps": STEPS}
    changes = {"train": ["projector", "encoder"], "optimizer": own, "watch__save_every": 1}
    recipe = recipe_for(root, "unused", **changes) | {"out": str(tmp_path / "run")}
    whole = train(recipe | {"out": str(tmp_path / "whole")})
    digests, step_begun = trainer_module.frozen_digests, threading.Event()
    late = trainer_module.late_parts_frozen

    def digests_within_a_step(*arguments):
        assert threading.current_thread() is threading.main_thread() or step_begun.wait(60)
        return digests(*arguments)

    @contextlib.contextmanager
    def says_so(model, choice, progress):
        with late(model, choice, progress):
            if progress > 0:  # after the first checkpoint
                step_begun.set()
                time.sleep(0.2)
            yield

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "frozen_digests", digests_within_a_step)
        patch.setattr(trainer_module, "late_parts_frozen", says_so)
        train_until(recipe, 3)
    train(recipe)
    assert weights_digest(tmp_path / "run") == weights_digest(Path(whole.out))


def test_a_run_of_rows_that_cannot_be_read_ends_with_the_reason(root, tmp_path):
    bad = [row(i) | {"audio": []} for i in range(16)]
    save_corpus(tmp_path / "bad", {"train": bad})
    for steps, said in ((3, "for 3 steps"), (30, "for 10 steps")):
        recipe = recipe_for(root, "unused", data__path=str(tmp_path / "bad"), data__bad_rows="skip")
        recipe["optimizer"]["max_steps"] = steps
        with pytest.raises(ValueError, match=f"{said} there was no row that can be learned from; the warnings above"):
            train(recipe | {"out": str(tmp_path / f"run-{steps}")})
    few = [row(i) if i == 15 else bad[i] for i in range(16)]
    save_corpus(tmp_path / "few", {"train": few})
    recipe = recipe_for(root, "unused", data__path=str(tmp_path / "few"), data__bad_rows="skip")
    assert train(recipe | {"out": str(tmp_path / "few-run")}).steps == STEPS
