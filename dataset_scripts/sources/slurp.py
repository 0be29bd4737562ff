"""SLURP: spoken requests to a home assistant, with their intent and their slots."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .base import Fact, Item, Recording, Reject, Source, json_lines

SPLITS = {"train": "train", "devel": "validation", "test": "test"}


def read(root: Path) -> Iterator[Item | Reject]:
    """One item a recording; a sentence has several."""
    for part, split in SPLITS.items():
        file = root / "dataset" / "slurp" / f"{part}.jsonl"
        for number, entry in json_lines(file) if file.exists() else ():
            if isinstance(entry, Reject):
                yield entry
                continue
            sentence, annotation = entry.get("sentence", ""), entry.get("sentence_annotation", "")
            if not sentence or not annotation or not entry.get("scenario") or not entry.get("action"):
                yield Reject(f"{file}:{number}", "no sentence, annotation, scenario or action")
                continue
            facts = (
                Fact("IP", f"{entry['scenario']} {entry['action'].replace('_', ' ')}", input=sentence),
                Fact("EE", annotation, input=sentence),
            )
            for name, recording in sorted(entry.get("recordings", {}).items()):
                sound = (Recording(str(root / "audio" / "slurp_real" / name)),)
                speaker = recording.get("usrid", "")
                yield Item(Path(name).stem, facts, sound, speaker=speaker, sentence=sentence, split=split)


SOURCE = Source(
    name="slurp",
    title="SLURP",
    license="CC-BY-NC-4.0 (audio); CC-BY-4.0 (text)",
    redistributable=False,
    homepage="https://github.com/pswietojanski/slurp",
    tasks=("IP", "EE"),
    layout="dataset/slurp/{train,devel,test}.jsonl\naudio/slurp_real/audio-{n}[-headset].flac",
    needs=("dataset/slurp/*.jsonl", "audio/slurp_real"),
    read=read,
    expected={"IP": 72_277, "EE": 72_277},
    benchmark={"IP": 858, "EE": 569},
)
