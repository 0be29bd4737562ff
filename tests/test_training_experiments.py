"""Experiments: which runs they make, that equal ones are made once, and what their tables say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_training import row, save_backbones, save_corpus

from modeling_llaso.training.experiments import EXPERIMENTS, Inputs, run_experiment, table

SMALL = (
    "batch.per_device=4",
    "watch.evaluate_rows=2",
    "watch.final_rows=2",
    "watch.reporters=[none]",
    "model.projector_stride=1",
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("journey")
    save_backbones(folder / "backbones")
    spoken = [row(i) for i in range(8)]
    held_out = [row(i, seed=1) for i in range(2)]
    save_corpus(folder / "llaso-align", {"train": spoken, "validation": held_out})
    instruct = [*spoken, *(row(i, task="IP") for i in range(4)), *(row(i, task="AQA", clips=1) for i in range(3))]
    save_corpus(folder / "llaso-instruct", {"train": instruct, "validation": held_out})
    save_corpus(folder / "llaso-eval", {"test": held_out})
    return Inputs(folder)


def scores_of(model: Path, corpus: Path, out: Path) -> dict[str, Any]:
    """Scores made of what the training itself wrote: each task's share of the rows it saw."""
    seen = [json.loads(line) for line in (model / "history.jsonl").read_text().splitlines()]
    tasks = {task for record in seen if record["kind"] == "step" for task in record["tasks"]}
    entry = {"primary": {"metric": "accuracy", "value": len(tasks) / 10}, "coverage": 1.0}
    return {"tasks": {task: entry for task in tasks}, "modalities": {"text_audio": {"coverage": 1.0}}}


@pytest.mark.slow
def test_an_experiment_trains_its_variations_alike_and_tabulates_them(inputs, tmp_path):
    lines: list[str] = []

    def run() -> Path:
        return run_experiment(
            "unseen", inputs, tmp_path, seeds=(0,), overrides=SMALL, evaluate=scores_of, report=lines.append
        )

    folder = run()
    records = json.loads((folder / "results.json").read_text())
    assert [record["variation"] for record in records] == ["all tasks", "without IP", "without pure audio"]
    assert len({record["steps"] for record in records}) == 1
    assert set(records[0]["tasks"]) == {"ASR", "IP", "AQA"} and set(records[1]["tasks"]) == {"ASR", "AQA"}
    stages = sorted(path.name.partition("-")[0] for path in (tmp_path / "runs").glob("stage*"))
    assert stages == ["stage1", "stage2", "stage2", "stage2"]  # Stage 1 is shared
    text = (folder / "table.md").read_text()
    assert "| without IP | " in text and "| ASR accuracy |" in text and "–" in text
    assert (folder / "plot.png").stat().st_size > 5000
    lines.clear()
    assert run() == folder and not any("step" in line for line in lines)  # everything was there


def test_a_table_gives_mean_and_spread_over_seeds():
    records = [
        {
            "variation": name,
            "seed": seed,
            "stage1_wer": 0.05,
            "tasks": {"ASR": {"metric": "wer", "value": value + seed / 100, "coverage": 0.5}},
        }
        for name, value in (("frozen", 0.1), ("unfrozen", 0.2))
        for seed in (0, 1, 2)
    ]
    text = table(EXPERIMENTS["encoder"], records, ["ASR", "PR"])
    assert "| frozen | 0.050 ± 0.000 | 0.110 ± 0.010 | 0.500 ± 0.000 |" in text
    assert "| unfrozen | 0.050 ± 0.000 | 0.210 ± 0.010 | 0.500 ± 0.000 |" in text
    assert "over 3 seeds" in text


def test_mistakes_are_named(inputs, tmp_path):
    with pytest.raises(ValueError, match="there are gate, encoder, unseen, more-tasks"):
        run_experiment("gates", inputs, tmp_path)
    with pytest.raises(ValueError, match="has none of the tasks PR; it has ASR, IP, AQA"):
        run_experiment("unseen", inputs, tmp_path, unseen=["PR"])
