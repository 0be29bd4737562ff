"""Common Voice, English: short sentences from volunteers, some of whom say their age, gender and accent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .. import labels
from .base import Item, Recording, Reject, Source, table

ACCENTS = ("Australian English", "Canadian English", "England English", "Filipino", "German English",
           "Hong Kong English", "Indian English", "Irish English", "Malaysian English", "New Zealand English",
           "Northern Irish", "Scottish English", "Singaporean English", "South African accent",
           "United States English", "Welsh English")  # fmt: skip
OWN_NAMES = {
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


def read(root: Path) -> Iterator[Item | Reject]:
    """One item for each row of train, dev and test that says something of its speaker."""
    for part, split in SPLITS.items():
        file = root / f"{part}.tsv"
        if not file.exists():
            continue
        for row in table(file, "\t", ("client_id", "path", "sentence", "age", "gender")):
            if isinstance(row, Reject):
                yield row
                continue
            # Releases before 8.0 call the column "accent"; of those who name several accents none is taken.
            accent = row.get("accents") or row.get("accent") or ""
            facts = (
                *labels.gender(row["gender"]),  # "male", or since 17.0 "male_masculine"
                *labels.accent(OWN_NAMES.get(accent, accent), ACCENTS),
                *labels.age_in_decades(row["age"]),
            )
            if facts:
                sound = (Recording(str(root / "clips" / row["path"])),)
                id = Path(row["path"]).stem
                yield Item(id, facts, sound, speaker=row["client_id"], sentence=row["sentence"], split=split)


SOURCE = Source(
    name="common_voice",
    title="Common Voice (English)",
    license="CC0-1.0",
    redistributable=True,
    homepage="https://commonvoice.mozilla.org",
    tasks=("SGC", "AR", "AC"),
    layout="{train,dev,test}.tsv (client_id, path, sentence, ..., age, gender, accents)\n"
    "clips/common_voice_en_{n}.mp3",
    needs=("train.tsv", "clips"),
    read=read,
    benchmark={"SGC": 100, "AC": 100, "AR": 100},
)
