"""Multilingual LibriSpeech, English: long audiobook segments (ASR), and their phonemes by espeak-ng (PR)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .. import draw
from ..synthesize import phonemes
from .base import Fact, Item, Recording, Reject, Source, lines

SPLITS = {"train": "train", "dev": "validation", "test": "test"}


def read(root: Path, phoneme_share: float = 0.1) -> Iterator[Item | Reject]:
    """One item for each line of each `transcripts.txt`; a share of them also has phonemes.

    Args:
        root: the folder.
        phoneme_share: the part of the recordings whose phonemes are asked for, drawn by id.
    """
    for part, split in SPLITS.items():
        if not (root / part).is_dir():
            continue
        for number, line in lines(root / part / "transcripts.txt"):
            if isinstance(line, Reject):
                yield line
                continue
            id, _, text = line.partition("\t")
            if not text.strip() or id.count("_") != 2:
                yield Reject(
                    f"{root / part / 'transcripts.txt'}:{number}", "not {speaker}_{book}_{number}<tab>transcript"
                )
                continue
            speaker, book, _ = id.split("_")
            stem = root / part / "audio" / speaker / book / id
            file = next(
                (f for f in map(stem.with_suffix, (".flac", ".opus")) if f.exists()), stem.with_suffix(".flac")
            )
            facts = [Fact("ASR", text)]
            if draw.unit(0, id, "phonemes") < phoneme_share:
                facts.append(Fact("PR", phonemes(text), input=text))
            yield Item(
                id, tuple(facts), (Recording(str(file)),), speaker=f"librivox:{speaker}", sentence=text, split=split
            )


SOURCE = Source(
    name="mls",
    title="Multilingual LibriSpeech (English)",
    license="CC-BY-4.0",
    redistributable=True,
    homepage="https://www.openslr.org/94",
    tasks=("ASR", "PR"),
    layout="{train,dev,test}/transcripts.txt ({speaker}_{book}_{number}<tab>text)\n"
    "{train,dev,test}/audio/{speaker}/{book}/{speaker}_{book}_{number}.{flac,opus}",
    needs=("*/transcripts.txt", "*/audio"),
    read=read,
    expected={"ASR": 10_808_037},
    benchmark={"ASR": 4566, "PR": 100},
)
