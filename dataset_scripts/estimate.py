"""Hours and bytes of a corpus before it is built, from a sample of its rows.

Speech still to be made is estimated from its letters, recordings from their headers: sixteen rows for each source,
task, format and split, those whose hash is lowest.
"""

from __future__ import annotations

import heapq
import json
from collections import defaultdict

import soundfile

from . import draw, prompts
from .sources.base import Note, Recording, Sound

SAMPLE = 16
FLAC_BYTES_PER_SECOND = 18_000.0
"""16 kHz 16-bit mono speech as FLAC."""


class Estimate:
    """Keeps a sample of each group while rows go by; afterwards says how long each group is."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._sample: dict[str, list[tuple[int, str]]] = defaultdict(list)
        self._rows: dict[str, int] = defaultdict(int)

    def add(self, group: str, id: str, row_json: str) -> None:
        """Let one row go by."""
        kept = self._sample[group]
        self._rows[group] += 1
        point = -draw.integer(self._seed, id, "estimate")
        if len(kept) < SAMPLE:
            heapq.heappush(kept, (point, row_json))
        elif point > kept[0][0]:
            heapq.heapreplace(kept, (point, row_json))

    def hours(self) -> dict[str, float]:
        """Estimated hours by group."""
        found = {}
        for group, kept in sorted(self._sample.items()):
            lengths = [
                sum(seconds(prompts.sound_from_json(sound)) for clip in json.loads(line)["clips"] for sound in clip)
                for _, line in kept
            ]
            found[group] = sum(lengths) / len(lengths) * self._rows[group] / 3600
        return found


def seconds(sound: Sound) -> float:
    """About how long a sound lasts; 0 for a recording that cannot be read (the build will set it aside)."""
    if isinstance(sound, Note):
        return sound.seconds
    if not isinstance(sound, Recording):
        return len(sound.text) / prompts.LETTERS_PER_SECOND * 165 / sound.rate
    if sound.end is not None:
        return sound.end - sound.start
    try:
        return soundfile.info(sound.path).duration - sound.start
    except (soundfile.LibsndfileError, OSError):
        return 0.0
