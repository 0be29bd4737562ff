"""Free Spoken Digit Dataset: real recordings of the ten digits by a handful of speakers.

One speaker, the last by name, is held out entirely for evaluation, so that what is reported there is a new voice.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from .. import acoustics, draw
from .base import Fact, Item, Recording, Reject, Source

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_NAME = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav")


def is_in(root: Path) -> bool:
    """Return whether recordings in a folder are named as this data set's are."""
    return any(_NAME.fullmatch(file.name) for file in (root / "recordings").glob("*.wav"))


def read(root: Path, held_out: str = "", strings: int = 1) -> Iterator[Item | Reject]:
    """Yield strings of two to four digits, joined as one speaker's speech.

    Single digits would be the same ten sentences in training and evaluation; strings are not, and the build drops
    those of training that evaluation has too.

    Args:
        root: the folder.
        held_out: the speaker kept for evaluation; the last by name if it is empty.
        strings: how many strings each recording of the other speakers is part of: the first as recorded, the others
            in drawn rooms and noise. Of the held-out speaker each recording is used once.
    """
    takes: dict[str, list[Path]] = defaultdict(list)
    for path in sorted((root / "recordings").iterdir()):
        if name := _NAME.fullmatch(path.name):
            takes[name[2]].append(path)
        else:
            yield Reject(str(path), "not named {digit}_{speaker}_{take}.wav")
    held_out = held_out or max(takes, default="")
    if held_out not in takes:
        raise ValueError(f"{root / 'recordings'}: no speaker {held_out!r}; there are {', '.join(sorted(takes))}")
    for speaker, paths in sorted(takes.items()):
        yield from _strings(speaker, paths, "test" if speaker == held_out else "train", "", ("ASR", "SSD"))
        for again in range(1, strings if speaker != held_out else 1):
            yield from _strings(speaker, paths, "train", f"-{again}", ("ASR",))


def _strings(speaker: str, paths: list[Path], split: str, mark: str, tasks: tuple[str, ...]) -> Iterator[Item]:
    """Yield all of a speaker's recordings, in drawn order, as strings.

    Args:
        mark: tells one pass over the recordings from another; all but the first, "", are given acoustics.
        tasks: what is asked of each string.
    """
    left = draw.shuffled(0, speaker, f"takes{mark}", paths)
    while left:
        first = left[0].stem
        count = 2 + draw.integer(0, first + mark, "digits") % 3
        joined, left = left[:count], left[count:]
        sentence = " ".join(DIGITS[int(path.name[0])] for path in joined)
        room = acoustics.drawn(0, first + mark, snr_db=(15, 45), reverb_s=(0.1, 0.3)) if mark else None
        facts = {
            "ASR": Fact("ASR", sentence, modality="text_audio", corpora=("align", "instruct", "eval")),
            "SSD": Fact("SSD", "real", choices=("real", "fake")),
        }
        yield Item(
            f"{first}-{len(joined)}{mark}",
            tuple(facts[task] for task in tasks),
            tuple(Recording(str(path), acoustics=room) for path in joined),
            speaker=speaker,
            sentence=sentence,
            split=split,
        )


SOURCE = Source(
    name="fsdd",
    title="Free Spoken Digit Dataset",
    license="CC-BY-SA-4.0",
    homepage="https://github.com/Jakobovski/free-spoken-digit-dataset",
    tasks=("ASR", "SSD"),
    layout="recordings/{digit}_{speaker}_{take}.wav",
    needs=("recordings/*.wav",),
    read=read,
    benchmark={"ASR": 200},
)
