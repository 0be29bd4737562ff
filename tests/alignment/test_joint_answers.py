"""LLaSO-Eval with joint decoding: transcripts change, and every other row is answered as without it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.tiny_eval import corpus_row, write_corpus
from support.tiny_llaso import aligned_llaso, tiny_llaso

from llaso.cli import main

WEIGHT = "0.9"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("joint")
    kinds = [("ASR", "text_audio"), ("SGC", "text_audio"), ("ASR", "audio"), ("ASR", "text_audio"), ("SGC", "audio")]
    write_corpus(folder / "corpus", [corpus_row(n, *kind, "male") for n, kind in enumerate(kinds)])
    for name, (model, processor) in {"aligned": aligned_llaso(), "plain": tiny_llaso("trim", seed=3)}.items():
        model.generation_config.eos_token_id = 257
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    return folder


def answers(root: Path, out: str, *options: str, model: str = "aligned") -> dict[str, str]:
    folder = root / out
    command = ["eval", "generate", "--model", str(root / model), "--data", str(root / "corpus"), "--out", str(folder)]
    assert main([*command, "--max-new-tokens", "8", "--device", "cpu", *options]) == 0
    lines = [line for file in sorted(folder.glob("*.jsonl")) for line in file.read_text("utf-8").splitlines()]
    return {row["id"]: row["prediction"] for row in map(json.loads, lines) if "prediction" in row}


def test_transcripts_alone_are_decoded_jointly(root):
    plain, joint = answers(root, "plain-answers"), answers(root, "joint", "--ctc-weight", WEIGHT)
    transcripts = {"row-000", "row-003"}
    assert {row for row in plain if plain[row] != joint[row]} == transcripts
    assert all(set(joint[row]) <= set("abcdefgh ") for row in transcripts) and any(joint[row] for row in transcripts)
    alone = answers(root, "one-by-one", "--ctc-weight", WEIGHT, "--batch-size", "1")
    assert alone == joint
    made = json.loads((root / "joint" / "generation.json").read_text())
    assert made["settings"]["ctc_weight"] == 0.9
    assert "ctc_weight" not in json.loads((root / "plain-answers" / "generation.json").read_text())["settings"]
    assert plain == answers(root, "never-aligned", model="plain")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "plain"], "this model was not aligned by CTC"),
        (["--model", "aligned", "--endpoint", "http://127.0.0.1:9/v1"], "a server has its own"),
        (["--callable", "json:dumps"], "not for a function"),
    ],
)
def test_a_weight_without_an_aligned_model_here_is_refused(root, options, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(root)
    command = ["eval", "generate", "--data", "corpus", "--out", str(tmp_path / "out"), "--ctc-weight", WEIGHT]
    assert main([*command, *options]) == 2
    assert message in capsys.readouterr().err
