"""`python -m benchmarks voice`: a label is read from the vectors that keep it, on speakers it was not learned from."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from support.tiny_llaso import tiny_llaso

from benchmarks import voice


def write_manifest(folder: Path, speakers: int = 10, clips: int = 2) -> Path:
    """Noise of two colours, which a label names, by speakers of equal numbers."""
    random, rows = np.random.default_rng(0), []
    for speaker in range(speakers):
        label = ("bright", "dark")[speaker % 2]
        for clip in range(clips):
            noise = random.standard_normal(4000 + 800 * clip)
            samples = np.diff(noise) if label == "bright" else np.cumsum(noise) / 30
            name = f"{speaker}-{clip}.wav"
            soundfile.write(folder / name, (0.1 * samples).clip(-1, 1).astype(np.float32), 16_000)
            rows.append({"audio": name, "text": "noise", "speaker": speaker, "gender": label, "age": 20 + speaker})
    manifest = folder / "speech.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return manifest


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A LLaSO whose projector passes nothing on."""
    folder = tmp_path_factory.mktemp("deaf")
    model, processor = tiny_llaso()
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.weight.zero_()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def test_a_projector_that_passes_nothing_on_is_seen(checkpoint, tmp_path, monkeypatch, capsys):
    manifest, out = write_manifest(tmp_path), tmp_path / "voice.json"
    monkeypatch.setattr(sys, "argv", ["voice", checkpoint, "--speech", str(manifest), "--out", str(out)])
    voice.main()
    said = capsys.readouterr().out
    assert "20 clips of 10 speakers; gender: bright, dark" in said
    assert "| always the most frequent label | 0.500 |" in said
    record = json.loads(out.read_text(encoding="utf-8"))
    assert record["majority"] == {"speech": 0.5}
    (found,) = record["models"]
    heard = found["encoder"]["speech"]
    assert 0.9 < heard["accuracy"] and heard["low"] <= heard["accuracy"] <= heard["high"]
    assert f"| {checkpoint}, encoder | {heard['accuracy']:.3f} [{heard['low']:.3f}, {heard['high']:.3f}] |" in said
    assert found["projector"]["speech"]["accuracy"] <= 0.5  # nothing but the other speakers' most frequent label


def test_speakers_are_classified_by_others_alone():
    """Values that tell who speaks and nothing else are of use only to a classifier that has heard the speaker."""
    random = np.random.default_rng(0)
    speakers = np.repeat(np.arange(40).astype(str), 5)
    labels = np.repeat(random.permutation(np.arange(40) % 2), 5)
    values = np.repeat(random.standard_normal((40, 60)), 5, axis=0)
    assert 0.25 < (voice.cross_validated_predictions(values, labels, speakers) == labels).mean() < 0.75
    told = values + 3 * labels[:, None]
    assert (voice.cross_validated_predictions(told, labels, speakers) == labels).mean() > 0.95


def test_rows_are_chosen_by_speaker_label_and_age(tmp_path):
    manifest = write_manifest(tmp_path, speakers=14, clips=3)
    clips = voice.labelled_clips([manifest], "gender", 2)
    assert len(clips) == 28 == 2 * len({clip["speaker"] for clip in clips})
    assert len(voice.labelled_clips([manifest], "gender", 1, min_age=24)) == 10
    with pytest.raises(ValueError, match="`gender` needs at least two values with 5 speakers each; found bright"):
        voice.labelled_clips([manifest], "gender", 2, min_age=26)
    with pytest.raises(ValueError, match="`mood` needs .*; found none. Choose another --label"):
        voice.labelled_clips([manifest], "mood", 2)
    manifest.write_text(manifest.read_text().replace('"age": 20', '"age": "twenties"'), encoding="utf-8")
    assert len(voice.labelled_clips([manifest], "gender", 1)) == 14
    with pytest.raises(ValueError, match="the age of 0-0.wav is 'twenties', which is no number; omit --min-age"):
        voice.labelled_clips([manifest], "gender", 1, min_age=18)
