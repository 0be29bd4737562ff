"""AccentDB (extended): nine accents of English, a folder each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .. import labels
from .base import Item, Recording, Reject, Source

ACCENTS = ("American", "Australian", "Bangla", "British", "Indian", "Malayalam", "Odiya", "Telugu", "Welsh")


def read(root: Path) -> Iterator[Item | Reject]:
    """Yield one item a file; the number in its name is the sentence, the same in every accent."""
    for file in sorted(root.glob("data/*/*/*.wav")):
        facts = labels.accent(file.parts[-3].capitalize(), ACCENTS)
        if not facts:
            yield Reject(str(file), f"accent {file.parts[-3]!r} is not among {', '.join(ACCENTS)}")
            continue
        number = file.stem.rpartition("_")[2]
        speaker = f"{file.parts[-3]}_{file.parent.name}"
        yield Item(file.stem, facts, (Recording(str(file)),), speaker=speaker, sentence=f"accentdb {number}")


SOURCE = Source(
    name="accentdb",
    title="AccentDB (extended)",
    license="CC-BY-NC-4.0",
    homepage="https://accentdb.org",
    tasks=("AC",),
    layout="data/{accent}/speaker_{01}/{accent}_s{01}_{001}.wav",
    needs=("data/*/*/*.wav",),
    read=read,
    expected={"AC": 16_874},
    shared=("speaker",),  # most accents have one or two speakers: without them the accent would never be heard
    benchmark={"AC": 100},
)
