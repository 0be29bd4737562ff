"""A benchmark of one's own: a corpus that `data build` made goes through every command of `eval`."""

from __future__ import annotations

import json

from support.tiny_corpus import write_public_corpora

from llaso.cli import main

SYSTEMS = """
def right(requests):
    return [request.row.reference for request in requests]

def half(requests):
    return [request.row.reference if sum(map(ord, request.row.id)) % 2 else "zero" for request in requests]
"""


def test_from_a_built_corpus_to_panel_board_and_evidence(tmp_path, monkeypatch, capsys):
    (tmp_path / "two_systems.py").write_text(SYSTEMS)
    monkeypatch.syspath_prepend(tmp_path)

    def run(*command: object) -> str:
        capsys.readouterr()
        assert main([str(word) for word in command]) == 0
        return capsys.readouterr().out

    corpus = tmp_path / "my-benchmark"
    run("data", "build", "eval", "--sources", write_public_corpora(tmp_path / "speech"), "--out", corpus)
    answers = [tmp_path / name for name in ("right", "half")]
    for folder in answers:
        run("eval", "generate", "--callable", f"two_systems:{folder.name}", "--data", corpus, "--out", folder)
    panel = tmp_path / "panel.json"
    run("eval", "panel", "build", *answers, "--name", "mine", "--out", panel)
    assert json.loads(panel.read_text())["provenance"]["benchmark"] == str(corpus)
    assert "mine 1, protocol strict" in run("eval", "panel", "show", "--panel", panel)
    scores = [folder.with_suffix(".json") for folder in answers]
    for folder, out in zip(answers, scores, strict=True):
        run("eval", "score", folder, "--panel", panel, "--resamples", 50, "--out", out)
    right, half = (json.loads(out.read_text()) for out in scores)
    assert right["normalized"]["panel"]["value"] == 1 and half["normalized"]["panel"]["value"] == 0
    assert right["normalized"]["panel"]["name"] == "mine" and right["normalized"]["panel"]["n_tasks"] >= 2
    assert right["tasks"]["ASR"]["primary"]["value"] == 0 < half["tasks"]["ASR"]["primary"]["value"]
    assert "right below half in WER" in run("eval", "compare", *scores, "--resamples", 200)
    assert "ASR" in run("eval", "power", *scores)
    run("eval", "groups", scores[1], "--resamples", 50)
    run("eval", "board", *scores, "--out", tmp_path / "board", "--resamples", 50)
    run("eval", "report", *scores, "--out", tmp_path / "report")
    page = (tmp_path / "report" / "evidence" / "ASR.html").read_text()
    assert '"audio":[' in page


def test_a_panel_of_one_system_is_refused(tmp_path, capsys):
    answered = {"id": "1", "file": "x", "task": "ASR", "modality": "audio", "prediction": "a", "reference": "a"}
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "x.jsonl").write_text(json.dumps(answered))
    assert main(["eval", "panel", "build", str(tmp_path / "alone"), "--out", str(tmp_path / "panel.json")]) == 2
    assert "a panel needs at least two systems" in capsys.readouterr().err
