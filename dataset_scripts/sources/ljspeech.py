"""LJ Speech: one reader, 13,100 passages, a table parted by bars."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .base import Fact, Item, Recording, Reject, Source, lines


def read(root: Path) -> Iterator[Item | Reject]:
    """One item for each line of metadata.csv; the normalized text (numbers written out) is the transcript."""
    for number, line in lines(root / "metadata.csv"):
        if isinstance(line, Reject):
            yield line
            continue
        id, _, texts = line.partition("|")  # no CSV: quotes stand in the text unpaired
        text = texts.rpartition("|")[2].strip()
        if not text:
            yield Reject(f"{root / 'metadata.csv'}:{number}", "no transcript")
            continue
        wav = root / "wavs" / f"{id}.wav"
        yield Item(id, (Fact("ASR", text),), (Recording(str(wav)),), speaker="librivox:LJ", sentence=text)


SOURCE = Source(
    name="ljspeech",
    title="The LJ Speech Dataset 1.1",
    license="Public Domain",
    redistributable=True,
    homepage="https://keithito.com/LJ-Speech-Dataset/",
    tasks=("ASR",),
    layout="metadata.csv (id|text|normalized text)\nwavs/{id}.wav",
    needs=("metadata.csv", "wavs/*.wav"),
    read=read,
    expected={"ASR": 13_100},
    shared=("speaker",),
)
