"""Finding speech: silero-vad hears people and no noise, whatever the blocks; what is missing is said in one line."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from support.tiny_llaso import RATE

from dataset_scripts.sources.base import Speech
from llaso.cli import main
from llaso.transcription import speech_finders
from llaso.transcription.pieces import PieceRules, speech_pieces
from llaso.transcription.speech_finders import FINDERS, EnergyFinder, SileroFinder, speech_finder


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE), np.float32)


def spoken(text: str, voice: str = "en-us+f3") -> np.ndarray:
    pytest.importorskip("espeakng_loader", reason="espeak-ng is not installed: pip install 'llaso[tts]'")
    from dataset_scripts.synthesize import backend

    return backend().speak([Speech(text, voice)])[0]


@pytest.fixture(scope="module")
def silero() -> SileroFinder:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'llaso[vad]'")
    if importlib.util.find_spec("silero_vad") is None:
        pytest.skip("silero-vad is not installed: pip install 'llaso[vad]'")
    return SileroFinder()


def test_silero_hears_speech_and_no_noise(silero):
    first, second = spoken("one two three four five"), spoken("seven eight nine, nothing else", "en+m3")
    noise = np.random.default_rng(0).normal(0, 0.2, 3 * RATE).astype(np.float32)
    parts = [silence(1), first, silence(1.5), noise, silence(1.5), second, silence(1)]
    samples, begins = np.concatenate(parts), np.cumsum([0, *map(len, parts)])
    pieces = speech_pieces(samples, RATE, PieceRules(), silero)
    assert len(pieces) == 2
    for (start, stop), place in zip(pieces, (1, 5), strict=True):
        assert abs(start - begins[place]) < 0.4 * RATE and abs(stop - begins[place + 1]) < 0.4 * RATE
    by_level = speech_pieces(samples, RATE, PieceRules(), EnergyFinder())
    assert any(start < begins[3] + RATE < stop for start, stop in by_level)


def test_silero_says_the_same_whatever_the_blocks_and_leaves_torch_alone(silero, monkeypatch):
    threads = torch.get_num_threads()
    samples = np.concatenate([spoken("one two three"), silence(0.7), spoken("four five")])[: 5 * RATE + 7]
    whole, _ = silero.measure(samples, RATE)
    assert len(whole) == -(-len(samples) // 320) and whole.max() > 0.9
    monkeypatch.setattr(speech_finders, "SILERO_BLOCK", 7)
    np.testing.assert_allclose(silero.measure(samples, RATE)[0], whole, atol=1e-4)
    block, state, found = 3 * speech_finders.BLOCK_FRAMES * 320, None, []
    for start in range(0, len(samples), block):
        measured, state = silero.measure(samples[start : start + block], RATE, state)
        found.append(measured)
    np.testing.assert_allclose(np.concatenate(found), whole, atol=1e-4)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("length", [0, 1, 319, 320, 321, 5121])
def test_both_finders_judge_every_frame(silero, length):
    samples = np.full(length, 0.1, np.float32)
    for finder in (silero, EnergyFinder()):
        assert len(finder.judge(finder.measure(samples, RATE)[0])) == -(-length // 320)
    with pytest.raises(ValueError, match="takes samples at 16000 Hz, not 8000 Hz"):
        silero.measure(samples, 8000)


@pytest.mark.parametrize(
    ("probabilities", "speech"),
    [
        ([0.4, 0.6, 0.4, 0.2, 0.4, 0.3, 0.6], [1, 1, 1, 0, 0, 0, 1]),
        ([0.34, 0.49, 0.45], [0, 0, 0]),
        ([0.9], [1]),
        ([], []),
    ],
)
def test_speech_goes_on_below_the_level_at_which_it_begins(silero, probabilities, speech):
    found = silero.judge(np.array(probabilities))
    assert found.tolist() == [bool(one) for one in speech]


@pytest.mark.parametrize("command", [["transcribe", "none.wav", "--model", "none"], ["serve", "none"]])
def test_without_the_extra_a_command_ends_in_one_line_that_names_it(command, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    assert main([*command, "--speech-finder", "silero"]) == 2
    error = capsys.readouterr().err
    assert "the silero speech finder needs pip install 'llaso[vad]'" in error and error.count("\n") == 1


def test_while_a_recording_is_made_steady_noise_is_no_speech():
    noise = np.random.default_rng(0).normal(0, 0.01, 5 * RATE).astype(np.float32)
    for finder, share in ((EnergyFinder(), 1.0), (EnergyFinder().for_live(), 0.0)):
        assert finder.judge(finder.measure(noise, RATE)[0]).mean() == share


def test_names_of_finders():
    assert isinstance(speech_finder("energy"), EnergyFinder)
    with pytest.raises(ValueError, match="no speech finder 'loud'; choose one of energy, silero"):
        speech_finder("loud")


def test_the_command_line_offers_the_finders_there_are(capsys):
    assert main(["transcribe", "--help"]) == 0
    assert f"--speech-finder {{{','.join(FINDERS)}}}" in capsys.readouterr().out
