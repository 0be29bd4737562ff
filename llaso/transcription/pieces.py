"""Cutting a recording into pieces of speech that the encoder takes whole.

A `SpeechFinder` says which frames hold speech. The recording is cut at pauses; a stretch without a pause that is
longer than the encoder's window is cut where it is quietest. Pieces do not overlap, so that no word is transcribed
twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .speech_finders import FRAME_SECONDS, EnergyFinder, SpeechFinder, frame_levels


@dataclass(frozen=True)
class PieceRules:
    """Where recordings are cut.

    Args:
        max_seconds: longest piece; the encoder's window at most.
        pause_seconds: shortest pause at which a recording is cut.
        margin_seconds: kept before and after the speech of a piece.
        min_seconds: shorter sounds, such as clicks, are no speech.
    """

    max_seconds: float = 30.0
    pause_seconds: float = 0.5
    margin_seconds: float = 0.2
    min_seconds: float = 0.06


def pieces_to_transcribe(
    samples: np.ndarray, rate: int, window_seconds: float, finder: SpeechFinder | None = None, cut_short: bool = True
) -> list[tuple[int, int]]:
    """Find the pieces in which a recording is transcribed.

    Args:
        samples: mono samples; a memory-mapped array is read in blocks.
        rate: their rate, Hz.
        window_seconds: length that the encoder takes whole.
        finder: finds speech; by default an `EnergyFinder`.
        cut_short: cut recordings that the encoder takes whole, too, as segment times need it.

    Returns:
        `(start, stop)` sample positions. If no speech is found, the whole of a recording that the encoder takes whole,
        and nothing of a longer one.
    """
    whole = [(0, len(samples))] if len(samples) <= window_seconds * rate else []
    if whole and not cut_short:
        return whole
    return speech_pieces(samples, rate, PieceRules(max_seconds=window_seconds), finder) or whole


def speech_pieces(
    samples: np.ndarray, rate: int, rules: PieceRules, finder: SpeechFinder | None = None
) -> list[tuple[int, int]]:
    """Find the pieces of a recording.

    Args:
        samples: mono samples; a memory-mapped array is read in blocks.
        rate: their rate, Hz.
        rules: where to cut.
        finder: finds speech; by default an `EnergyFinder`.

    Returns:
        `(start, stop)` sample positions, in order and without overlap; empty if there is no speech.
    """
    frame = round(FRAME_SECONDS * rate)
    levels = frame_levels(samples, frame)
    if not len(levels):
        return []
    finder = finder or EnergyFinder()
    speech = finder.judge(finder.measure(samples, rate)[0])
    return [
        (first * frame, min(last * frame, len(samples))) for first, last in pieces_of_frames(speech, levels, rules)
    ]


def pieces_of_frames(speech: np.ndarray, levels: np.ndarray, rules: PieceRules) -> list[tuple[int, int]]:
    """Find the pieces of a recording by its frames.

    Args:
        speech: whether each frame holds speech.
        levels: level of each frame, dB.
        rules: where to cut.

    Returns:
        `(start, stop)` frames, in order and without overlap.
    """
    margin, pause = (round(seconds / FRAME_SECONDS) for seconds in (rules.margin_seconds, rules.pause_seconds))
    shortest = round(rules.min_seconds / FRAME_SECONDS)
    stretches = [(start, stop) for start, stop in _runs(speech, pause) if speech[start:stop].sum() >= shortest]
    pieces: list[tuple[int, int]] = []
    for number, (start, stop) in enumerate(stretches):
        # The margins of neighbours meet in the middle of a short pause.
        before = 0 if number == 0 else (stretches[number - 1][1] + start) // 2
        after = len(levels) if number + 1 == len(stretches) else (stop + stretches[number + 1][0]) // 2
        widened = max(start - margin, before), min(stop + margin, after)
        pieces += _split(levels, *widened, int(rules.max_seconds / FRAME_SECONDS))
    return pieces


def _runs(speech: np.ndarray, pause: int) -> Iterator[tuple[int, int]]:
    """Yield `(start, stop)` of the stretches of speech, joined across gaps shorter than `pause` frames."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], speech, [False]]).astype(np.int8)))
    starts, stops = edges[::2], edges[1::2]
    if not len(starts):
        return
    cuts = np.flatnonzero(starts[1:] - stops[:-1] >= pause)
    yield from zip(starts[np.r_[0, cuts + 1]].tolist(), stops[np.r_[cuts, len(stops) - 1]].tolist(), strict=True)


def _split(levels: np.ndarray, start: int, stop: int, longest: int) -> Iterator[tuple[int, int]]:
    """Cut a stretch into parts of at most `longest` frames, each time at the quietest place of the second half."""
    while stop - start > longest:
        # A place is a fifth of a second wide, so that the cut falls between words rather than inside a plosive.
        width = round(0.2 / FRAME_SECONDS)
        candidates = levels[start + longest // 2 : start + longest]
        smooth = np.convolve(candidates, np.ones(width) / width, mode="valid")
        cut = start + longest // 2 + int(smooth.argmin()) + width // 2
        yield start, cut
        start = cut
    yield start, stop
