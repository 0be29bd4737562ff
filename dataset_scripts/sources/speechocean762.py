"""SpeechOcean762: learners of English read sentences; five experts score words and sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..files import lines, stream_json_object
from .base import Fact, Item, Recording, Reject, Source


def read(root: Path) -> Iterator[Item | Reject]:
    """Yield one item for each line of train/wav.scp and test/wav.scp; speakers may be children."""
    file = root / "resource" / "scores.json"
    scores = dict(stream_json_object(file))
    unread = set(scores)
    for part, split in {"train": "", "test": "test"}.items():
        listing = root / part / "wav.scp"
        for number, line in lines(listing):
            where = f"{listing}:{number}"
            if isinstance(line, Reject):
                yield line
                continue
            cells = line.split()
            if len(cells) != 2 or cells[0] not in scores:
                yield Reject(where, "no such id in resource/scores.json")
                continue
            id, path = cells
            unread.discard(id)
            try:
                facts = (Fact("PSSL", sentence_scores(scores[id])), Fact("PSWL", word_scores(scores[id])))
            except (KeyError, TypeError, ValueError):
                yield Reject(f"{file}: {id}", "a score is missing or is no number")
                continue
            text, speaker = scores[id]["text"].capitalize(), Path(path).parent.name
            yield Item(id, facts, (Recording(str(root / path)),), speaker, text, split, where)
    yield from (Reject(f"{file}: {id}", "in neither train/wav.scp nor test/wav.scp") for id in sorted(unread))


def sentence_scores(entry: Mapping[str, Any]) -> str:
    """Return the answer of PSSL, in the words of the released rows."""
    scores = (
        f"accuracy is {entry['accuracy']:.0f}, prosodic is {entry['prosodic']:.0f}, fluency is {entry['fluency']:.0f}"
    )
    return f"{entry['text'].capitalize()}. For the sentence: {scores} total score is {entry['total']:.0f}."


def word_scores(entry: Mapping[str, Any]) -> str:
    """Return the answer of PSWL, in the words of the released rows."""
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
    homepage="https://www.openslr.org/101",
    tasks=("PSWL", "PSSL"),
    layout="resource/scores.json\n{train,test}/wav.scp (id<tab>WAVE/SPEAKER{0001}/{id}.WAV)\n"
    "WAVE/SPEAKER{0001}/{id}.WAV",
    needs=("resource/scores.json", "train/wav.scp", "test/wav.scp", "WAVE/*/*.WAV"),
    read=read,
    expected={"PSWL": 5_000, "PSSL": 5_000},
    benchmark={"PSWL": 200, "PSSL": 200},
)
