"""`llaso eval run`: from a model to a page in one command, with a judge, again, and with something missing."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from support.tiny_eval import chat_server, corpus_row, write_corpus
from test_eval_judge import honest

from eval_suite import generate as generation
from llaso.cli import main


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Transcripts, a closed set, and open questions that only a judge can grade."""
    rows = [corpus_row(number, "ASR", "text_audio", "hello world") for number in range(4)]
    rows += [corpus_row(n, "SGC", "audio", ("male", "female")[n % 2], ("male", "female")) for n in range(4, 8)]
    rows += [corpus_row(n, "AQA", "text_audio", "two") for n in range(8, 12)]
    return write_corpus(tmp_path_factory.mktemp("data"), rows)


@pytest.fixture
def system(monkeypatch, tmp_path):
    """A model in a module of its own: right, but for one transcript and one open answer."""
    (tmp_path / "listener.py").write_text(
        "def answer(requests):\n"
        "    return ['three' if r.row.id in ('row-001', 'row-009') else r.row.reference for r in requests]\n"
        "def deaf(requests):\n"
        "    raise ValueError('no ears')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "listener:answer"


def scores_of(out: Path) -> dict:
    return json.loads((out / "scores.json").read_text("utf-8"))


def everything(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_from_model_to_page(data, system, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["eval", "run", "--callable", system, "--data", str(data), "--batch-size", "4", "--out", str(out)]
    with chat_server(honest) as (url, received):
        command += ["--judge-model", "grader", "--judge-endpoint", url]
        assert main(command) == 0
        asked = len(received)
        assert asked == 4 and {one["body"]["model"] for one in received} == {"grader"}
        made = everything(out)
        assert main(command) == 0  # all is there: nothing is asked twice, and nothing changes
        assert len(received) == asked and everything(out) == made
    assert f"report: {out / 'report' / 'index.html'}" in capsys.readouterr().out

    scores = scores_of(out)
    main(["eval", "schema", "--out", str(tmp_path / "schema.json")])
    jsonschema.validate(scores, json.loads((tmp_path / "schema.json").read_text()))
    assert scores["system"] == system and scores["n"] == 12
    value = {task: one["metrics"] for task, one in scores["tasks"].items()}
    assert value["ASR"]["wer"]["value"] == 2 / 8
    assert value["SGC"]["accuracy"]["value"] == 1
    assert (value["AQA"]["judge_score"]["value"], value["AQA"]["judge_score"]["n"]) == ((5 + 1 + 5 + 5) / 4, 4)

    page = (out / "report" / "index.html").read_text("utf-8")
    assert "judge_score" in page and page.count("<audio") > 0  # the corpus is at hand, so examples sound
    assert {path.name for path in (out / "report").iterdir()} == {
        "index.html", "report.md", "report.json", "radar.png", "evidence"
    }  # fmt: skip


def test_without_a_judge_open_answers_stay_ungraded(data, system, tmp_path):
    out = tmp_path / "out"
    assert main(["eval", "run", "--callable", system, "--data", str(data), "--out", str(out)]) == 0
    assert not (out / "predictions" / "judge").exists()
    open_answers = scores_of(out)["tasks"]["AQA"]
    assert open_answers["outcomes"]["answered"] == 4
    assert open_answers["metrics"]["judge_score"]["value"] is None


def test_answers_survive_a_judge_that_is_gone(data, system, tmp_path, capsys, monkeypatch):
    """The command fails in words; what was generated is kept and not asked again."""
    monkeypatch.setattr("eval_suite.endpoint.time.sleep", lambda seconds: None)
    out = tmp_path / "out"
    command = ["eval", "run", "--callable", system, "--data", str(data), "--out", str(out)]
    assert main([*command, "--judge-model", "grader", "--judge-endpoint", "http://127.0.0.1:9/v1"]) == 2
    assert "http://127.0.0.1:9" in capsys.readouterr().err
    records = everything(out / "predictions" / "records")
    assert main(command) == 0
    assert everything(out / "predictions" / "records") == records


def test_a_model_that_fails_everywhere_is_not_scored(data, system, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(generation, "SAME_FAILURES", 100)  # so that it is let through to the last row
    command = ["eval", "run", "--callable", "listener:deaf", "--data", str(data), "--out", str(tmp_path / "out")]
    assert main(command) == 1
    assert "12 rows answered, 12 of them with an error" in capsys.readouterr().out
    assert not (tmp_path / "out" / "scores.json").exists()
