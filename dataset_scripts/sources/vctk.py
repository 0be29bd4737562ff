"""VCTK 0.92: 110 speakers of many accents reading newspaper sentences, each recorded by two microphones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from .. import labels
from ..files import lines
from .base import Fact, Item, Recording, Reject, Source

ACCENTS = ("American", "Australian", "British", "Canadian", "Indian", "Irish", "New Zealand", "Northern Irish",
           "Scottish", "South African", "Welsh")  # fmt: skip
OWN_NAMES = {
    "English": "British",
    "NewZealand": "New Zealand",
    "NorthernIrish": "Northern Irish",
    "SouthAfrican": "South African",
}
_NAME = re.compile(r"(.+)_mic[12]\.flac")


def read(root: Path) -> Iterator[Item | Reject]:
    """Yield one item for each recording of microphone 1, or of microphone 2 if there is no other."""
    info = root / "speaker-info.txt"
    speakers: dict[str, tuple[Fact, ...]] = {}
    for number, line in lines(info):
        if isinstance(line, Reject):
            yield line
            continue
        cells = line.split()  # columns are parted by any number of blanks; region and comments may be missing
        if not cells or cells[0] == "ID":
            continue
        if len(cells) < 4 or not cells[1].isdigit():
            yield Reject(f"{info}:{number}", "not ID AGE GENDER ACCENT ...")
            continue
        given = {
            "gender": labels.gender(cells[2]),
            "accent": labels.accent(OWN_NAMES.get(cells[3], cells[3]), ACCENTS),
            "age": labels.age_in_years(int(cells[1])),
        }
        for what, found in given.items():
            if not found:
                yield Reject(f"{info}:{number} ({line.strip()})", f"{what} of the speaker is outside the set")
        speaker = cells[0] if cells[0][0].isalpha() else f"p{cells[0]}"
        speakers[speaker] = tuple(fact for found in given.values() for fact in found)
    for folder in sorted((root / "wav48_silence_trimmed").iterdir()):
        if not folder.is_dir():
            continue  # log.txt
        if folder.name not in speakers:
            yield Reject(str(folder), "speaker is not in speaker-info.txt")
        takes: dict[str, Path] = {}
        for file in sorted(folder.iterdir()):  # microphone 1 before 2
            if name := _NAME.fullmatch(file.name):
                takes.setdefault(name[1], file)
            else:
                yield Reject(str(file), "not {speaker}_{number}_mic{1,2}.flac")
        for take, audio in takes.items():
            text_file = root / "txt" / folder.name / f"{take}.txt"
            try:
                text = text_file.read_text(encoding="utf-8").strip()
                if not text:
                    yield Reject(str(text_file), "no transcript")
            except FileNotFoundError:
                text = ""  # p315 has no texts at all
                yield Reject(str(text_file), "no transcript")
            except UnicodeDecodeError:
                text = ""
                yield Reject(str(text_file), "text is not UTF-8")
            facts = (Fact("ASR", text),) * bool(text) + speakers.get(folder.name, ())
            if facts:
                yield Item(take, facts, (Recording(str(audio)),), folder.name, text, where=str(audio))


SOURCE = Source(
    name="vctk",
    title="CSTR VCTK Corpus 0.92",
    license="CC-BY-4.0",
    homepage="https://datashare.ed.ac.uk/handle/10283/3443",
    tasks=("ASR", "SGC", "AC", "AR"),
    layout="speaker-info.txt\ntxt/{speaker}/{speaker}_{number}.txt\n"
    "wav48_silence_trimmed/{speaker}/{speaker}_{number}_mic{1,2}.flac",
    needs=("speaker-info.txt", "txt", "wav48_silence_trimmed/*/*.flac"),
    read=read,
    expected={"ASR": 44_455},
    benchmark={"SGC": 100, "AC": 100, "AR": 100},
)
