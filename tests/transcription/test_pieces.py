"""Cutting recordings: nothing that is said is lost or doubled, whatever the pauses, the noise and the loudness."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.spoken import recording, voice, without_speech
from support.tiny_llaso import RATE

from llaso.transcription.pieces import PieceRules, pieces_to_transcribe, speech_pieces
from llaso.transcription.speech_finders import FRAME_SECONDS, frame_levels

RULES = PieceRules(max_seconds=8)


@settings(deadline=None, max_examples=60)
@given(
    stretches=st.lists(st.tuples(st.floats(0, 3), st.floats(0.5, 20)), min_size=1, max_size=12),
    noise=st.sampled_from([0.0, 1e-5, 1e-3, 5e-3]),
    level=st.sampled_from([0.02, 0.2]),
)
def test_pieces_hold_all_speech_once_and_no_piece_is_too_long(stretches, noise, level):
    samples, spoken = recording(stretches, noise * level / 0.2, level)
    pieces = speech_pieces(samples, RATE, RULES)
    assert all(0 < stop - start <= RULES.max_seconds * RATE for start, stop in pieces)
    assert all(before[1] <= after[0] for before, after in zip(pieces, pieces[1:], strict=False))
    assert 0 <= pieces[0][0] and pieces[-1][1] <= len(samples)
    kept = np.zeros(len(samples), bool)
    for start, stop in pieces:
        kept[start:stop] = True
    edge = round(0.1 * RATE)  # a voice swells from nothing
    for start, stop in spoken:
        assert kept[start + edge : stop - edge].all()


@settings(deadline=None, max_examples=40)
@given(stretches=st.lists(st.tuples(st.floats(1.0, 3), st.floats(0.5, 6)), min_size=1, max_size=8))
def test_a_piece_is_what_is_said_between_two_pauses(stretches):
    samples, spoken = recording(stretches)
    pieces = speech_pieces(samples, RATE, RULES)
    assert len(pieces) == len(spoken)
    for (start, stop), (said_from, said_to) in zip(pieces, spoken, strict=True):
        assert abs(start - said_from) <= 0.35 * RATE and abs(stop - said_to) <= 0.35 * RATE


def test_minutes_without_speech_are_left_out_and_steady_sound_is_kept():
    quiet = np.random.default_rng(1).normal(0, 1e-3, 180 * RATE).astype(np.float32)
    samples = np.concatenate([voice(5), quiet, voice(5)])
    pieces = speech_pieces(samples, RATE, RULES)
    assert sum(stop - start for start, stop in pieces) < 12 * RATE
    steady = np.full(20 * RATE, 0.3, np.float32)
    assert sum(stop - start for start, stop in speech_pieces(steady, RATE, RULES)) == len(steady)


def test_a_long_stretch_is_cut_where_it_is_quietest():
    samples = voice(14)
    dip = slice(round(6.2 * RATE), round(6.5 * RATE))
    samples[dip] *= 1e-3
    pieces = speech_pieces(samples, RATE, RULES)
    assert len(pieces) == 2 and dip.start <= pieces[0][1] <= dip.stop and pieces[0][1] == pieces[1][0]


def test_without_speech_what_the_encoder_takes_whole_is_one_piece_and_longer_sound_none():
    for seconds, cut_short, pieces in ((30, False, 1), (30, True, 1), (30.1, False, 0), (30.1, True, 0)):
        found = pieces_to_transcribe(without_speech(seconds), RATE, 30.0, cut_short=cut_short)
        assert found == [(0, 30 * RATE)] * pieces
    samples, spoken = recording([(1.0, 2.0), (1.0, 2.0)])
    assert pieces_to_transcribe(samples, RATE, 30.0, cut_short=False) == [(0, len(samples))]
    assert len(pieces_to_transcribe(samples, RATE, 30.0)) == len(spoken)


@pytest.mark.parametrize("length", [0, 1, 100, RATE // 50, RATE // 50 + 1])
def test_a_recording_of_a_few_samples_has_no_speech_and_no_error(length):
    assert speech_pieces(np.full(length, 0.1, np.float32), RATE, RULES) == []


def test_levels_are_root_mean_squares_in_decibels_whatever_the_blocks():
    samples = voice(61)
    frame = round(FRAME_SECONDS * RATE)
    expected = [
        10 * np.log10(np.mean(samples[at : at + frame].astype(np.float64) ** 2) + 1e-12)
        for at in range(0, len(samples), frame)
    ]
    np.testing.assert_allclose(frame_levels(samples, frame), expected)
