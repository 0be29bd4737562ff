"""Multilingual LibriSpeech, English: long audiobook segments (ASR), and their phonemes by espeak-ng (PR)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from .. import draw
from ..files import lines
from ..synthesize import phonemes
from .base import Fact, Item, Recording, Reject, Source

SPLITS = {"train": "train", "dev": "validation", "test": "test"}


def read(root: Path, phoneme_share: float = 0.1) -> Iterator[Item | Reject]:
    """Yield one item for each line of each `transcripts.txt`; a share of them also has phonemes.

    Args:
        root: the folder.
        phoneme_share: the part of the recordings whose phonemes are asked for, drawn by id.
    """
    for part, split in SPLITS.items():
        transcripts = root / part / "transcripts.txt"
        if not transcripts.exists():
            yield Reject(str(transcripts), "no such file")
            continue
        used = Counter[Path]()
        for number, line in lines(transcripts):
            where = f"{transcripts}:{number}"
            if isinstance(line, Reject):
                yield line
                continue
            id, text, file = _parse(root / part, line)
            if not text:
                yield Reject(where, "not {speaker}_{book}_{number}<tab>transcript")
                continue
            if not file.exists():
                yield Reject(where, "no recording")
                continue
            used[file.parent] += 1
            facts = [Fact("ASR", text)]
            if draw.unit(0, id, "phonemes") < phoneme_share:
                facts.append(Fact("PR", phonemes(text), input=text))
            speaker = f"librivox:{id.split('_')[0]}"
            yield Item(id, tuple(facts), (Recording(str(file)),), speaker, text, split, where)
        yield from _unused(root / part, used)


def _parse(part: Path, line: str) -> tuple[str, str, Path]:
    """Return id, text and recording of a line of transcripts.txt; the text is "" if it is no such line."""
    id, _, text = line.partition("\t")
    if id.count("_") != 2:
        return "", "", part
    speaker, book, _ = id.split("_")
    stem = part / "audio" / speaker / book / id
    flac = stem.with_suffix(".flac")
    return id, text.strip(), flac if flac.exists() else stem.with_suffix(".opus")


def _unused(part: Path, used: Counter[Path]) -> Iterator[Reject]:
    """List recordings without a transcript; ids are kept only for books with too many files, not all ten million."""
    books = (book for book in (part / "audio").glob("*/*") if book.is_dir())
    left = {book: files for book in books if len(files := _recordings(book)) > used[book]}
    for _, line in lines(part / "transcripts.txt") if left else ():
        if isinstance(line, str):
            _, text, file = _parse(part, line)
            if text and file.parent in left:
                left[file.parent].discard(file.with_suffix(""))
    for file in sorted(file for files in left.values() for file in files):
        yield Reject(str(file), "recording without a transcript")


def _recordings(book: Path) -> set[Path]:
    """Return the recordings of a book, without suffix: there may be a .flac made of an .opus beside it."""
    return {file.with_suffix("") for file in book.iterdir() if file.suffix in (".flac", ".opus")}


SOURCE = Source(
    name="mls",
    title="Multilingual LibriSpeech (English)",
    license="CC-BY-4.0",
    homepage="https://www.openslr.org/94",
    tasks=("ASR", "PR"),
    layout="{train,dev,test}/transcripts.txt ({speaker}_{book}_{number}<tab>text)\n"
    "{train,dev,test}/audio/{speaker}/{book}/{speaker}_{book}_{number}.{flac,opus}",
    needs=("*/transcripts.txt", "*/audio"),
    read=read,
    expected={"ASR": 10_808_037},
    benchmark={"ASR": 4566, "PR": 100},
)
