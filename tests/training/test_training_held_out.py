"""Held-out speech while a run trains: which rows count, and that looking at them changes nothing."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from support.tiny_training import curve, row, save_backbones, save_corpus, tiny_recipe, weights_digest

from llaso.training.recipe.recipe import load_recipe
from llaso.training.run.held_out import HeldOut, normalize
from llaso.training.run.history import read_history
from llaso.training.run.model_setup import freeze_all_but, keep_frozen, open_model
from llaso.training.run.train import train


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("held-out")
    save_backbones(folder)
    rows = [row(i) for i in range(12)]
    save_corpus(folder / "corpus", {"train": rows, "validation": [row(i, seed=1) for i in range(4)]})
    return folder


@pytest.fixture
def pair(root: Path):
    return open_model(load_recipe(tiny_recipe(root, "unused")))


def test_watching_held_out_rows_changes_nothing_of_the_training(root):
    """Dropout draws random numbers, which must be those of a run without evaluation; what is frozen stays in eval."""
    changes = {"train": ["projector", "llm"], "lora": {"rank": 2, "dropout": 0.2}, "optimizer__max_steps": 5}
    unwatched = tiny_recipe(root, "unwatched", **changes, watch__final_rows=0)
    watched = tiny_recipe(root, "watched", **changes, watch__evaluate_every=1)
    assert train(unwatched).wer is None and train(watched).wer is not None
    records = read_history(Path(watched["out"]) / "history.jsonl")
    assert [r["step"] for r in records if r["kind"] == "held_out"] == [1, 2, 3, 4, 5]
    assert curve(Path(watched["out"])) == curve(Path(unwatched["out"]))
    assert weights_digest(Path(watched["out"])) == weights_digest(Path(unwatched["out"]))


def test_after_an_evaluation_every_module_is_in_the_mode_it_was_in(pair):
    model, processor = pair
    freeze_all_but(model, ["projector"])
    model.train()
    keep_frozen([model.model.audio_tower, model.model.language_model], model)
    before = [module.training for module in model.modules()]
    assert len(set(before)) == 2
    HeldOut([row(0, seed=1)], processor).evaluate(model, 1)
    assert [module.training for module in model.modules()] == before


def test_held_out_rows_that_cannot_be_scored_are_left_out_or_stop_the_run_early(pair, caplog):
    model, processor = pair
    silent, broken = row(2, seed=1), row(3, seed=1)
    broken["audio"][0]["bytes"] = b"no audio at all"
    rows = [row(0, seed=1), row(1, seed=1) | {"target": None}, row(1, seed=1) | {"target": " ... "}]
    held_out = HeldOut([*rows, silent | {"audio": []}, broken], processor, skip_bad_rows=True)
    assert [one["id"] for one in held_out.rows] == ["asr-1-0000"]
    assert "2 held-out rows have no transcript" in caplog.text
    assert "held-out row asr-1-0002: it has no audio" in caplog.text and "asr-1-0003: clip 0" in caplog.text
    with pytest.raises(ValueError, match=r"held-out row asr-1-0003: clip 0.*set data.bad_rows=skip"):
        HeldOut([*rows, broken], processor)
    mute = copy.deepcopy(model)
    with torch.no_grad():
        mute.lm_head.weight.zero_()  # it answers with its first token, over and over: an exclamation mark
    result = held_out.evaluate(mute, 9)
    assert result["rows"] == 1 and result["errors"] == result["words"] > 0
    assert not normalize(result["samples"][0][1]).split()
