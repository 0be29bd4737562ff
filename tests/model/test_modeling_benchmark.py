"""`make bench`, its part on the model: the arithmetic of its ratios, and every model at a task at a tiny size."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from benchmarks import __main__ as benchmarks_command
from benchmarks.measure import loss_of, run
from benchmarks.model import compare, ratios
from benchmarks.profile import shares
from benchmarks.subjects import PEERS, RELEASED_WAY, SIZES, SUBJECTS, batch_of


def test_ratios_are_taken_round_by_round():
    assert ratios([10.0, 40.0, 30.0], [5.0, 10.0, 10.0]) == {"median": 3.0, "least": 2.0, "most": 4.0}
    results = {
        name: {"seconds": [seconds] * 2, "processor_seconds": [2 * seconds] * 2, "peak_gib": [1.0, 2.0]}
        for name, seconds in ((RELEASED_WAY, 8.0), ("LLaSO trim", 1.0), (PEERS[0], 4.0), (PEERS[1], 3.0))
    }
    found = compare("stage-1 step", results, quoted=False)["LLaSO trim"]
    assert found["speed_to_released_way"]["median"] == 8.0
    assert found["speed_to_best_peer"]["median"] == 3.0
    assert found["memory_to_released_way"] == {"median": 1.0, "least": 1.0, "most": 1.0}
    assert "speed_to_quoted" not in found


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_model_runs_every_kind_of_task(name):
    size = SIZES["tiny"]
    assert run(name, "stage-2 step", "tiny", 1).tokens == size.prompt + size.answer + AUDIO_TOKENS[name]
    assert run(name, "generation", "tiny", 1).tokens == size.prompt + AUDIO_TOKENS[name]


AUDIO_TOKENS = {
    RELEASED_WAY: 1500,
    "LLaSO full": 1500,
    "LLaSO trim": 250,
    "LLaSO full, 4 to 1": 375,
    "LLaSO trim, 4 to 1": 63,
    "AudioFlamingo3": 125,
    "GLM-ASR": 62,
    "Voxtral": 375,
}
"""Of five seconds: what each model makes of them by itself."""


def test_the_released_way_is_the_same_loss():
    subject, size = SUBJECTS[RELEASED_WAY], SIZES["tiny"]
    torch.manual_seed(0)
    model = subject.build(size).train()
    batch = batch_of(subject, model, size, rows=2, answers=True)
    losses = [loss_of(subject, model, batch) for subject in (subject, SUBJECTS["LLaSO full"])]
    torch.testing.assert_close(*losses, atol=1e-6, rtol=0)


def test_the_profile_names_operators():
    found = shares("LLaSO trim", "stage-1 step", "tiny")
    assert "aten::mm" in [name for name, _, _ in found]
    assert sum(share for _, _, share in found) == pytest.approx(1)


@pytest.mark.slow
def test_the_command_writes_table_json_and_picture(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "model", "--size", "tiny", "--repeats", "1", "--threads", "1"]
    command += ["--subject", RELEASED_WAY, "--subject", "LLaSO trim", "--out", str(tmp_path)]
    for task in ("stage-1 step", "first token"):
        subprocess.run([*command, "--task", task], check=True, timeout=300)
    report = json.loads((tmp_path / "bench.json").read_text())
    assert set(report["results"]) == {"stage-1 step", "first token"}  # the second call kept what the first measured
    assert all(len(found["seconds"]) == 1 for found in report["results"]["first token"].values())
    table = (tmp_path / "bench.md").read_text().splitlines()
    assert len(table) == 2 + 4 and len({line.count("|") for line in table}) == 1
    assert (tmp_path / "bench.png").stat().st_size > 5_000


def test_errors_of_the_operating_system_are_one_plain_line(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    arguments = ["transcripts", "model", "--speech", "speech.jsonl", "--out", str(tmp_path / "file" / "below")]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    with pytest.raises(SystemExit, match=r"^benchmarks transcripts: error: .*file is a file, and a folder is needed"):
        benchmarks_command.main()
