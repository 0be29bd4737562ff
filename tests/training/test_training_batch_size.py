"""A step's size in rows or tokens, divided among processes, and micro-batches measured to fit."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_training import curve, row, save_backbones, save_corpus, tiny_recipe, weights_digest

from llaso.training.cost.dry_run import dry_run
from llaso.training.recipe.recipe import BatchChoice, load_recipe
from llaso.training.run.batch_size import Fit, Probe, largest_divisor, largest_that_fits
from llaso.training.run.model_setup import open_model, set_up_parts
from llaso.training.run.operator_counter import OperatorCounter
from llaso.training.run.resume import batch_in_numbers
from llaso.training.run.train import train


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sizes")
    save_backbones(folder)
    save_corpus(folder / "corpus", {"train": [row(i) for i in range(24)]})
    return folder


def recipe_for(root: Path, out: Path, batch: dict[str, Any], **changes: Any) -> dict[str, Any]:
    stage_2 = {"train": ["projector", "llm"], "optimizer__max_steps": 3}
    return tiny_recipe(root, "unused", batch=batch, **stage_2, **changes) | {"out": str(out)}


@pytest.mark.parametrize(
    ("batch", "processes", "accumulation"),
    [
        (BatchChoice(per_device=2, rows=64), 1, 32),  # the paper's Stage 1 on one device
        (BatchChoice(per_device=2, rows=64), 8, 4),
        (BatchChoice(per_device=64, rows=64), 1, 1),
        (BatchChoice(tokens=8000, max_tokens=2000, per_device=32), 2, 2),
        (BatchChoice(per_device=2, accumulation=32), 8, 32),  # of each device, as before
    ],
)
def test_accumulation_follows_from_the_size_of_a_step(batch, processes, accumulation):
    on = batch.on(processes)
    assert (on.accumulation, on.per_device, on.max_tokens) == (accumulation, batch.per_device, batch.max_tokens)
    assert on.on(3) == on  # it is in numbers now


@pytest.mark.parametrize(
    ("batch", "processes", "message"),
    [
        (
            {"rows": 64, "per_device": 3},
            1,
            r"rows=64 cannot be .* micro-batches of 3 on 1 process; set batch.per_device=2",
        ),
        ({"rows": 64, "per_device": 16}, 8, r"micro-batches of 16 on 8 processes; set batch.per_device=8"),
        ({"rows": 64}, 3, "take a number of processes that divides 64"),
        ({"tokens": 9000, "max_tokens": 2000}, 1, "batch.tokens=9,000 cannot be .* set batch.max_tokens=1800"),
        ({"rows": 8, "tokens": 9000}, 1, "both say how large a step is"),
        ({"rows": 8, "max_tokens": 900}, 1, "set batch.tokens in its place, or batch.max_tokens=0"),
        ({"tokens": 9000}, 1, "set it to what fits on a device, or batch.per_device=auto"),
        ({"per_device": "auto"}, 1, "set batch.rows or batch.tokens"),
        ({"per_device": "auto", "tokens": 900, "max_tokens": 90}, 1, "would not be read; set batch.max_tokens=0"),
        ({"per_device": "all", "rows": 8}, 1, "`batch.per_device` is an integer, not 'all'"),
        ({"per_device": 0}, 1, "`batch.per_device` is 0, but must be at least 1"),
    ],
)
def test_sizes_that_cannot_be_divided_are_refused_with_the_remedy(root, tmp_path, batch, processes, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(recipe_for(root, tmp_path, batch)).batch.on(processes)


def test_the_search_finds_the_largest_number_that_fits():
    for limit in (*range(12), 31, 32, 33, 100):
        tried: list[int] = []

        def fits(number: int, limit: int = limit, tried: list[int] = tried) -> bool:
            tried.append(number)
            return number <= limit

        assert largest_that_fits(fits, 40) == min(limit, 40)
        assert len(tried) <= 12 and len(tried) == len(set(tried)) and max(tried) <= 40
    assert [largest_divisor(64, most) for most in (1, 3, 31, 64, 100)] == [1, 2, 16, 64, 64]


def test_what_is_measured_is_what_a_step_of_so_many_rows_takes(root, tmp_path):
    recipe = load_recipe(recipe_for(root, tmp_path, {"per_device": 1}))
    model, processor = open_model(recipe)
    probe = Probe(recipe, model, processor, set_up_parts(model, recipe))
    before = torch.get_rng_state(), {name: p.clone() for name, p in model.named_parameters()}
    one, many = probe.on_cpu(most=10**9), probe.on_cpu(most=5)
    assert many.rows == 5 and one.length == max(len(probe.collator.encode(row(i)).input_ids) for i in range(24))
    assert torch.equal(before[0], torch.get_rng_state())
    assert all(torch.equal(p, before[1][name]) and p.grad is None for name, p in model.named_parameters())

    peaks = {}
    for rows in (1, 2, 12):
        counter = OperatorCounter(model)
        with counter.on("step"):
            probe.step(rows)
        peaks[rows] = counter.peak.total()
    assert peaks[12] == pytest.approx(peaks[1] + 11 * (peaks[2] - peaks[1]), rel=0.05)


def test_a_transcript_is_measured_at_its_slowest_speed(root, tmp_path):
    """So that no micro-batch is larger than what was measured."""
    changes = recipe_for(root, tmp_path, {"per_device": 1})
    changes["data"] = changes["data"] | {"speeds": [0.5, 1.0]}
    recipe = load_recipe(changes)
    model, processor = open_model(recipe)
    probe = Probe(recipe, model, processor, set_up_parts(model, recipe))
    taken = len(probe.collator.encode(probe.row).input_ids)
    own = {name: value for name, value in probe.row.items() if name != "speed"}
    assert probe.row["speed"] == 0.5
    assert len(probe.collator.encode(own).input_ids) < taken <= probe.length


def test_a_probe_leaves_no_hook_on_the_model(root, tmp_path):
    """Of packing neither, whose hook would measure the run's encoder in the probe's place."""
    recipe = load_recipe(recipe_for(root, tmp_path, {"per_device": 1, "packing": True}))
    model, processor = open_model(recipe)
    hooks = [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()]
    probe = Probe(recipe, model, processor, set_up_parts(model, recipe))
    assert model.model._forward_pre_hooks
    probe.trainer.detach()
    assert [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()] == hooks


def test_auto_trains_as_the_number_that_it_chose_and_resumes_with_it(root, tmp_path, monkeypatch):
    """Five rows fit when the run begins, and a hundred when it is resumed, which are not asked for."""
    lines: list[str] = []
    fitting = iter([5, 100])
    monkeypatch.setattr(Probe, "on_cpu", lambda self, most: Fit(min(most, next(fitting)), self.length, "measured"))
    recipe = recipe_for(root, tmp_path / "auto", {"rows": 12, "per_device": "auto"})

    def stop(line: str) -> None:
        lines.append(line)
        if line.startswith(f"step {1:>6}/"):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        train(recipe, report=stop)
    assert any(line.startswith("batch.per_device: auto is 4 rows: of the longest, ") for line in lines)
    assert json.loads((tmp_path / "auto" / "plan.json").read_text())["per_device"] == 4
    train(recipe, report=lines.append)
    assert "3 steps of 4 x 3 x 1 rows, going on from step 2" in lines
    assert train(recipe).steps == 3  # finished
    train(recipe_for(root, tmp_path / "four", {"rows": 12, "per_device": 4}))
    assert curve(tmp_path / "auto") == curve(tmp_path / "four")
    assert weights_digest(tmp_path / "auto") == weights_digest(tmp_path / "four")
    resumed = batch_in_numbers(tmp_path / "auto", load_recipe(recipe).batch, processes := 3)
    assert (resumed.per_device, resumed.accumulation * processes) == (4, 3)
    with pytest.raises(ValueError, match="steps of 3 micro-batches on 1 processes, which 2 cannot share equally"):
        batch_in_numbers(tmp_path / "auto", load_recipe(recipe).batch, 2)


def test_auto_fills_a_step_of_tokens_and_refuses_rows_that_do_not_fit(root, tmp_path):
    lines: list[str] = []
    recipe = recipe_for(root, tmp_path / "tokens", {"tokens": 3000, "per_device": "auto", "window": 2})
    train(recipe, {"optimizer.max_steps": 1}, lines.append)
    plan = json.loads((tmp_path / "tokens" / "plan.json").read_text())
    assert plan["micro_batches"] * plan["max_tokens"] <= 3000 < (plan["micro_batches"] + 1) * plan["max_tokens"]
    assert any(f"of {plan['max_tokens']:,} tokens together" in line for line in lines)
    with pytest.raises(ValueError, match=r"the longest row, \d+ tokens, does not fit"):
        train(recipe | {"out": str(tmp_path / "small")}, {"compute.memory_gb": 0.001})


def test_the_dry_run_counts_the_steps_of_a_global_batch(root, tmp_path):
    for per_device in (2, "auto"):
        recipe = recipe_for(root, tmp_path, {"rows": 8, "per_device": per_device})
        cost = dry_run(load_recipe(recipe, {"optimizer.max_steps": 0}))
        assert (cost.batch, cost.steps) == (8, 3)
        said = "\n".join(cost.lines())
        assert ("with one row at once; batch.per_device=auto takes" in said) == (per_device == "auto")
        assert ("padding " in said) == (per_device != "auto")
    by_tokens = dry_run(load_recipe(recipe_for(root, tmp_path, {"tokens": 2000, "per_device": "auto"})))
    assert by_tokens.batch == pytest.approx(2000 * by_tokens.rows / by_tokens.tokens, abs=1)
