"""LibriSpeech: read audiobooks with a transcript file per chapter; its own dev and test parts are kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .base import Fact, Item, Recording, Reject, Source, lines

SPLITS = {"train": "train", "dev": "validation", "test": "test"}


def read(root: Path) -> Iterator[Item | Reject]:
    """One item for each line of each `*.trans.txt`."""
    for transcripts in sorted(root.glob("*/*/*/*.trans.txt")):
        part, speaker, chapter = transcripts.parts[-4:-1]
        for number, line in lines(transcripts):
            if isinstance(line, Reject):
                yield line
                continue
            id, _, text = line.partition(" ")
            if not text.strip():
                yield Reject(f"{transcripts}:{number}", "no transcript")
                continue
            text = text.strip().lower()
            yield Item(
                f"{part}/{id}",
                (Fact("ASR", text),),
                (Recording(str(transcripts.with_name(f"{id}.flac"))),),
                speaker=f"librivox:{speaker}",  # MLS has the same readers under the same numbers
                sentence=text,
                split=SPLITS.get(part.split("-")[0], ""),
            )


SOURCE = Source(
    name="librispeech",
    title="LibriSpeech",
    license="CC-BY-4.0",
    redistributable=True,
    homepage="https://www.openslr.org/12",
    tasks=("ASR",),
    layout="{train-clean-100,...,dev-clean,test-clean}/{speaker}/{chapter}/{speaker}-{chapter}-{number}.flac\n"
    "{part}/{speaker}/{chapter}/{speaker}-{chapter}.trans.txt",
    needs=("*/*/*/*.trans.txt",),
    read=read,
    expected={"ASR": 292_367},
)
