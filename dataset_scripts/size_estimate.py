"""Estimates hours and bytes of a corpus before it is built, from a sample of its rows.

Speech still to be made is estimated from its letters, recordings from their headers: sixteen rows for each source,
task, format and split, those whose hash is lowest.
"""

from __future__ import annotations

import heapq
import json
from collections import defaultdict
from collections.abc import Sequence

from . import conversations, draw
from .clips import recording_seconds
from .sources.base import Recording, Sound, Speech

SAMPLE = 16
FLAC_BYTES_PER_SECOND = 18_000.0
"""16 kHz 16-bit mono speech as FLAC."""


class Estimate:
    """Keeps a sample of each group while rows are added; afterwards estimates how long each group is."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._sample: dict[str, list[tuple[int, str]]] = defaultdict(list)
        self._rows: dict[str, int] = defaultdict(int)

    def add(self, group: str, id: str, row_json: str) -> None:
        """Add one row."""
        kept = self._sample[group]
        self._rows[group] += 1
        point = -draw.integer(self._seed, id, "estimate")
        if len(kept) < SAMPLE:
            heapq.heappush(kept, (point, row_json))
        elif point > kept[0][0]:
            heapq.heapreplace(kept, (point, row_json))

    def hours(self) -> dict[str, float]:
        """Return the estimated hours of each group."""
        found = {}
        for group, kept in sorted(self._sample.items()):
            lengths = [
                sum(
                    seconds(conversations.sound_from_json(sound))
                    for clip in json.loads(line)["clips"]
                    for sound in clip
                )
                for _, line in kept
            ]
            found[group] = sum(lengths) / len(lengths) * self._rows[group] / 3600
        return found


def seconds(sound: Sound) -> float:
    """Estimate how long a sound lasts; 0 for a recording that cannot be read (the build will set it aside)."""
    try:
        return _seconds(sound) if not isinstance(sound, Recording) or sound.end is None else sound.end - sound.start
    except ValueError:
        return 0.0


def _seconds(sound: Sound) -> float:
    """Estimate how long a sound lasts.

    Raises:
        ValueError: a recording's header cannot be read, or its stretch lies outside the file.
    """
    if isinstance(sound, Speech):
        # espeak-ng takes from 0.7 to 2.2 times as long for whole sentences.
        return len(sound.text) / conversations.LETTERS_PER_SECOND * 165 / sound.rate
    return recording_seconds(sound) if isinstance(sound, Recording) else sound.seconds


def unfit(sounds: Sequence[Sound], most: float) -> str:
    """Say why a row must not be drawn for evaluation, judged by file headers and text length, or ""."""
    try:
        whole = sum(map(_seconds, sounds))
    except ValueError as error:
        return str(error)
    return f"longer than {most:g} s" if whole > most else ""
