"""LJ Speech: one reader, 13,100 passages, a table parted by bars."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..files import lines
from .base import Fact, Item, Recording, Reject, Source


def read(root: Path) -> Iterator[Item | Reject]:
    """Yield one item for each line of metadata.csv; the normalized text (numbers written out) is the transcript."""
    metadata, known = root / "metadata.csv", set()
    for number, line in lines(metadata):
        where = f"{metadata}:{number}"
        if isinstance(line, Reject):
            yield line
            continue
        cells = line.split("|")  # no CSV: quotes stand in the text unpaired
        if len(cells) != 3:
            yield Reject(where, "not id|text|normalized text")
            continue
        id, text = cells[0], cells[2].strip()
        if not text:
            yield Reject(where, "no transcript")
            continue
        known.add(id)
        wav = root / "wavs" / f"{id}.wav"
        yield Item(id, (Fact("ASR", text),), (Recording(str(wav)),), "librivox:LJ", text, where=where)
    unread = sorted(file for file in (root / "wavs").glob("*.wav") if file.stem not in known)
    yield from (Reject(str(file), "recording without a transcript") for file in unread)


SOURCE = Source(
    name="ljspeech",
    title="The LJ Speech Dataset 1.1",
    license="Public Domain",
    homepage="https://keithito.com/LJ-Speech-Dataset/",
    tasks=("ASR",),
    layout="metadata.csv (id|text|normalized text)\nwavs/{id}.wav",
    needs=("metadata.csv", "wavs/*.wav"),
    read=read,
    expected={"ASR": 13_100},
    shared=("speaker",),
)
