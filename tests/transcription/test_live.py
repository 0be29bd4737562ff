"""Cutting while a recording is made: nothing is lost and nothing comes twice, in whatever blocks the sound comes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.spoken import recording
from support.tiny_llaso import RATE

from llaso.transcription.live import KEPT_SECONDS, AgreedWords, LivePiece, LiveSegmenter
from llaso.transcription.pieces import PieceRules
from llaso.transcription.speech_finders import EnergyFinder

RULES = PieceRules(max_seconds=8)


def fed(samples: np.ndarray, sizes: list[int]) -> list[LivePiece]:
    """The pieces of samples that come in blocks of these sizes, in turn."""
    segmenter, found, start = LiveSegmenter(RATE, RULES, EnergyFinder().for_live()), [], 0
    for size in itertools.cycle(sizes):
        if start >= len(samples):
            break
        found += segmenter.add(samples[start : start + size])
        start += size
        assert len(segmenter.speech()) <= (RULES.max_seconds + 1) * RATE
        assert len(segmenter._samples) <= (KEPT_SECONDS + RULES.max_seconds + 1) * RATE + size
    last = segmenter.cut()
    return found + ([last] if last else [])


@settings(deadline=None, max_examples=12)
@given(
    stretches=st.lists(st.tuples(st.floats(0.8, 3), st.floats(0.5, 20)), min_size=1, max_size=4),
    sizes=st.lists(st.integers(1, 40_000), min_size=1, max_size=4).filter(lambda sizes: sum(sizes) > 9_000),
)
def test_all_speech_is_in_one_piece_and_pieces_are_the_sound_of_their_place(stretches, sizes):
    samples, spoken = recording(stretches)
    pieces = fed(samples, sizes)
    assert all(one.stop <= other.start for one, other in itertools.pairwise(pieces))
    kept = np.zeros(len(samples), bool)
    for piece in pieces:
        assert 0 < len(piece.samples) <= RULES.max_seconds * RATE
        np.testing.assert_array_equal(piece.samples, samples[piece.start : piece.stop])
        kept[piece.start : piece.stop] = True
    edge = round(0.1 * RATE)  # a voice swells from nothing
    for start, stop in spoken:
        assert kept[start + edge : stop - edge].mean() > 0.99


def test_a_piece_comes_as_soon_as_the_pause_is_long_enough():
    samples, spoken = recording([(1.0, 2.0), (2.0, 1.0)])
    segmenter = LiveSegmenter(RATE, RULES, EnergyFinder().for_live())
    ended, speaking = {}, []
    for start in range(0, len(samples), 320):
        for piece in segmenter.add(samples[start : start + 320]):
            ended[piece.start] = start + 320
        if segmenter.speech_start is not None:
            speaking.append(start + 320)
    assert len(ended) == 2
    for (_, stop), came in zip(spoken, ended.values(), strict=True):
        assert 0.4 * RATE <= came - stop <= 0.8 * RATE
    assert spoken[0][0] < speaking[0] < spoken[0][0] + 0.5 * RATE


def test_an_hour_is_cut_in_the_memory_of_a_minute():
    one, _ = recording([(1.0, 2.0), (1.0, 5.0)])
    segmenter, found, most = LiveSegmenter(RATE, RULES, EnergyFinder().for_live()), 0, 0
    for _ in range(3600 * RATE // len(one)):
        found += len(segmenter.add(one))
        most = max(most, len(segmenter._samples))
    assert found >= 2 * (3600 * RATE // len(one)) - 1 and most < 80 * RATE


def test_without_a_finder_only_a_cut_ends_a_piece():
    samples, _ = recording([(1.0, 1.0), (2.0, 1.0)])
    segmenter = LiveSegmenter(RATE, RULES, None, begin=500)
    assert segmenter.add(samples) == [] and segmenter.cut().samples.tolist() == samples.tolist()
    assert segmenter.cut() is None and segmenter.end == 500 + len(samples)
    segmenter.add(samples[:100])
    segmenter.clear()
    segmenter.add(samples[100:200])
    piece = segmenter.cut()
    assert piece.start == 600 + len(samples) and piece.samples.tolist() == samples[100:200].tolist()


@pytest.mark.parametrize(
    ("passes", "last", "deltas"),
    [
        (
            ["one two", "one two three", "one two three four"],
            "one two three four.",
            ["", "one two", " three", " four."],
        ),
        (["won", "one", "one two"], "one two three", ["", "", "one", " two three"]),
        (["one two", "one two", "five"], "five six", ["", "one two", "", ""]),
        ([], "one two", ["one two"]),
        (["", ""], "", ["", "", ""]),
    ],
)
def test_words_are_told_once_two_passes_agree(passes, last, deltas):
    words = AgreedWords()
    assert [*map(words.add, passes), words.finish(last)] == deltas
