"""The table of metrics: one entry is enough for scores, report, comparison and card."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.paths import ROOT
from test_eval_compare import system

from eval_suite.compare import compare
from eval_suite.metrics import METRICS, PROTOCOLS, FileMetrics, Quantities, card_table, mean_of, ranking_metrics
from eval_suite.report import write_report
from eval_suite.score import score_rows
from eval_suite.task_metrics import TASKS
from llaso.cli import main


def _lenient(rows: Quantities):
    """Half a point for naming no label."""
    labels, answers = rows.values("label"), rows.values("answer")
    if labels is None or answers is None:
        return None
    return mean_of(
        [0.5 if said is None else float(said == label) for label, said in zip(labels, answers, strict=True)]
    )


def test_a_metric_added_from_outside_is_everywhere(tmp_path, monkeypatch, capsys):
    """One entry in the table, and it stands in scores, report and comparison; with `ranks`, it also ranks."""
    from eval_suite.metrics import Metric

    ranked = {"strict": ("closed",)}
    lenient = Metric(
        "lenient", "half a point for silence", strict=_lenient, title="leniency", perfect=1.0,
        baseline="majority_baseline", ranks=ranked, change="paper: no such mercy.",
    )  # fmt: skip
    monkeypatch.setitem(METRICS, "lenient", lenient)
    others = {"strict": ("label",), "paper": ("closed",)}
    monkeypatch.setitem(METRICS, "accuracy", replace(METRICS["accuracy"], ranks=others))
    good, bad = system(tmp_path / "good", 0.9), system(tmp_path / "bad", 0.4, seed=1)
    scored = score_rows(bad, resamples=50)
    task = scored.content["tasks"]["SGC"]
    accuracy = task["metrics"]["accuracy"]["value"]
    assert task["primary"]["metric"] == "lenient" and task["metrics"]["lenient"]["value"] == (accuracy + 1) / 2
    skill = scored.content["normalized"]["skill"]["tasks"]["SGC"]["unclipped"]
    assert skill == pytest.approx(((accuracy + 1) / 2 - 0.5) / 0.5)
    assert {one.score for one in scored.rows["made_SGC"]} == {0.5, 1.0}
    paper = score_rows(bad, protocol="paper", resamples=50)
    page = (write_report([scored, paper], tmp_path / "report") / "index.html").read_text("utf-8")
    assert re.search(r"lenient.{0,80}↑", page, re.DOTALL) and "paper: no such mercy." in page
    found = compare([good, bad], resamples=200)["pairs"][0]["tasks"]["SGC"]
    assert found["metric"] == "lenient" and "good above bad in leniency by" in found["verdict"]
    assert "| `lenient` | half a point for silence | |" in card_table("strict")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_card_holds_the_table(protocol):
    card = (ROOT / "eval_suite" / "llaso_eval" / "README.md").read_text("utf-8")
    assert card_table(protocol) in card, f"paste the output of card_table({protocol!r}) into the card"


def test_declarations_are_complete():
    """A metric that ranks has a best value and a declared baseline, and every kind of answer is ranked."""
    for metric in METRICS.values():
        assert metric.strict is not None or metric.paper is not None, metric.name
        if metric.ranks:
            assert metric.perfect is not None and metric.change, metric.name
        if isinstance(metric.baseline, str):
            assert METRICS[metric.baseline].describes_data
        assert set(metric.ranks) <= set(PROTOCOLS)
    for task in TASKS.values():
        for protocol in PROTOCOLS:
            assert ranking_metrics(task.kind, protocol), (task.code, protocol)


def test_the_schema_names_no_metric():
    """scores.schema.json holds for any metric, so that a new one needs no change there."""
    text = (ROOT / "eval_suite" / "data" / "scores.schema.json").read_text("utf-8")
    assert not [name for name in METRICS if re.search(rf'"{name}"', text) and name != "coverage"]


LABELS = st.sampled_from("abc")
ROWS = st.lists(
    st.fixed_dictionaries(
        {"label": LABELS, "answer": st.none() | LABELS, "choices": st.just(3), "answered": st.integers(0, 1)}
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=200, deadline=None)
@given(rows=ROWS)
def test_labels_against_sklearn_formulas(rows):
    """Accuracy, balanced accuracy and macro F1 from their definitions, row by row."""
    values = FileMetrics(rows, "strict").values()
    truth, said = [row["label"] for row in rows], [row["answer"] for row in rows]
    hits = [one == other for one, other in zip(truth, said, strict=True)]
    assert values["accuracy"] == pytest.approx(sum(hits) / len(rows))
    recall, f1 = [], []
    for label in set(truth):
        true = sum(hit for hit, one in zip(hits, truth, strict=True) if one == label)
        recall.append(true / truth.count(label))
        f1.append(2 * true / (truth.count(label) + said.count(label)))
    assert values["balanced_accuracy"] == pytest.approx(np.mean(recall))
    assert values["macro_f1"] == pytest.approx(np.mean(f1))
    assert values["majority_baseline"] == pytest.approx(max(map(truth.count, truth)) / len(rows))


def test_rows_are_written_with_what_was_read(tmp_path):
    folder = tmp_path / "made"
    folder.mkdir()
    rows = [
        ("ASR", "Twenty one.", "twenty-one", []),
        ("PP", "C4", "61", []),
        ("EE", "[time : five]", "[time : Five]", []),
        ("PSSL", "accuracy is 8", "accuracy is 9, prosodic is 7", []),
        ("SGC", "a male", "Male", ["Male", "Female"]),
        ("PR", "HH EH1 L OW0", "hɛloʊ", []),
    ]
    for task, prediction, reference, choices in rows:
        row = {"id": "0", "file": task, "task": task, "modality": "audio", "source": "made", "error": None}
        row |= {"prediction": prediction, "reference": reference, "choices": choices}
        (folder / f"{task}.jsonl").write_text(json.dumps(row))
    assert main(["eval", "score", str(folder), "--out", str(tmp_path / "scores.json"), "--no-intervals"]) == 0
    lines = (tmp_path / "scores.rows.jsonl").read_text("utf-8").split("\n")[:-1]
    read = {record["task"]: record for record in map(json.loads, lines)}
    assert read["ASR"]["normalized"] == ["21", "21"] and read["ASR"]["score"] == 0
    assert read["ASR"]["quantities"]["raw_word_errors"] == 2
    assert (read["PP"]["parsed"], read["PP"]["score"], read["PP"]["quantities"]["numbers"]) == (60, 1, [["", 61, 60]])
    assert read["EE"]["parsed"] == [["time", "five"]] and read["EE"]["quantities"]["slots"] == [1, 1, 1]
    assert read["PSSL"]["parsed"] == {"accuracy": 8} and read["PSSL"]["score"] == (1 + 7) / 2
    assert (read["SGC"]["parsed"], read["SGC"]["prediction"]) == ("male", "a male")
    assert read["PR"]["normalized"] == ["h ɛ l o ʊ", "h ɛ l o ʊ"]
