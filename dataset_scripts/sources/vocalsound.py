"""VocalSound: laughter, sighs, coughs, throat clearing, sneezes and sniffs of some 3,300 people of known age."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from .. import labels
from ..files import lines
from .base import Fact, Item, Recording, Reject, Source

SOUNDS = {
    "laughter": "laughter",
    "sigh": "sigh",
    "cough": "cough",
    "throatclearing": "throat clearing",
    "sneeze": "sneeze",
    "sniff": "sniff",
}
SPLITS = {"tr": "train", "val": "validation", "te": "test"}
_NAME = re.compile(r"([fm]\d+)_\d+_([a-z]+)")


def read(root: Path) -> Iterator[Item | Reject]:
    """Yield one item a file; of speakers below 18 or above 80 the age is not asked."""
    people: dict[str, tuple[tuple[Fact, ...], str]] = {}
    for part, split in SPLITS.items():
        table = root / "meta" / f"{part}_meta.csv"  # no header: speaker, gender, age, country, language, health
        if not table.exists():
            yield Reject(str(table), "no such file")
            continue
        for number, line in lines(table):
            if isinstance(line, Reject):
                yield line
                continue
            cells = [cell.strip() for cell in line.split(",")]
            if cells == [""]:
                continue
            if len(cells) < 3 or not cells[2].isdigit():
                yield Reject(f"{table}:{number}", "not speaker,gender,age,...")
                continue
            gender, years = labels.gender(cells[1]), int(cells[2])
            age = (Fact("AR", str(years), granularity="number"),) if 18 <= years <= 80 else ()
            for what, found in (("gender", gender), ("age", age)):
                if not found:
                    yield Reject(f"{table}:{number} ({line.strip()})", f"{what} of the speaker is outside the set")
            people[cells[0]] = ((*gender, *age), split)
    for file in sorted((root / "audio_16k").glob("*.wav")):
        name = _NAME.fullmatch(file.stem)
        if not name or name[2] not in SOUNDS:
            yield Reject(str(file), f"not {{speaker}}_{{n}}_{{sound}}.wav with a sound of {', '.join(SOUNDS)}")
            continue
        if name[1] not in people:
            yield Reject(str(file), "speaker is not in meta/")
            continue
        facts, split = people[name[1]]
        sound = Fact("VSC", SOUNDS[name[2]], tuple(SOUNDS.values()))
        yield Item(file.stem, (sound, *facts), (Recording(str(file)),), speaker=name[1], split=split)


SOURCE = Source(
    name="vocalsound",
    title="VocalSound",
    license="CC-BY-SA-4.0",
    homepage="https://github.com/YuanGongND/vocalsound",
    tasks=("VSC", "SGC", "AR"),
    layout="audio_16k/{f0001}_{0}_{cough}.wav\nmeta/{tr,val,te}_meta.csv",
    needs=("audio_16k/*.wav", "meta/*_meta.csv"),
    read=read,
    expected={"VSC": 21_024, "SGC": 21_024, "AR": 21_024},
    benchmark={"VSC": 200, "SGC": 200, "AR": 200},
)
