"""The measurements of long recordings and word times: their recordings are what they say, and they run through."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.tiny_llaso import RATE, tone

from benchmarks import digits_model, transcription, word_times
from llaso.transcription.pieces import PieceRules, speech_pieces


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """Tones in place of digits, laid out as the data set is."""
    folder = tmp_path_factory.mktemp("digits")
    (folder / "recordings").mkdir()
    for digit in range(3):
        for take in (0, 1, 5, 6):
            file = folder / f"recordings/{digit}_ann_{take}.wav"
            soundfile.write(file, tone(0.3 + 0.05 * take, 200 + 150 * digit), RATE)
    return folder


def test_the_held_out_takes_are_not_trained_on(digits, tmp_path):
    held_out, learned = (digits_model.read_digits(digits, which) for which in (True, False))
    assert len(held_out) == len(learned) == 6 and {len(one.samples) for one in held_out} == {4800, 5600}
    with pytest.raises(ValueError, match="wants the Free Spoken Digit Dataset"):
        digits_model.read_digits(tmp_path, True)


def test_a_strings_words_are_where_it_says(digits):
    string = digits_model.digit_string(digits_model.read_digits(digits, True), random.Random(3))
    sound = np.abs(string.samples) > 1e-6
    inside = np.zeros(len(sound), bool)
    for start, end in string.times:
        inside[round(start * RATE) : round(end * RATE)] = True
    assert len(string.times) == len(string.words) and not sound[~inside].any() and sound[inside].mean() > 0.99


def test_the_recordings_pieces_are_its_strings(digits):
    made = transcription.recording(digits, 40)
    pieces = speech_pieces(made.samples, RATE, PieceRules())
    assert len(pieces) == len(made.strings)
    for (start, stop), begin, string in zip(pieces, made.starts, made.strings, strict=True):
        assert start <= begin + string.times[0][0] * RATE and stop >= begin + string.times[-1][1] * RATE


def test_stretches_of_attention_give_the_starts():
    weights = np.full((3, 12), 0.01)
    for word, tokens in enumerate((range(0, 3), range(5, 7), range(9, 12))):
        weights[word, list(tokens)] = 1
    found = word_times.starts(weights, 0.04)
    assert found[0] == 0 and 3 * 0.04 <= found[1] <= 5 * 0.04 and 7 * 0.04 <= found[2] <= 9 * 0.04
    assert word_times.peaks(weights, 0.04) == pytest.approx([0.02, 0.22, 0.38])


@pytest.mark.slow
def test_an_untrained_model_runs_through(digits, tmp_path, monkeypatch, capsys):
    model = tmp_path / "model"
    digits_model.train(digits_model.read_digits(digits, False), 2, model, batch=2)
    monkeypatch.setattr(transcription, "WATCH_SECONDS", 0.005)  # each batch is done in tenths of a second
    run = ["x", str(model), str(digits)]
    long = ["--minutes", "2", "--live-seconds", "6", "--out", str(tmp_path / "long")]
    monkeypatch.setattr(sys, "argv", [*run, *long])
    transcription.main()
    report = json.loads((tmp_path / "long/report.json").read_text())
    assert 0 < report["kept_after_the_kill"] < report["pieces_found"] == report["strings"]
    assert report["seconds_of_sound"] >= 120 and report["live"]["pieces"] >= 1 and report["ratio"] > 0
    assert (tmp_path / "long/memory.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(sys, "argv", [*run, "--strings", "4", "--out", str(tmp_path / "times.json")])
    word_times.main()
    times = json.loads((tmp_path / "times.json").read_text())
    assert times["strings"] == 2 and times["median_error_of_starts"]["evenly spread"] > 0
