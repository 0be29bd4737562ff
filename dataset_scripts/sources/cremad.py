"""CREMA-D: 91 actors say twelve sentences in six emotions; everything is in the file's name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .base import Fact, Item, Recording, Reject, Source

EMOTIONS = {
    "ANG": "anger",
    "DIS": "disgust",
    "FEA": "fear",
    "HAP": "happiness",
    "NEU": "neutrality",
    "SAD": "sadness",
}
LEVELS = {"LO": "low", "MD": "medium", "HI": "high", "XX": "unspecified", "X": "unspecified"}
"""One file, 1040_ITH_SAD_X.wav, lost a letter."""


def read(root: Path) -> Iterator[Item | Reject]:
    """Yield one item a file."""
    for file in sorted((root / "AudioWAV").glob("*.wav")):
        parts = file.stem.split("_")
        if len(parts) != 4 or parts[2] not in EMOTIONS or parts[3] not in LEVELS:
            yield Reject(str(file), "not {actor}_{sentence}_{emotion}_{level}.wav")
            continue
        actor, sentence, emotion, level = parts
        facts = (
            Fact("ER", EMOTIONS[emotion], tuple(EMOTIONS.values())),
            Fact("EIE", LEVELS[level], tuple(dict.fromkeys(LEVELS.values())), "intensity"),
        )
        yield Item(file.stem, facts, (Recording(str(file)),), speaker=actor, sentence=f"cremad {sentence}")


SOURCE = Source(
    name="cremad",
    title="CREMA-D",
    license="ODbL-1.0",
    homepage="https://github.com/CheyneyComputerScience/CREMA-D",
    tasks=("ER", "EIE"),
    layout="AudioWAV/{actor}_{sentence}_{emotion}_{level}.wav",
    needs=("AudioWAV/*.wav",),
    read=read,
    expected={"ER": 7_442, "EIE": 7_442},
    shared=("sentence",),
    benchmark={"ER": 100, "EIE": 100},
)
