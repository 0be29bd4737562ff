"""The benchmarks of training steps, at a size that takes seconds and needs no GPU."""

from __future__ import annotations

import json

import pytest

from benchmarks import packing, training_gpu
from benchmarks.loading import PARALLEL, PER_DEVICE, Bench, write_corpus


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


def test_the_gpu_benchmark_measures_unequal_rows_padded_and_packed(tmp_path, monkeypatch):
    out = tmp_path / "figures.json"
    options = (
        "--size tiny --device cpu --seconds 1 --rows 2 --spread 0.5 --packing --accumulation 1 --warmup 0 --steps 1"
    )
    monkeypatch.setattr("sys.argv", ["training_gpu", *options.split(), "--out", str(out)])
    training_gpu.main()
    results = json.loads(out.read_text())
    assert [result["packing"] for result in results] == [False, True] * 4
    text = training_gpu.PROMPT_TOKENS + training_gpu.ANSWER_TOKENS
    for padded, packed in zip(results[::2], results[1::2], strict=True):
        assert packed["row_tokens"] == padded["row_tokens"] == text + (1500 if padded["padding"] == "full" else 50)
        assert packed["loss"] == pytest.approx(padded["loss"], rel=0.02)  # in bf16
        for name in ("stage", "padding", "rows"):
            assert packed[name] == padded[name]


def test_the_packing_benchmark_takes_the_same_rows_in_every_way(tmp_path, monkeypatch, capsys):
    out = tmp_path / "figures.json"
    options = "--size tiny --rows 12 --at-once 4 --rounds 2 --scale 0.2 --threads 1"
    monkeypatch.setattr("sys.argv", ["packing", *options.split(), "--out", str(out)])
    packing.main()
    found = json.loads(out.read_text())
    assert list(found) == list(packing.WAYS)
    reference = found[packing.REFERENCE]
    for name, of_way in found.items():
        assert of_way["loss"] == pytest.approx(reference["loss"], rel=1e-5)
        assert len(of_way["seconds"]) == 2 and of_way["speed"][1] <= of_way["speed"][0] <= of_way["speed"][2]
        assert (of_way["padding"] == 0) == name.startswith("packed")
    by_row, one_mask = found["packed, at random"], found["packed, one mask"]
    assert by_row["flops"] < found["padded, by length"]["flops"] < reference["flops"]
    assert by_row["flops"] < one_mask["flops"] and by_row["peak_bytes"] < one_mask["peak_bytes"]
    assert by_row["peak_bytes"] < reference["peak_bytes"]
    assert "| packed, at random | 0.0% |" in capsys.readouterr().out


def test_the_loading_benchmark_reads_what_it_says(tmp_path):
    bench = Bench(tmp_path, old=None)
    corpus = write_corpus(tmp_path / "corpus", 1200, 0.1, bench.processor)
    size = sum(path.stat().st_size for path in corpus.iterdir())
    found = bench.measure("here", corpus, 1200 - PER_DEVICE * PARALLEL)
    assert size < found["bytes"] < 1.5 * size + 4_000_000  # and the modules that are imported meanwhile
    assert found["rows_per_second"] > 0 and found["first"] > 0 and found["open"] > 0
