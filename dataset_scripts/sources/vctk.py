"""VCTK 0.92: 110 speakers of many accents reading newspaper sentences, each recorded by two microphones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from .. import labels
from .base import Fact, Item, Recording, Reject, Source, lines

ACCENTS = ("American", "Australian", "British", "Canadian", "Indian", "Irish", "New Zealand", "Northern Irish",
           "Scottish", "South African", "Welsh")  # fmt: skip
OWN_NAMES = {
    "English": "British",
    "NewZealand": "New Zealand",
    "NorthernIrish": "Northern Irish",
    "SouthAfrican": "South African",
}


def read(root: Path) -> Iterator[Item | Reject]:
    """One item for each recording of microphone 1, or of microphone 2 where there is no other."""
    speakers: dict[str, tuple[Fact, ...]] = {}
    for number, line in lines(root / "speaker-info.txt"):
        if isinstance(line, Reject):
            yield line
            continue
        cells = line.split()  # columns are parted by any number of blanks; region and comments may be missing
        if not cells or cells[0] == "ID":
            continue
        if len(cells) < 4 or not cells[1].isdigit():
            yield Reject(f"{root / 'speaker-info.txt'}:{number}", "not ID AGE GENDER ACCENT ...")
            continue
        accent = OWN_NAMES.get(cells[3], cells[3])
        facts = (*labels.gender(cells[2]), *labels.accent(accent, ACCENTS), *labels.age_in_years(int(cells[1])))
        speakers[cells[0] if cells[0][0].isalpha() else f"p{cells[0]}"] = facts
    for folder in sorted((root / "wav48_silence_trimmed").iterdir()):
        if not folder.is_dir():
            continue  # log.txt
        takes = sorted({re.sub(r"_mic[12]\.flac$", "", file.name) for file in folder.glob("*.flac")})
        for take in takes:
            files = [folder / f"{take}_mic{number}.flac" for number in (1, 2)]
            audio = next((file for file in files if file.exists()), files[0])
            text_file = root / "txt" / folder.name / f"{take}.txt"
            try:
                text = text_file.read_text(encoding="utf-8").strip()
            except FileNotFoundError:
                text = ""  # p315 has no texts at all
            except UnicodeDecodeError:
                yield Reject(str(text_file), "text is not UTF-8")
                continue
            if not text:
                yield Reject(str(audio), "no transcript")
            facts = (Fact("ASR", text),) * bool(text) + speakers.get(folder.name, ())
            yield Item(take, facts, (Recording(str(audio)),), speaker=folder.name, sentence=text)


SOURCE = Source(
    name="vctk",
    title="CSTR VCTK Corpus 0.92",
    license="CC-BY-4.0",
    redistributable=True,
    homepage="https://datashare.ed.ac.uk/handle/10283/3443",
    tasks=("ASR", "SGC", "AC", "AR"),
    layout="speaker-info.txt\ntxt/{speaker}/{speaker}_{number}.txt\n"
    "wav48_silence_trimmed/{speaker}/{speaker}_{number}_mic{1,2}.flac",
    needs=("speaker-info.txt", "txt", "wav48_silence_trimmed/*/*.flac"),
    read=read,
    expected={"ASR": 44_455},
    benchmark={"SGC": 100, "AC": 100, "AR": 100},
)
