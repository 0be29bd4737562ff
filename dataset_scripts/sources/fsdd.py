"""Free Spoken Digit Dataset: real recordings of the ten digits by a handful of speakers.

One speaker, the last by name, is held out entirely for evaluation, so that what is reported there is a new voice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from .base import Fact, Item, Recording, Reject, Source

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_NAME = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav")


def read(root: Path, held_out: str = "") -> Iterator[Item | Reject]:
    """One item a recording.

    Args:
        root: the folder.
        held_out: the speaker kept for evaluation; the last by name where it is empty.
    """
    accents = {name: facts["accent"] for name, facts in json.loads((root / "speakers.json").read_text()).items()}
    held_out = held_out or max(accents)
    if held_out not in accents:
        raise ValueError(f"{root / 'speakers.json'}: no speaker {held_out!r}; there are {', '.join(sorted(accents))}")
    for path in sorted((root / "recordings").iterdir()):
        name = _NAME.fullmatch(path.name)
        if not name or name[2] not in accents:
            yield Reject(str(path), "not named {digit}_{speaker}_{take}.wav with a speaker of speakers.json")
            continue
        word = DIGITS[int(name[1])]
        yield Item(
            path.stem,
            (
                Fact("ASR", word, corpora=("align", "instruct", "eval")),
                Fact("SCR", word),
                Fact("SSD", "real", choices=("real", "fake")),
            ),
            (Recording(str(path)),),
            speaker=name[2],
            sentence=word,
            split="test" if name[2] == held_out else "train",
        )


SOURCE = Source(
    name="fsdd",
    title="Free Spoken Digit Dataset",
    license="CC-BY-SA-4.0",
    redistributable=True,
    homepage="https://github.com/Jakobovski/free-spoken-digit-dataset",
    tasks=("ASR", "SCR", "SSD"),
    layout="recordings/{digit}_{speaker}_{take}.wav\nspeakers.json",
    needs=("recordings/*.wav", "speakers.json"),
    read=read,
    expected={"ASR": 3000},
    shared=("sentence",),
)
