"""Common Voice, English: short sentences from volunteers, some of whom say their age, gender and accent."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from .. import labels
from ..files import table
from .base import Item, Recording, Reject, Source

ACCENTS = ("Australian English", "Canadian English", "England English", "Filipino", "German English",
           "Hong Kong English", "Indian English", "Irish English", "Malaysian English", "New Zealand English",
           "Northern Irish", "Scottish English", "Singaporean English", "South African accent",
           "United States English", "Welsh English")  # fmt: skip
OWN_NAMES = {
    "african": "South African accent",
    "australia": "Australian English",
    "canada": "Canadian English",
    "england": "England English",
    "hongkong": "Hong Kong English",
    "indian": "Indian English",
    "ireland": "Irish English",
    "malaysia": "Malaysian English",
    "newzealand": "New Zealand English",
    "philippines": "Filipino",
    "scotland": "Scottish English",
    "singapore": "Singaporean English",
    "us": "United States English",
    "wales": "Welsh English",
    "Southern African (South Africa, Zimbabwe, Namibia)": "South African accent",
    "India and South Asia (India, Pakistan, Sri Lanka)": "Indian English",
}
"""Other names of these accents: the codes of early releases, and the longer names of later ones."""
SPLITS = {"train": "train", "dev": "validation", "test": "test"}
_BETWEEN = re.compile(r"\s*[,|]\s*(?![^()]*\))")
"""Separator of the accents of a speaker who names several; a comma in brackets is part of a name."""


def read(root: Path) -> Iterator[Item | Reject]:
    """Yield one item for each row of train, dev and test that says something of its speaker."""
    for part, split in SPLITS.items():
        file = root / f"{part}.tsv"
        if not file.exists():
            yield Reject(str(file), "no such file")
            continue
        for number, row in table(file, "\t", ("client_id", "path", "sentence", "age", "gender")):
            where = f"{file}:{number}"
            if isinstance(row, Reject):
                yield row
                continue
            accents = row.get("accents") or row.get("accent") or ""  # "accent" before release 8.0
            given = {
                "gender": (row["gender"], labels.gender(row["gender"])),
                "accent": (accents, labels.accent(accent(accents), ACCENTS)),
                "age": (row["age"], labels.age_in_decades(row["age"])),
            }
            if unsaid := [name for name, (label, _) in given.items() if not label]:
                yield Reject(where, f"not said: {', '.join(unsaid)}")
            for name, (label, found) in given.items():
                if label and not found:
                    yield Reject(f"{where} ({label})", f"{name} is outside the set")
            if facts := tuple(fact for _, found in given.values() for fact in found):
                path = Path(row["path"])
                clip = root / "clips" / (path if path.suffix else path.with_suffix(".mp3"))  # none before release 4
                sound = (Recording(str(clip)),)
                yield Item(path.stem, facts, sound, row["client_id"], row["sentence"], split, where)


def accent(label: str) -> str:
    """Return the one of ACCENTS that a speaker names, or "" if it is none or more than one.

    Words of one's own beside it ("Non native speaker", "Midwestern") describe it, and are passed over.
    """
    named = {OWN_NAMES.get(word, word) for word in (label, *_BETWEEN.split(label))} & set(ACCENTS)
    return named.pop() if len(named) == 1 else ""


SOURCE = Source(
    name="common_voice",
    title="Common Voice (English)",
    license="CC0-1.0",
    homepage="https://commonvoice.mozilla.org",
    tasks=("SGC", "AR", "AC"),
    layout="{train,dev,test}.tsv (client_id, path, sentence, ..., age, gender, accents)\n"
    "clips/common_voice_en_{n}.mp3",
    needs=("train.tsv", "clips"),
    read=read,
    benchmark={"SGC": 100, "AC": 100, "AR": 100},
)
