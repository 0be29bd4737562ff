"""Cutting a recording while it is being made, and the words of a growing transcript that are likely to stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .pieces import PieceRules, pieces_of_frames
from .speech_finders import BLOCK_FRAMES, FRAME_SECONDS, SpeechFinder, frame_levels

KEPT_SECONDS = 60.0
"""Sound of this length is kept, as speech is found by comparison with what came before."""


@dataclass(frozen=True)
class LivePiece:
    """A piece that has ended.

    Args:
        start: position of its first sample since the beginning.
        samples: mono, float32.
    """

    start: int
    samples: np.ndarray

    @property
    def stop(self) -> int:
        """Return the position behind its last sample."""
        return self.start + len(self.samples)


class LiveSegmenter:
    """Takes sound as it comes, and gives pieces once a pause has followed them; no sample is in two pieces.

    Args:
        rate: of the samples, Hz.
        rules: where to cut.
        finder: finds speech, as `for_live` gives it; None to cut only by `cut`.
        begin: position of the first sample, for times that go on from an earlier segmenter.
    """

    def __init__(self, rate: int, rules: PieceRules, finder: SpeechFinder | None, begin: int = 0) -> None:
        self._rate, self._rules, self._finder = rate, rules, finder
        self._frame = round(FRAME_SECONDS * rate)
        self._samples = np.zeros(0, np.float32)  # from position `_begin` on
        self._levels = np.zeros(0)
        self._measured = np.zeros(0)
        self._state: Any = None
        self._begin = self._taken = begin
        self._open: int | None = None if finder else begin

    @property
    def end(self) -> int:
        """Return the position behind the newest sample."""
        return self._begin + len(self._samples)

    @property
    def speech_start(self) -> int | None:
        """Return where the piece that is being spoken begins; None in a pause."""
        return self._open

    def speech(self) -> np.ndarray:
        """Return the samples of the piece that is being spoken, as far as they came; none in a pause."""
        return self._samples[len(self._samples) if self._open is None else self._open - self._begin :]

    def add(self, samples: np.ndarray) -> list[LivePiece]:
        """Add sound, and return the pieces that have ended with it."""
        self._samples = np.concatenate([self._samples, samples])
        if self._finder is None:
            return []
        heard = len(self._levels) * self._frame
        block = BLOCK_FRAMES * self._frame
        new = self._samples[heard : heard + (len(self._samples) - heard) // block * block]
        if not len(new):
            return []
        measured, self._state = self._finder.measure(new, self._rate, self._state)
        self._measured = np.concatenate([self._measured, measured])
        self._levels = np.concatenate([self._levels, frame_levels(new, self._frame)])
        ended = self._ended(self._finder)
        self._forget()
        return ended

    def cut(self) -> LivePiece | None:
        """End the piece that is being spoken; None if there is nothing of one."""
        if self._open is None or self._open == self.end:
            return None
        piece = self._take(self._open, self.end)
        self._forget()
        return piece

    def clear(self) -> None:
        """Forget the piece that is being spoken."""
        self.cut()

    def _ended(self, finder: SpeechFinder) -> list[LivePiece]:
        """Take the pieces that a pause follows, and note where the one that is being spoken begins."""
        speech = finder.judge(self._measured)
        taken = -(-(self._taken - self._begin) // self._frame)
        speech[:taken] = False
        # A piece reaches its margin beyond the speech, and has ended once the pause is as long as the rules say.
        wait = round((self._rules.pause_seconds - self._rules.margin_seconds) / FRAME_SECONDS)
        pieces = pieces_of_frames(speech, self._levels, self._rules)
        self._open, ended = None, []
        for number, (first, last) in enumerate(pieces, 1):
            start = max(self._begin + first * self._frame, self._taken)
            if number == len(pieces) and len(self._levels) - last < wait:
                self._open = start
            else:
                ended.append(self._take(start, self._begin + last * self._frame))
        return ended

    def _take(self, start: int, stop: int) -> LivePiece:
        self._taken = stop
        self._open = None if self._finder else stop
        return LivePiece(start, self._samples[start - self._begin : stop - self._begin].copy())

    def _forget(self) -> None:
        """Drop what no later piece needs, in whole blocks."""
        needed = self.end if self._open is None else self._open
        if self._finder is not None:
            heard = self._begin + len(self._levels) * self._frame
            needed = min(needed, self.end - round(KEPT_SECONDS * self._rate), heard)
        blocks = max(0, (needed - self._begin) // (BLOCK_FRAMES * self._frame))
        dropped = blocks * BLOCK_FRAMES * self._frame
        self._samples = self._samples[dropped:]
        self._levels, self._measured = (part[blocks * BLOCK_FRAMES :] for part in (self._levels, self._measured))
        self._begin += dropped
        self._taken = max(self._taken, self._begin)


class AgreedWords:
    """The words of a growing transcript on which two passes in a row agree: a later pass rarely changes them."""

    def __init__(self) -> None:
        self._before: list[str] = []
        self._told: list[str] = []

    def add(self, text: str) -> str:
        """Take the transcript of a further pass; return the text by which the agreed words have grown."""
        words = text.split()
        agreed = _common_start(self._before, words)
        self._before = words
        return self._grown(agreed)

    def finish(self, text: str) -> str:
        """Take the last transcript; return what it adds, nothing if it contradicts what was told."""
        return self._grown(text.split())

    def _grown(self, words: list[str]) -> str:
        told = len(self._told)
        if len(words) <= told or words[:told] != self._told:
            return ""
        self._told = words
        return (" " if told else "") + " ".join(words[told:])


def _common_start(first: list[str], second: list[str]) -> list[str]:
    """Return the words with which both begin."""
    same = 0
    while same < min(len(first), len(second)) and first[same] == second[same]:
        same += 1
    return second[:same]
