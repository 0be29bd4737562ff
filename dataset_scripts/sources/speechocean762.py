"""SpeechOcean762: learners of English read sentences; five experts score words and sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .base import Fact, Item, Recording, Reject, Source, lines, read_json


def read(root: Path) -> Iterator[Item | Reject]:
    """One item for each line of train/wav.scp and test/wav.scp; speakers may be children."""
    scores: dict[str, dict[str, Any]] = read_json(root / "resource" / "scores.json")
    for part, split in {"train": "", "test": "test"}.items():
        for number, line in lines(root / part / "wav.scp"):
            cells = [] if isinstance(line, Reject) else line.split()
            if len(cells) != 2 or cells[0] not in scores:
                yield (
                    line
                    if isinstance(line, Reject)
                    else Reject(f"{root / part / 'wav.scp'}:{number}", "no such id in resource/scores.json")
                )
                continue
            id, path = cells
            entry = scores[id]
            text = entry["text"].capitalize()
            yield Item(
                id,
                (Fact("PSSL", sentence_scores(entry)), Fact("PSWL", word_scores(entry))),
                (Recording(str(root / path)),),
                speaker=Path(path).parent.name,
                sentence=text,
                split=split,
            )


def sentence_scores(entry: Mapping[str, Any]) -> str:
    """The answer of PSSL, in the words of the released rows."""
    scores = (
        f"accuracy is {entry['accuracy']:.0f}, prosodic is {entry['prosodic']:.0f}, fluency is {entry['fluency']:.0f}"
    )
    return f"{entry['text'].capitalize()}. For the sentence: {scores} total score is {entry['total']:.0f}."


def word_scores(entry: Mapping[str, Any]) -> str:
    """The answer of PSWL, in the words of the released rows."""
    words = (
        f'For "{word["text"].lower()}", accuracy is {word["accuracy"]:.0f}, stress is {word["stress"]:.0f}, '
        f"and total score is {word['total']:.0f}."
        for word in entry["words"]
    )
    return " ".join((f"{entry['text'].capitalize()}.", *words))


SOURCE = Source(
    name="speechocean762",
    title="speechocean762",
    license="CC-BY-4.0",
    redistributable=True,
    homepage="https://www.openslr.org/101",
    tasks=("PSWL", "PSSL"),
    layout="resource/scores.json\n{train,test}/wav.scp (id<tab>WAVE/SPEAKER{0001}/{id}.WAV)\n"
    "WAVE/SPEAKER{0001}/{id}.WAV",
    needs=("resource/scores.json", "train/wav.scp", "test/wav.scp"),
    read=read,
    expected={"PSWL": 5_000, "PSSL": 5_000},
    benchmark={"PSWL": 200, "PSSL": 200},
)
