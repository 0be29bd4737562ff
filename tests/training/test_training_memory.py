"""The memory of a run: frozen weights are not copied, caches are shared, and activations are let go."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.tiny_training import curve, row, save_backbones, save_corpus, tiny_recipe, weights_digest
from torch.utils._python_dispatch import TorchDispatchMode

from llaso.training.recipe.recipe import load_recipe
from llaso.training.rows.training_rows import set_up_rows
from llaso.training.run.heap import TrimHeap
from llaso.training.run.history import History
from llaso.training.run.model_setup import open_model, set_up_parts
from llaso.training.run.operator_counter import OperatorCounter
from llaso.training.run.recomputation import checkpoint_layers
from llaso.training.run.train import train
from llaso.training.run.trainer import LlasoTrainer, training_arguments
from modeling_llaso.compatibility_llaso import CHECKPOINTING_SINCE_5_23


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    save_backbones(folder)
    save_corpus(folder / "corpus", {"train": [row(i) for i in range(16)]})
    return folder


def make_trainer(root: Path, out: Path, **changes: Any) -> LlasoTrainer:
    recipe = load_recipe(tiny_recipe(root, "unused", **changes) | {"out": str(out)})
    model, processor = open_model(recipe)
    frozen = set_up_parts(model, recipe)
    rows = set_up_rows(recipe, model, processor, world=1)
    return LlasoTrainer(model, recipe, processor, rows, frozen, History(out / "history.jsonl"))


class CopiesOf(TorchDispatchMode):
    """Counts how often each weight is copied into another type."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.names = {weight.untyped_storage()._cdata: name for name, weight in weights.items()}
        self.copied: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function.overloadpacket is torch.ops.aten._to_copy:
            name = self.names.get(args[0].untyped_storage()._cdata)
            if name is not None:
                self.copied[name] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("parts", [["projector"], ["projector", "llm"]], ids=["stage1", "stage2"])
@pytest.mark.parametrize("held", ["bf16", "fp32"])
def test_frozen_weights_in_bf16_are_multiplied_as_they_are(root, tmp_path, parts, held):
    changes = {"compute__precision": "bf16", "compute__frozen_weights": held}
    trainer = make_trainer(root, tmp_path, train=parts, **changes)
    trainer.model = trainer.accelerator.prepare_model(trainer.model)
    batch = trainer.data_collator([row(i) for i in range(4)])
    frozen = {name: p for name, p in trainer.unwrapped.named_parameters() if not p.requires_grad}
    with CopiesOf(frozen) as copies:
        trainer.training_step(trainer.model, batch, (batch["shift_labels"] != -100).sum())
    multiplied = {name for name in copies.copied if frozen[name].ndim > 1}
    assert bool(multiplied) == (held == "fp32"), copies.copied


def test_stages_that_hold_frozen_weights_in_other_types_share_the_encoders_output(root, tmp_path):
    folders = {}
    for precision, held in (("bf16", "bf16"), ("bf16", "fp32"), ("fp32", "fp32")):
        changes = {"compute__precision": precision, "compute__frozen_weights": held, "compute__encoder_cache_gb": 0.1}
        recipe = load_recipe(tiny_recipe(root, "unused", **changes) | {"out": str(tmp_path / "run")})
        model, processor = open_model(recipe)
        set_up_parts(model, recipe)
        cache = set_up_rows(recipe, model, processor, world=1).cache
        assert cache is not None
        folders[precision, held] = cache.folder
    assert folders["bf16", "bf16"] == folders["bf16", "fp32"] != folders["fp32", "fp32"]


def test_selective_checkpointing_keeps_products_only_and_learns_the_same(root, tmp_path):
    kept, found = {}, {}
    for choice in (False, "selective", True):
        changes = {"compute__gradient_checkpointing": choice, "train": ["projector", "llm"]}
        trainer = make_trainer(root, tmp_path / str(choice), **changes)
        checkpoint_layers(trainer.unwrapped, choice)
        batch = trainer.data_collator([row(i) for i in range(8)])
        trainer.model = trainer.accelerator.prepare_model(trainer.model)
        counter = OperatorCounter(trainer.unwrapped)
        answers = (batch["shift_labels"] != -100).sum()
        with counter.on("forward"):
            loss = trainer.compute_loss(trainer.model.train(), batch, num_items_in_batch=answers)
        kept[choice] = counter.live.total()
        loss.backward()
        found[choice] = {name: p.grad for name, p in trainer.unwrapped.named_parameters() if p.grad is not None}
        assert training_arguments(trainer.recipe, 1).to_dict()[CHECKPOINTING_SINCE_5_23] is bool(choice)
    assert kept[True] < 0.75 * kept["selective"] < 0.75 * 0.75 * kept[False], kept
    for name, gradient in found[False].items():
        assert torch.equal(found["selective"][name], gradient), name


def test_a_run_with_selective_checkpointing_is_the_run_without(root, tmp_path):
    outs = []
    for choice in (False, "selective"):
        changes = {"compute__gradient_checkpointing": choice, "train": ["projector", "llm"], "optimizer__max_steps": 2}
        outs.append(Path(train(tiny_recipe(root, "unused", **changes) | {"out": str(tmp_path / str(choice))}).out))
    assert curve(outs[0]) == curve(outs[1]) and weights_digest(outs[0]) == weights_digest(outs[1])
    with pytest.raises(ValueError, match="`compute.gradient_checkpointing` is true or false, not 'selektiv'"):
        load_recipe(tiny_recipe(root, "unused", compute__gradient_checkpointing="selektiv"))


def test_the_heap_is_trimmed_when_the_process_has_outgrown_single_steps(monkeypatch):
    """Sizes after each step; a step after a trim shows what a single one needs."""
    sizes = iter([100, 110, 114, 116, 105, 119, 121, 130, 140, 149, 150])
    heap = TrimHeap()
    monkeypatch.setattr(heap, "process", SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=next(sizes))))
    trims: list[int] = []
    monkeypatch.setattr(heap, "trim", trims.append)
    counts = []
    for _ in range(11):
        heap.on_step_end(None, None, None)
        counts.append(len(trims))
    # 116 > 1.15 x 100; 105 is a single step's; 121 > 1.15 x 105; 130 is a single step's; 150 > 1.15 x 130
    assert counts == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3]


@pytest.mark.skipif(TrimHeap().trim is None, reason="another C library than glibc")
def test_holes_between_tensors_go_back_to_the_system():
    """Half a gigabyte in pieces below the threshold for mapped memory, every second one freed."""
    heap = TrimHeap()
    torch.empty(2**24, dtype=torch.uint8)  # once freed, what is smaller comes from the heap
    pieces = [torch.ones(2**22, dtype=torch.uint8) for _ in range(128)]
    small = pieces[::2]
    del pieces
    before = heap.process.memory_info().rss
    heap.footprint, heap.trimmed = before // 2, False
    heap.on_step_end(None, None, None)
    assert before - heap.process.memory_info().rss > 200e6 and len(small) == 64
