"""The table of `python -m benchmarks exported`: rates, their intervals, and what counts as equal."""

from __future__ import annotations

import json

import pytest
import soundfile

pytest.importorskip("gguf", reason="gguf is not installed: pip install 'llaso[export]'")

from support.tiny_families import family_llaso
from support.tiny_llaso import tone

from benchmarks.exported import ScoredTranscripts, measure, read_clips, table


def test_rates_intervals_and_equal_ids():
    own, worse = ScoredTranscripts(), ScoredTranscripts()
    for ids in range(4):
        own.add("one two three four", "one two three four", [ids])
        worse.add("one two three", "one two three four", [ids % 2])
    assert own.rate() == 0 and own.interval() == (0, 0)
    assert worse.rate() == 0.25 and worse.interval() == (0.25, 0.25)  # every clip has the same errors
    own.add("", "five six", [9])
    worse.add("five six", "five six", [9])
    low, high = own.interval()
    assert low == 0 < own.rate() == 2 / 18 < high
    rows = table({"own": own, "f16": worse}).split("\n")
    assert rows[2].startswith("| `own` | 0.111 (0.000 to ") and rows[2].endswith("| – | – |")
    assert "| +0.111 (" in rows[3] and rows[3].endswith("| 3 of 5 |")


def test_a_manifest_is_read_evenly(tmp_path):
    rows = []
    for number in range(7):
        soundfile.write(tmp_path / f"{number}.wav", tone(31.0 if number == 2 else 0.5 + number / 10), 16_000)
        rows.append({"audio": f"{number}.wav", "text": f"clip {number}"})
    (tmp_path / "dev.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [text for _, text in read_clips(tmp_path / "dev.jsonl", 4)] == ["clip 0", "clip 1", "clip 3", "clip 5"]
    assert [text for _, text in read_clips(tmp_path / "dev.jsonl", 3)] == ["clip 0", "clip 4"]  # the other is long


def test_the_model_and_llama_cpp_are_measured_on_the_same_clips():
    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed: pip install xllamacpp")
    model, processor = family_llaso("smollm2")
    clips = [(tone(1.0), "a tone"), (tone(2.0, 300), "another tone")]
    found = measure(model, processor, clips, ["f32"], 4, print)
    assert found.keys() == {"own", "f32"}
    assert found["own"].ids == found["f32"].ids and all(found["own"].ids)
    assert found["own"].words == found["f32"].words == [2, 2]
    assert found["own"].errors == found["f32"].errors
