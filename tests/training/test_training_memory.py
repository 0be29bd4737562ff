"""The memory of a run: frozen weights are not copied, caches are shared, and activations are let go."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_training import row, save_backbones, save_corpus, tiny_recipe
from torch.utils._python_dispatch import TorchDispatchMode

from llaso.training.recipe.recipe import load_recipe
from llaso.training.rows.training_rows import set_up_rows
from llaso.training.run.history import History
from llaso.training.run.model_setup import open_model, set_up_parts
from llaso.training.run.trainer import LlasoTrainer


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
