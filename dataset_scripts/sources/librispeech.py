"""LibriSpeech: read audiobooks with a transcript file per chapter; its own dev and test parts are kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..files import lines
from .base import Fact, Item, Recording, Reject, Source

SPLITS = {"train": "train", "dev": "validation", "test": "test"}


def read(root: Path) -> Iterator[Item | Reject]:
    """Yield one item for each line of each `*.trans.txt`."""
    for chapter in sorted(path for path in root.glob("*/*/*") if path.is_dir()):
        part, speaker, _ = chapter.parts[-3:]
        transcripts = chapter / f"{speaker}-{chapter.name}.trans.txt"
        known = set()
        for number, line in lines(transcripts) if transcripts.exists() else ():
            where = f"{transcripts}:{number}"
            if isinstance(line, Reject):
                yield line
                continue
            id, _, text = line.partition(" ")
            text = text.strip().lower()
            if not text:
                yield Reject(where, "no transcript")
                continue
            known.add(id)
            yield Item(
                f"{part}/{id}",
                (Fact("ASR", text),),
                (Recording(str(chapter / f"{id}.flac")),),
                speaker=f"librivox:{speaker}",  # MLS has the same readers under the same numbers
                sentence=text,
                split=SPLITS.get(part.split("-")[0], ""),
                where=where,
            )
        unread = sorted(file for file in chapter.glob("*.flac") if file.stem not in known)
        yield from (Reject(str(file), "recording without a transcript") for file in unread)


SOURCE = Source(
    name="librispeech",
    title="LibriSpeech",
    license="CC-BY-4.0",
    homepage="https://www.openslr.org/12",
    tasks=("ASR",),
    layout="{train-clean-100,...,dev-clean,test-clean}/{speaker}/{chapter}/{speaker}-{chapter}-{number}.flac\n"
    "{part}/{speaker}/{chapter}/{speaker}-{chapter}.trans.txt",
    needs=("*/*/*/*.trans.txt",),
    read=read,
    expected={"ASR": 292_367},
)
