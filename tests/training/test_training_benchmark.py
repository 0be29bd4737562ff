"""The GPU benchmark's whole path, at a size for which no GPU is needed."""

from __future__ import annotations

import json

import pytest

from benchmarks import training_gpu


def test_the_gpu_benchmark_runs_and_counts(tmp_path, monkeypatch, capsys):
    out = tmp_path / "figures.json"
    options = "--size tiny --device cpu --seconds 1 --accumulation 2 --warmup 1 --steps 2"
    monkeypatch.setattr("sys.argv", ["training_gpu", *options.split(), "--out", str(out)])
    training_gpu.main()
    results = json.loads(out.read_text())
    assert [(result["stage"], result["padding"]) for result in results] == [
        (["projector"], "full"),
        (["projector"], "trim"),
        (["projector", "llm"], "full"),
        (["projector", "llm"], "trim"),
    ]
    text = training_gpu.PROMPT_TOKENS + training_gpu.ANSWER_TOKENS
    assert [result["row_tokens"] for result in results] == [text + 1500, text + 50] * 2
    assert [result["rows"] for result in results] == [4, 4, 2, 2]  # the recipes' rows, twice accumulated
    for result in results:
        tokens = result["rows"] * result["row_tokens"]
        assert result["tokens_per_second"] == pytest.approx(tokens / result["step_seconds"])
        assert result["device"] == "CPU" and result["peak_memory_gib"] is None and result["share_of_peak"] is None
        assert result["tflops"] > 0 and result["loss"] > 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(results)
